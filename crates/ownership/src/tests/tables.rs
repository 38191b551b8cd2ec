//! The tables, the reasons and the page that is made of them.

use std::collections::BTreeSet;
use std::path::Path;

use super::fixture::{ask, attach, device, driven, observe, refused, reserve, run_all};
use crate::table::{self, CellRef, ConditionOp};
use crate::*;

#[test]
fn reasons_are_complete_and_named_once() {
    let mut names = BTreeSet::new();
    for reason in Reason::all() {
        let row = reason.row();
        assert!(names.insert(row.name), "{} is named twice", row.name);
        assert!(row.name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
        assert_eq!(Reason::by_name(row.name), Some(*reason));
        assert!(row.errno.number > 0);
        for text in [row.title, row.doc, row.way_out] {
            assert!(!text.is_empty(), "{} lacks words", row.name);
        }
        assert!(!row.title.ends_with('.') && row.doc.ends_with('.') && row.way_out.ends_with('.'));
        let json = serde_json::to_string(reason).expect("a reason is a string");
        assert_eq!(serde_json::from_str::<Reason>(&json).expect("and back"), *reason);
    }
    for name in [
        "GROUP_OWNED",
        "FOREIGN_OWNER",
        "DOMAIN_MISMATCH",
        "GROUP_NOT_SINGLETON",
        "GROUP_NOT_VIABLE",
        "KERNEL_DMA",
        "HOST_USES_DEVICE",
        "LABEL_MISMATCH",
        "RESET_SCOPE",
        "STALE_EPOCH",
        "QUARANTINED",
        "CORDONED",
        "WEDGED",
        "MSI_UNSAFE",
        "FIRMWARE_1TO1",
        "NOT_COHERENT",
        "MEMLOCK_LIMIT",
        "BACKEND_CANNOT",
        "HOLDER_OWNS_DOMAIN",
        "HOLD_LOST",
        "REQUEST_ID_REUSED",
        "EVENTS_COMPACTED",
        "STATE_UNWRITABLE",
    ] {
        assert!(names.contains(name), "{name} is part of the contract");
    }
}

/// What the exit code says and what the gRPC code says is the same thing.
#[test]
fn exit_codes_and_grpc_codes_agree() {
    for reason in Reason::all() {
        let expected = match reason.grpc() {
            GrpcCode::NotFound => ExitCode::NotFound,
            GrpcCode::PermissionDenied | GrpcCode::Unauthenticated => ExitCode::NotPermitted,
            GrpcCode::DeadlineExceeded => ExitCode::TimedOut,
            GrpcCode::Unavailable => ExitCode::Unreachable,
            GrpcCode::InvalidArgument => ExitCode::Usage,
            GrpcCode::AlreadyExists
            | GrpcCode::ResourceExhausted
            | GrpcCode::FailedPrecondition
            | GrpcCode::Aborted
            | GrpcCode::OutOfRange
            | GrpcCode::Unimplemented
            | GrpcCode::Internal => match reason {
                Reason::EventsCompacted
                | Reason::DaemonRestarted
                | Reason::KernelRefused
                | Reason::HelperFailed
                | Reason::Internal => ExitCode::Failed,
                _ => ExitCode::Refused,
            },
        };
        assert_eq!(reason.exit_code(), expected, "{reason}");
    }
}

/// The kernel's EPERM is never the caller's lack of a permission.
#[test]
fn eperm_is_not_permission_denied() {
    for reason in Reason::all().iter().filter(|reason| reason.errno() == Errno::EPERM) {
        assert_ne!(reason.grpc(), GrpcCode::PermissionDenied, "{reason}");
        assert_ne!(reason.http_status(), 403, "{reason}");
    }
}

#[test]
fn a_flipped_cell_is_the_only_one_that_differs() {
    let standard = Table::standard();
    let cells: Vec<CellRef> = standard.cells().collect();
    // Every condition has a cell for each of its orders; of the other tables some are left out.
    let conditions = cells.iter().filter(|cell| matches!(cell, CellRef::Condition(..))).count();
    assert_eq!(conditions, Condition::ALL.len() * ConditionOp::ALL.len());
    for at in &cells {
        let flipped = standard.flipped_at(*at);
        let differs = |cell: &CellRef| match *cell {
            CellRef::Ownership(row, op) => {
                standard.ownership(row, op) != flipped.ownership(row, op)
            }
            CellRef::Lifecycle(row, order) => {
                standard.lifecycle(row, order) != flipped.lifecycle(row, order)
            }
            CellRef::Condition(row, op) => {
                standard.condition(row, op) != flipped.condition(row, op)
            }
        };
        let other: Vec<&CellRef> = cells.iter().filter(|cell| differs(cell)).collect();
        assert_eq!(other, [at]);
    }
}

#[test]
fn a_flipped_cell_changes_what_is_decided() {
    let table = Table::standard().flipped(OwnershipRow::Kernel, Operation::ReserveExclusive);
    let mut state = State::with_table(table);
    run_all(&mut state, &[observe("g-1", vec![driven("0000:01:00.0", "nvme")])]);
    let request = ask(reserve(0, Policy::Exclusive, "a", "g-1"));
    assert!(state.decide(&request, &super::fixture::now()).is_ok());
    let mut state = State::new();
    run_all(&mut state, &[observe("g-1", vec![driven("0000:01:00.0", "nvme")])]);
    assert_eq!(refused(&state, &request).reason, Reason::KernelDma);
}

/// Every refusal has words, an errno and a way out; a flipped or missing cell never shows.
#[test]
fn no_standard_cell_is_an_error_of_ours() {
    let table = Table::standard();
    for cell in table.cells() {
        let reason = match cell {
            CellRef::Ownership(row, op) => match table.ownership(row, op) {
                Some(Cell::Refuse(reason, _)) => reason,
                _ => continue,
            },
            CellRef::Lifecycle(row, order) => match table.lifecycle(row, order) {
                Some(Cell::Refuse(reason, _)) => reason,
                _ => continue,
            },
            CellRef::Condition(row, op) => match table.condition(row, op) {
                Some(Cell::Refuse(reason, _)) => reason,
                _ => continue,
            },
        };
        assert_ne!(reason, Reason::Internal, "{cell:?}");
    }
}

#[test]
fn docs_ownership_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/ownership.md");
    let made = table::render();
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(&path, &made).expect("docs/ownership.md can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "docs/ownership.md is not what the code says: BERTH_BLESS=1 writes it");
}

/// Stored events and parts are read back as they were.
#[test]
fn events_and_parts_survive_json() {
    let mut state = State::new();
    run_all(
        &mut state,
        &[
            observe("g-1", vec![device("0000:01:00.0")]),
            ask(Reserve { ttl_ms: Some(9), ..reserve(0, Policy::Group, "a", "g-1") }),
        ],
    );
    attach(&mut state, 0);
    let json = serde_json::to_string(&state.parts()).expect("parts are data");
    let parts: Parts = serde_json::from_str(&json).expect("and back");
    assert_eq!(parts, state.parts());
    let restored = State::restore(parts).expect("sound parts are taken");
    assert_eq!(restored.parts(), state.parts());

    let cmd = ask(reserve(1, Policy::Shared, "a", "g-1"));
    assert_eq!(
        restored.decide(&cmd, &super::fixture::now()),
        state.decide(&cmd, &super::fixture::now())
    );
    let detach = Command::Detach { order: super::fixture::order(0) };
    for event in state.decide(&detach, &super::fixture::now()).expect("it is attached") {
        let json = serde_json::to_value(&event).expect("events are data");
        assert_eq!(json["type"], event.name());
        assert_eq!(serde_json::from_value::<Event>(json).expect("and back"), event);
    }
}

#[test]
fn broken_parts_are_not_restored() {
    let mut state = State::new();
    run_all(
        &mut state,
        &[
            observe("g-1", vec![device("0000:01:00.0")]),
            ask(reserve(0, Policy::Exclusive, "a", "g-1")),
        ],
    );
    attach(&mut state, 0);
    let mut two = state.parts();
    let mut other = two.reservations[0].clone();
    other.id = "r-9".into();
    two.reservations.push(other);
    assert!(State::restore(two).is_err(), "two owners of one group");
    let mut none = state.parts();
    none.reservations[0].claims = 0;
    assert!(State::restore(none).is_err(), "claims and owner_cnt differ");
    let mut stranger = state.parts();
    stranger.contexts[0].label = "b".into();
    assert!(State::restore(stranger).is_err(), "labels differ in one context");
}
