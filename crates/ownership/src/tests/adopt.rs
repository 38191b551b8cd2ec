//! Foreign owners become holders, and reservations that adopted theirs end with it.

use super::fixture::{
    adopt, ask, device, foreign, id, observe, order, process, refused, reserve, returned, run,
    run_all,
};
use crate::*;

const A: &str = "0000:65:00.0";
const B: &str = "0000:65:00.1";

fn single(pid: u32) -> State {
    let mut state = State::new();
    run_all(&mut state, &[foreign("g-1", vec![device(A)], pid)]);
    state
}

fn adopted(policy: Policy) -> State {
    let mut state = single(7);
    run_all(&mut state, &[adopt(0, policy, "a", "g-1", 7)]);
    run_all(&mut state, &[Command::HandOverDone { reservation: id(0) }]);
    state
}

fn record(state: &State) -> &Reservation {
    state.reservation(&id(0)).expect("it is on record")
}

fn owner(state: &State) -> &Ownership {
    &state.group(&"g-1".into()).expect("it is there").ownership
}

#[test]
fn a_foreign_owner_becomes_the_holder() {
    for policy in [Policy::Exclusive, Policy::Group] {
        let mut state = single(7);
        run_all(&mut state, &[adopt(0, policy, "a", "g-1", 7)]);
        // Not its holder until the kernel was asked.
        assert!(matches!(owner(&state), Ownership::Foreign { .. }));
        assert_eq!((record(&state).claims, record(&state).adopted), (0, true));
        assert!(record(&state).is_handed_out(), "the daemon keeps out of its groups");
        run_all(&mut state, &[Command::HandOverDone { reservation: id(0) }]);
        let group = state.group(&"g-1".into()).expect("it is there");
        assert!(group.foreign_pids.is_empty() && group.foreign.is_empty() && !group.drift);
        assert_eq!(owner(&state).word(), policy.to_string());
        assert_eq!(record(&state).process, Some(process(7)));
        assert_eq!(record(&state).state, ReservationState::Handed);
        let other = refused(&state, &ask(reserve(1, Policy::Exclusive, "a", "g-1")));
        assert_eq!(other.reason, Reason::GroupOwned);
    }
}

#[test]
fn what_ends_the_claims_begins_the_release() {
    let gone = Command::HolderGone { reservation: id(0) };
    let why = "host rebooted".to_owned();
    for end in [gone.clone(), Command::DetachedByRestart { reservation: id(0), why }] {
        let mut state = adopted(Policy::Exclusive);
        run_all(&mut state, &[end]);
        let pending = record(&state).pending.as_ref().expect("a release is under way");
        assert_eq!((pending.kind, pending.force), (OperationKind::Release, false));
        let done = returned(&state, 0, ResetOutcome::Verified);
        run_all(&mut state, &[Command::ReleaseDone { reservation: id(0), returned: done }]);
        assert_eq!(record(&state).state, ReservationState::Released);
        assert_eq!(owner(&state), &Ownership::Free);
    }
    // Under way already: it isn't begun twice.
    let mut state = adopted(Policy::Exclusive);
    let release = Command::Release { order: order(0), force: true };
    run_all(&mut state, &[release]);
    let events = run(&mut state, &gone).expect("a fact");
    assert_eq!(events.len(), 1, "{events:?}");
    // Any other holder leaves a hold.
    let mut state = State::new();
    let request = Reserve { delivery: Delivery::Node, ..reserve(0, Policy::Exclusive, "a", "g-1") };
    let handed = Command::HandOver { order: order(0), process: process(7) };
    run_all(&mut state, &[observe("g-1", vec![device(A)]), ask(request), handed]);
    run_all(&mut state, &[Command::HandOverDone { reservation: id(0) }, gone]);
    assert_eq!(record(&state).pending, None);
}

