//! The table beside what `docs/security.md` says of it, and beside its promises; and that no cell of
//! it can be changed without one of them noticing.

use std::{fmt::Write as _, path::Path};

use crate::{Call, Over, Role, Row, Standing, Transport, Verdict, Whose};

const ROLES: [Role; 4] = [Role::Viewer, Role::Holder, Role::Orchestrator, Role::Operator];
const TRANSPORTS: [Transport; 5] =
    [Transport::Unix, Transport::Tcp, Transport::Tls, Transport::Web, Transport::Internal];
const WHOSE: [Whose; 4] = [Whose::All, Whose::Own, Whose::Asked, Whose::Holder];
const OVER: [Over; 5] = [Over::Any, Over::Web, Over::Proven, Over::Unix, Over::Handover];
/// Whether a reservation is for the caller, and whether the caller asked for it.
const STANDINGS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

const BEGIN: &str = "<!-- the table of roles: BERTH_BLESS=1 cargo test -p berth-roles -->\n";
const END: &str = "<!-- end of the table of roles -->";

fn standing((is_for, asked): (bool, bool)) -> Option<Standing> {
    Some(Standing { is_for, asked })
}

fn standard() -> Vec<(Call, Row)> {
    Call::ALL.iter().map(|call| (*call, call.row())).collect()
}

/// About whose reservations a role may, over a transport that proves who calls.
fn about(row: Row, role: Role) -> &'static str {
    let may =
        STANDINGS.map(|each| row.decide(role, Transport::Unix, standing(each)) == Verdict::Allowed);
    match may {
        [false, false, false, false] => "",
        [false, true, false, true] => "asked",
        [false, false, true, true] => "for it",
        [false, true, true, true] => "own",
        [true, true, true, true] => "yes",
        _ => "?",
    }
}

fn over(row: Row) -> &'static str {
    let over = [Transport::Tcp, Transport::Web, Transport::Tls];
    let heard = over.map(|over| row.decide(Role::Operator, over, None) == Verdict::Allowed);
    match (row.over, heard) {
        (Over::Any, [true, false, true]) => "any",
        (Over::Web, [false, true, true]) => "proven, web",
        (Over::Proven, [false, false, true]) => "proven",
        (Over::Unix, [false, false, false]) => "unix",
        (Over::Handover, [false, false, true]) => "hand-over",
        _ => "?",
    }
}

/// What the document has of a row.
fn line(row: Row) -> String {
    let name = row.rpc.map_or_else(String::new, |rpc| format!("`{rpc}`: "));
    let [viewer, holder, orchestrator, operator] = ROLES.map(|role| about(row, role));
    format!(
        "| {name}{} | {viewer} | {holder} | {orchestrator} | {operator} | {} |",
        row.words,
        over(row)
    )
}

fn render(table: &[(Call, Row)]) -> String {
    let mut text = "| call | viewer | holder | orchestrator | operator | over |\n\
                    | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for (_, row) in table {
        let _ = writeln!(text, "{}", line(*row));
    }
    text
}

/// The part of the document that the table makes.
fn documented() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/security.md");
    let page = std::fs::read_to_string(&path).expect("docs/security.md");
    let (before, rest) = page.split_once(BEGIN).expect("the table's beginning");
    let (kept, after) = rest.split_once(END).expect("the table's end");
    if std::env::var_os("BERTH_BLESS").is_none() {
        return kept.to_owned();
    }
    let made = render(&standard());
    std::fs::write(&path, format!("{before}{BEGIN}{made}{END}{after}")).expect("it is written");
    made
}

#[test]
fn docs_security_shows_the_table() {
    assert!(
        documented() == render(&standard()),
        "docs/security.md is not what the code says: BERTH_BLESS=1 cargo test -p berth-roles"
    );
}

/// What the table is meant to say, in other words than its own.
#[test]
fn the_table_keeps_its_promises() {
    for (call, row) in standard() {
        for each in STANDINGS {
            let of = |role, transport| row.decide(role, transport, standing(each));
            let allowed = |role| of(role, Transport::Unix) == Verdict::Allowed;
            if row.whose != Whose::Holder {
                assert!(allowed(Role::Operator), "an operator may {call:?}");
            }
            for pair in ROLES.windows(2) {
                assert!(!allowed(pair[0]) || allowed(pair[1]), "{call:?}: more role, less right");
            }
            let reads = row.least == Role::Viewer;
            assert_eq!(row.over == Over::Any, reads, "{call:?}: TCP without TLS is for reading");
            if !reads {
                assert_ne!(of(Role::Operator, Transport::Tcp), Verdict::Allowed, "{call:?}");
                assert!(!allowed(Role::Viewer), "{call:?}: viewers change nothing");
            }
            if row.over == Over::Handover && !each.0 {
                assert!(ROLES.into_iter().all(|role| !allowed(role)), "{call:?}: not for it");
            }
            for role in ROLES {
                let unix = of(role, Transport::Unix);
                assert_eq!(of(role, Transport::Internal), unix, "{call:?} as {role}");
                if row.over != Over::Unix {
                    assert_eq!(of(role, Transport::Tls), unix, "{call:?} as {role}");
                }
                if row.over == Over::Web {
                    assert_eq!(of(role, Transport::Web), unix, "{call:?} as {role}");
                } else {
                    assert_ne!(of(role, Transport::Web), Verdict::Allowed, "{call:?} as {role}");
                }
            }
        }
    }
}

