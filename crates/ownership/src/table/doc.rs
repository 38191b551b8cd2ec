//! The tables as a document.

use std::fmt::Write as _;

use super::{Cell, ConditionOp, LifeRow, Operation, Order, OwnershipRow, Table, merged_kernel};
use crate::model::Condition;
use crate::reason::Reason;

const HEAD: &str = "\
# Who may do DMA: the whole table

This page is made from the code of `crates/ownership`; a test keeps the two equal. `BERTH_BLESS=1
cargo test -p berth-ownership docs` writes it anew.

Three axes, never mixed, describe what Berth knows. *Ownership* says who holds a group's DMA,
*reservation* how far a promise has come, *condition* whether a device may be relied on. An
operation has exactly one answer in every state: what comes next, or a refusal with a reason and
the kernel's errno. A reservation without claims is a hold: it blocks others, and `owner_cnt` does
not count it.

An operation is decided in this order: is the request well formed; does the reservation exist, and
is the order of its epoch; the reservation axis; who makes the domains; the condition of each group;
the ownership of each group. Groups are asked one by one, and an operation over several is done in
all of them or in none. Where a group is both held and in use by the host, both rows are asked.

The last column of the ownership tables says what the merged Linux kernel (7.3) does where it
differs from the policies that Berth follows. Berth decides first, the kernel enforces second.

Beside the table stand a few rules that no single group decides:

- A reservation's id is used once (`ALREADY_EXISTS`), and it has each device at most once.
- A context holds exactly one domain under the policies exclusive and shared; under the policy
  group it holds as many as its owner makes (`INVALID_ARGUMENT`, on type1 `BACKEND_CANNOT`).
- A domain serves reservations of its own context only (`INVALID_ARGUMENT`); a member of a group that
  is attached attaches to the domain that is attached there (`DOMAIN_MISMATCH`).
- A type1 container has one domain for good: a replace is refused (`BACKEND_CANNOT`).
- With the deliveries `unbound` and `node` the holder attaches by itself: attach, detach and replace
  are refused (`HOLDER_OWNS_DOMAIN`), and the claims begin with the hand-over. It lets the kernel's
  hold go first. From there until the holder has bound, while the reservation is `handed`, the
  record and the permissions of the nodes keep others out, not the kernel.
- A foreign process becomes a holder by being adopted, with delivery `node`: alone on each group that
  is asked for, and exclusively in groups of one device only (`GROUP_NOT_SINGLETON`). Until it is
  recorded as the holder the group stays foreign; where that fails, nothing of the reservation is
  left. Such a reservation ends with its holder: what ends its claims begins its release.
- Who attaches by itself could attach every device of its context: all that is handed over of one
  context goes to one identity (`HOLDER_OWNS_DOMAIN`).
- What is being released isn't renewed, also where that began with the end of its lease
  (`RESERVATION_BUSY`): its holder would count on what is gone a moment later.
- A driver's own domain that processes keep is not given up: to unbind the driver would wait for
  them. What takes from the host meets it as private; to release kernel DMA is refused
  (`KERNEL_DMA`, EBUSY).
- A device that could not be reset goes to its last label only (`LABEL_MISMATCH`), until an operator
  clears it.
- A device that can only be reset with its bus or slot is reset with the devices there, whatever
  their groups. While it is reserved those go to its holder under its label only, and it can't be
  reserved while another holder or label has one of them (`RESET_SCOPE`). What is reserved with the
  reset policy none asks for no reset, and so reaches nobody.
- Exclusive is delivered held, bound, unbound, node; shared held, bound; group held, unbound, node
  (`INVALID_ARGUMENT`).
- Combinations that can't come up have no line: a host driver presents no token, an exclusive claim
  presents no domain.
";

/// Renders `docs/ownership.md`.
pub fn render() -> String {
    let table = Table::standard();
    let mut out = HEAD.to_owned();
    out.push_str("\n## Ownership\n");
    for op in Operation::ALL {
        ownership(&mut out, &table, *op);
    }
    out.push_str("\n## Reservation\n");
    for order in Order::ALL {
        lifecycle(&mut out, &table, *order);
    }
    out.push_str("\n## Condition\n");
    conditions(&mut out, &table);
    reasons(&mut out);
    out
}

/// Text goes into a table as it is; writing to a string never fails.
fn line(out: &mut String, cells: &[&str]) {
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn head(out: &mut String, title: &str, columns: &[&str]) {
    let _ = write!(out, "\n### {title}\n\n");
    line(out, columns);
    let rules: Vec<&str> = columns.iter().map(|_| "---").collect();
    line(out, &rules);
}

fn ownership(out: &mut String, table: &Table, op: Operation) {
    head(
        out,
        &capital(op.text()),
        &["state", "answer", "errno", "the merged kernel, where it differs"],
    );
    for row in OwnershipRow::ALL {
        let Some(cell) = table.ownership(*row, op) else { continue };
        let (answer, errno) = match cell {
            Cell::Next(change) => (change.text().to_owned(), ""),
            Cell::Refuse(reason, errno) => (format!("`{reason}`"), errno.name),
        };
        line(out, &[row.text(), &answer, errno, merged_kernel(*row, op)]);
    }
}

fn lifecycle(out: &mut String, table: &Table, order: Order) {
    head(out, &capital(order.text()), &["state", "answer", "errno"]);
    for row in LifeRow::ALL {
        let Some(cell) = table.lifecycle(*row, order) else { continue };
        let (answer, errno) = match cell {
            Cell::Next(change) => (change.text().to_owned(), ""),
            Cell::Refuse(reason, errno) => (format!("`{reason}`"), errno.name),
        };
        line(out, &[row.text(), &answer, errno]);
    }
}

fn conditions(out: &mut String, table: &Table) {
    out.push_str(
        "\nA group's condition is the worst of its members'. `[condition]` in berthd.toml may have new \
         reservations of degraded devices refused (`DEVICE_DEGRADED`), and those of failed ones \
         admitted.\n\n",
    );
    let names: Vec<String> = Condition::ALL.iter().map(ToString::to_string).collect();
    let mut columns = vec!["operation"];
    columns.extend(names.iter().map(String::as_str));
    line(out, &columns);
    let rules: Vec<&str> = columns.iter().map(|_| "---").collect();
    line(out, &rules);
    for op in ConditionOp::ALL {
        let mut cells = vec![op.text().to_owned()];
        for condition in Condition::ALL {
            cells.push(match table.condition(condition, *op) {
                Some(Cell::Next(())) => "yes".to_owned(),
                Some(Cell::Refuse(reason, errno)) => format!("`{reason}` {errno}"),
                None => String::new(),
            });
        }
        let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
        line(out, &cells);
    }
}

fn reasons(out: &mut String) {
    out.push_str(
        "\n## Reasons\n\nThe errno is that of the reason; a table above may give another for an \
         operation, and `KERNEL_REFUSED` carries the kernel's own.\n\n",
    );
    let columns = ["reason", "errno", "gRPC", "HTTP", "exit", "meaning", "way out"];
    line(out, &columns);
    line(out, &["---"; 7]);
    for reason in Reason::all() {
        let row = reason.row();
        let http = reason.http_status().to_string();
        let exit = reason.exit_code().number().to_string();
        let name = format!("`{}`", row.name);
        line(out, &[&name, row.errno.name, row.grpc.name(), &http, &exit, row.doc, row.way_out]);
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().collect::<String>() + chars.as_str(),
        None => String::new(),
    }
}