#[test]
fn who_is_not_the_owner_alone_is_not_adopted() {
    let state = single(7);
    let wrong = refused(&state, &adopt(0, Policy::Exclusive, "a", "g-1", 8));
    assert_eq!(wrong.reason, Reason::ForeignOwner);
    assert!(wrong.message.contains("qemu (7) owns it"), "{wrong}");
    assert_eq!(wrong.resolve[1], "berth adopt --group g-1 --pid 7 --holder NAME");
    let mut state = State::new();
    run_all(&mut state, &[observe("g-1", vec![device(A)])]);
    let nobody = refused(&state, &adopt(0, Policy::Exclusive, "a", "g-1", 7));
    assert_eq!(nobody.reason, Reason::NotTheOwner);
    let two = GroupFacts {
        id: "g-1".into(),
        devices: vec![device(A)],
        foreign_pids: vec![7, 9],
        foreign: Vec::new(),
    };
    run_all(&mut state, &[Command::Observe(two)]);
    let both = refused(&state, &adopt(0, Policy::Exclusive, "a", "g-1", 7));
    assert_eq!(both.reason, Reason::ForeignOwner);
    assert_eq!(both.resolve, ["end process 7, process 9"]);
}

#[test]
fn several_groups_are_adopted_all_or_none() {
    let mut state = single(7);
    run_all(&mut state, &[foreign("g-2", vec![device(B)], 9)]);
    let Command::Adopt(mut both) = adopt(0, Policy::Exclusive, "a", "g-1", 7) else {
        unreachable!("it is an adoption")
    };
    both.request.targets.push(TargetRequest { group: "g-2".into(), devices: Vec::new() });
    let both = Command::Adopt(both);
    assert_eq!(refused(&state, &both).reason, Reason::ForeignOwner);
    run_all(&mut state, &[foreign("g-2", vec![device(B)], 7), both]);
    run_all(&mut state, &[Command::HandOverDone { reservation: id(0) }]);
    assert_eq!(record(&state).claims, 2);
}

#[test]
fn an_adoption_that_failed_leaves_nothing() {
    let mut state = single(7);
    run_all(&mut state, &[adopt(0, Policy::Exclusive, "a", "g-1", 7)]);
    let why = "it let go".to_owned();
    run_all(&mut state, &[Command::HandOverFailed { reservation: id(0), why }]);
    assert_eq!(record(&state).state, ReservationState::Released);
    assert_eq!(record(&state).detail, "it let go");
    assert!(matches!(owner(&state), Ownership::Foreign { .. }), "what is true stays");
    assert_eq!(state.contexts().count() + state.domains().count(), 0);
}

#[test]
fn an_exclusive_holder_has_a_group_of_one_device() {
    let mut state = State::new();
    run_all(&mut state, &[foreign("g-1", vec![device(A), device(B)], 7)]);
    let crowded = refused(&state, &adopt(0, Policy::Exclusive, "a", "g-1", 7));
    assert_eq!(crowded.reason, Reason::GroupNotSingleton);
    let way = "berth adopt --group g-1 --pid 7 --holder NAME --policy group";
    assert_eq!(crowded.resolve, [way]);
    run_all(&mut state, &[adopt(0, Policy::Group, "a", "g-1", 7)]);
    let shared = refused(&single(7), &adopt(0, Policy::Shared, "a", "g-1", 7));
    assert_eq!(shared.reason, Reason::InvalidArgument);
}

/// Names are told as they are found, and what is found again is no news.
#[test]
fn a_foreign_owner_is_told_by_name_and_unit() {
    let unit = "machine-qemu.scope".to_owned();
    let mut facts = GroupFacts {
        id: "g-1".into(),
        devices: vec![device(A)],
        foreign_pids: vec![7],
        foreign: vec![ForeignProcess { pid: 7, name: "qemu".to_owned(), unit }],
    };
    let mut state = State::new();
    run_all(&mut state, &[Command::Observe(facts.clone())]);
    assert!(state.is_recorded(&facts));
    let refusal = refused(&state, &ask(reserve(0, Policy::Exclusive, "a", "g-1")));
    assert!(refusal.message.ends_with("qemu (7) in machine-qemu.scope owns it"), "{refusal}");
    assert_eq!(refusal.blockers[0].processes, ["qemu (7) in machine-qemu.scope"]);
    facts.foreign[0].name = "other".to_owned();
    assert!(!state.is_recorded(&facts));
    let mut state = adopted(Policy::Exclusive);
    attach_is_not_ours(&mut state);
}

fn attach_is_not_ours(state: &mut State) {
    let attach = Command::Attach { order: order(0), domain: None };
    assert_eq!(refused(state, &attach).reason, Reason::HolderOwnsDomain);
}