/// Why somebody may not: the role that would do, the transport, or whose it is.
#[test]
fn a_refusal_says_what_is_wanting() {
    let decide = |call: Call, role, each| call.decide(role, Transport::Unix, standing(each));
    let (others, asked, is_for) = ((false, false), (false, true), (true, false));
    for each in STANDINGS {
        assert_eq!(
            decide(Call::Reserve, Role::Holder, each),
            Verdict::NeedsRole(Role::Orchestrator)
        );
        assert_eq!(
            decide(Call::Cordon, Role::Orchestrator, each),
            Verdict::NeedsRole(Role::Operator)
        );
    }
    assert_eq!(decide(Call::Attach, Role::Holder, others), Verdict::NotYours);
    assert_eq!(decide(Call::Attach, Role::Viewer, is_for), Verdict::NeedsRole(Role::Holder));
    assert_eq!(decide(Call::Attach, Role::Orchestrator, others), Verdict::Allowed);
    assert_eq!(decide(Call::Revoke, Role::Holder, asked), Verdict::NeedsRole(Role::Orchestrator));
    for each in [others, is_for] {
        let verdict = decide(Call::Revoke, Role::Orchestrator, each);
        assert_eq!(verdict, Verdict::NeedsRole(Role::Operator));
    }
    assert_eq!(decide(Call::Revoke, Role::Orchestrator, asked), Verdict::Allowed);
    assert_eq!(decide(Call::Revoke, Role::Operator, others), Verdict::Allowed);
    assert_eq!(decide(Call::Fetch, Role::Operator, asked), Verdict::NotYours);
    let over_tcp = |call: Call, role| call.decide(role, Transport::Tcp, standing(is_for));
    assert_eq!(over_tcp(Call::Attach, Role::Operator), Verdict::NotProven);
    assert_eq!(over_tcp(Call::Attach, Role::Viewer), Verdict::NeedsRole(Role::Holder));
    assert_eq!(over_tcp(Call::ListGroups, Role::Viewer), Verdict::Allowed);
    let web = |call: Call, role| call.decide(role, Transport::Web, standing(others));
    assert_eq!(web(Call::Reserve, Role::Orchestrator), Verdict::Allowed);
    assert_eq!(web(Call::Reserve, Role::Holder), Verdict::NeedsRole(Role::Orchestrator));
    for call in [Call::ListGroups, Call::Revoke, Call::ForceRelease, Call::CreateWebSession] {
        assert_eq!(web(call, Role::Operator), Verdict::NotThisWay, "{call:?}");
    }
    let over_tls = |call: Call| call.decide(Role::Operator, Transport::Tls, None);
    assert_eq!(over_tls(Call::CreateWebSession), Verdict::NotThisWay);
    // Before it is known which reservation it is about.
    let unknown = |role| Call::Revoke.decide(role, Transport::Unix, None);
    assert_eq!(unknown(Role::Orchestrator), Verdict::Allowed);
    assert_eq!(unknown(Role::Holder), Verdict::NeedsRole(Role::Orchestrator));
}

/// Every answer that a row can give.
fn answers(row: Row) -> Vec<Verdict> {
    let mut answers = Vec::new();
    for role in ROLES {
        for transport in TRANSPORTS {
            answers.push(row.decide(role, transport, None));
            answers.extend(STANDINGS.map(|each| row.decide(role, transport, standing(each))));
        }
    }
    answers
}

/// The row with one cell changed, in every way.
fn changed(row: Row) -> Vec<Row> {
    let least = ROLES.into_iter().map(|least| Row { least, ..row });
    let whose = WHOSE.into_iter().map(|whose| Row { whose, ..row });
    let over = OVER.into_iter().map(|over| Row { over, ..row });
    least.chain(whose).chain(over).filter(|other| *other != row).collect()
}

/// Between whom a cell tells apart that the row lets in: nobody, where the least role stands above
/// what the cell makes a condition for those below.
fn says_nothing_else(row: Row, other: Row) -> bool {
    let free = |whose| match whose {
        Whose::All => true,
        Whose::Own => row.least >= Role::Orchestrator,
        Whose::Asked => row.least >= Role::Operator,
        Whose::Holder => false,
    };
    row.least == other.least && row.over == other.over && free(row.whose) && free(other.whose)
}

#[test]
fn no_cell_of_the_table_can_be_changed_unseen() {
    let documented = documented();
    let (mut seen, mut same) = (0, 0);
    for (call, row) in standard() {
        for other in changed(row) {
            if says_nothing_else(row, other) {
                assert_eq!(answers(row), answers(other), "{call:?} as {other:?}");
                same += 1;
            } else {
                let there = documented.lines().any(|kept| kept == line(other));
                assert!(!there, "{call:?} may become {other:?} and nobody notices");
                seen += 1;
            }
        }
    }
    println!("{seen} changed cells are seen, {same} say the same in other words");
    assert_eq!(seen + same, Call::ALL.len() * (3 + 3 + 4), "cells");
    assert!(seen > same * 4, "{seen} seen, {same} the same");
}

#[test]
fn names_of_roles_are_read_and_shown() {
    for (role, name) in ROLES.into_iter().zip(["viewer", "holder", "orchestrator", "operator"]) {
        assert_eq!((role.name(), role.to_string().as_str()), (name, name));
        assert_eq!(Role::by_name(name), Some(role));
    }
    assert_eq!(Role::by_name("root"), None);
}
