//! SR-IOV: what a change of a physical function's virtual ones meets.

use super::fixture::{
    adopt, ask, attach, device, driven, foreign, id, now, observe, order, refused, release,
    reserve, run, run_all,
};
use crate::*;

const PF: &str = "0000:03:00.0";
const VF1: &str = "0000:03:10.0";
const VF2: &str = "0000:03:10.2";
const OFF: Sriov = Sriov { vfs: 0, autoprobe: true };
const TWO: Sriov = Sriov { vfs: 2, autoprobe: false };

fn vf(id: &str) -> DeviceFacts {
    DeviceFacts { physical_function: Some(PF.into()), ..device(id) }
}

fn set(vfs: u16, from: Sriov) -> Command {
    Command::SriovSet { device: PF.into(), to: SriovTo::Vfs(vfs), from }
}

fn restore(from: Sriov) -> Command {
    Command::SriovSet { device: PF.into(), to: SriovTo::Baseline, from }
}

fn done(now: Sriov, functions: &[&str]) -> Command {
    let functions = functions.iter().map(|id| DeviceId::from(*id)).collect();
    Command::SriovDone { device: PF.into(), now, functions }
}

fn failed(undone: bool) -> Command {
    Command::SriovFailed { device: PF.into(), why: "no".to_owned(), undone, functions: None }
}

fn come() -> [Command; 2] {
    [observe("g-vf1", vec![vf(VF1)]), observe("g-vf2", vec![vf(VF2)])]
}

/// A physical function on its host driver, with two virtual ones that Berth made.
fn with_two() -> State {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-pf", vec![driven(PF, "igb")]), set(2, OFF)]);
    run_all(&mut state, &come());
    run_all(&mut state, &[done(TWO, &[VF1, VF2])]);
    state
}

fn of(state: &State, id: &str) -> Device {
    state.device(&id.into()).unwrap().clone()
}

fn op(events: &[Event]) -> Option<SriovOp> {
    events.iter().find_map(|event| match event {
        Event::SriovStarted { op, .. } => Some(*op),
        _ => None,
    })
}

#[test]
fn host_drivers_are_offered_functions_again_once_none_of_them_is_left() {
    let mut state = with_two();
    let before = of(&state, PF).sriov_baseline.unwrap();
    assert_eq!((before.was, of(&state, PF).sriov_op), (OFF, None));
    let events = run(&mut state, &set(0, TWO)).unwrap();
    assert_eq!(op(&events), Some(SriovOp { from: TWO, to: OFF }));
    run_all(&mut state, &[done(OFF, &[])]);
    assert_eq!(of(&state, PF).sriov_baseline, None, "it is as it was");
    assert!(state.device(&VF1.into()).is_none() && state.group(&"g-vf2".into()).is_none());
    assert_eq!(refused(&state, &restore(OFF)).reason, Reason::NoOperation);
}

#[test]
fn what_there_was_comes_back_whatever_was_set_since() {
    let mut state = State::new();
    let had = Sriov { vfs: 8, autoprobe: true };
    run_all(&mut state, &[observe("g-pf", vec![driven(PF, "igb")]), set(2, had), done(TWO, &[])]);
    run_all(&mut state, &[set(0, TWO), done(Sriov { vfs: 0, autoprobe: true }, &[])]);
    let events = run(&mut state, &restore(OFF)).unwrap();
    assert_eq!(op(&events), Some(SriovOp { from: OFF, to: had }));
    run_all(&mut state, &[done(had, &[])]);
    assert_eq!(of(&state, PF).sriov_baseline, None);
    assert_eq!(run(&mut state, &set(8, had)).unwrap(), [], "so many are there already");
}

#[test]
fn a_change_that_failed_is_as_if_it_had_not_been() {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-pf", vec![driven(PF, "igb")]), set(2, OFF), failed(true)]);
    assert_eq!((of(&state, PF).sriov_op, of(&state, PF).sriov_baseline), (None, None));
    run_all(&mut state, &[set(2, OFF), failed(false)]);
    let before = of(&state, PF).sriov_baseline.unwrap();
    assert_eq!(before.was, OFF, "it isn't as it was: what it was is known still");
    assert_eq!(refused(&state, &failed(true)).reason, Reason::NoOperation);
}

#[test]
fn nobody_may_have_a_function_of_which_another_number_is_asked_for() {
    let mut state = with_two();
    run_all(&mut state, &[ask(reserve(1, Policy::Exclusive, "a", "g-vf2"))]);
    for claims in [0, 1] {
        for command in [set(0, TWO), set(1, TWO), restore(TWO)] {
            let why = refused(&state, &command);
            assert_eq!((why.reason, why.errno), (Reason::GroupOwned, 16), "{why}");
            assert_eq!(why.object, PF);
            assert!(why.message.contains(VF2) && why.message.contains("vm-1"), "{why}");
            assert_eq!(why.blockers[0].device, VF2.into());
            assert_eq!(why.owner.unwrap().claims, claims);
            assert_eq!(why.resolve, ["berth release r-1"]);
        }
        if claims == 0 {
            attach(&mut state, 1);
        }
    }
    release(&mut state, 1);
    run_all(&mut state, &[set(0, TWO)]);
}

#[test]
fn nobody_may_have_the_physical_function() {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-pf", vec![device(PF)])]);
    run_all(&mut state, &[ask(reserve(1, Policy::Exclusive, "a", "g-pf"))]);
    let why = refused(&state, &set(2, OFF));
    assert_eq!((why.reason, why.resolve[0].as_str()), (Reason::GroupOwned, "berth release r-1"));
    release(&mut state, 1);
    run_all(&mut state, &[foreign("g-pf", vec![device(PF)], 77)]);
    let why = refused(&state, &set(2, OFF));
    assert_eq!(why.reason, Reason::ForeignOwner);
    assert!(why.message.contains("qemu (77)"), "{why}");
    assert_eq!(why.blockers[0].processes, ["qemu (77)"]);
}

#[test]
fn foreign_owners_hosts_and_stuck_work_keep_functions_where_they_are() {
    let mut state = with_two();
    run_all(&mut state, &[foreign("g-vf1", vec![vf(VF1)], 77)]);
    let why = refused(&state, &set(0, TWO));
    assert_eq!(why.reason, Reason::ForeignOwner);
    assert!(why.message.contains("qemu (77)") && why.message.contains(VF1), "{why}");
    run_all(&mut state, &[adopt(1, Policy::Exclusive, "a", "g-vf1", 77)]);
    assert_eq!(refused(&state, &set(0, TWO)).reason, Reason::GroupOwned, "it is being adopted");

    let mut state = with_two();
    let uses = vec![HostUse { kind: "route".to_owned(), what: "default".to_owned() }];
    let used = DeviceFacts { physical_function: Some(PF.into()), uses, ..driven(VF1, "igbvf") };
    run_all(&mut state, &[observe("g-vf1", vec![used])]);
    let why = refused(&state, &set(0, TWO));
    assert_eq!(why.reason, Reason::HostUsesDevice);
    assert!(why.message.contains("route default"), "{why}");

    let mut state = with_two();
    run_all(&mut state, &[Command::Wedge { device: VF2.into(), why: "unbind hangs".to_owned() }]);
    assert_eq!(refused(&state, &set(0, TWO)).reason, Reason::Wedged);
}

#[test]
fn while_it_is_being_changed_nothing_else_is_done_there() {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-pf", vec![driven(PF, "igb")]), set(2, OFF)]);
    run_all(&mut state, &come());
    let unbind = Command::KernelDmaRelease { device: PF.into(), host_uses_it_anyway: false };
    let bind = Command::KernelDmaSet { device: VF1.into(), driver: None };
    let of_vf = ask(reserve(1, Policy::Exclusive, "a", "g-vf1"));
    for command in [set(0, OFF), set(3, OFF), unbind, bind, of_vf.clone()] {
        let why = refused(&state, &command);
        assert_eq!(why.reason, Reason::ReservationBusy, "{why}");
        assert!(why.message.contains(PF) && why.message.contains("SR-IOV"), "{why}");
    }
    run_all(&mut state, &[done(TWO, &[VF1, VF2]), of_vf]);
    let kernel = Command::KernelDmaSet { device: VF2.into(), driver: None };
    run_all(&mut state, &[Command::Release { order: order(1), force: false }, kernel]);
    assert_eq!(refused(&state, &set(0, TWO)).reason, Reason::ReservationBusy, "of {VF2}");
    assert!(state.reservation(&id(1)).is_some());
}

#[test]
fn what_was_before_another_boot_is_not_what_was() {
    let mut state = with_two();
    let other = Time { boot_id: "another".into(), ..now() };
    let again = state.decide(&restore(OFF), &other).unwrap_err();
    assert_eq!(again.reason, Reason::NoOperation);
    let had = Sriov { vfs: 3, autoprobe: false };
    let events = state.decide(&set(0, had), &other).unwrap();
    state.apply_all(&events);
    let before = of(&state, PF).sriov_baseline.unwrap();
    assert_eq!((before.was, before.boot_id), (had, "another".into()));
}

#[test]
fn two_functions_go_to_two_holders_of_two_labels() {
    let mut state = with_two();
    let first = ask(reserve(1, Policy::Exclusive, "a", "g-vf1"));
    let second = ask(reserve(2, Policy::Exclusive, "b", "g-vf2"));
    run_all(&mut state, &[first, second]);
    attach(&mut state, 1);
    attach(&mut state, 2);
    for n in [1, 2] {
        assert_eq!(state.reservation(&id(n)).unwrap().claims, 1);
    }
}

#[test]
fn a_driver_under_which_others_have_functions_stays() {
    let mut state = with_two();
    run_all(&mut state, &[ask(reserve(1, Policy::Exclusive, "a", "g-vf2"))]);
    let flags = Flags { take_from_host: true, host_uses_it_anyway: true };
    let take = ask(Reserve { flags, ..reserve(2, Policy::Exclusive, "a", "g-pf") });
    let unbind = Command::KernelDmaRelease { device: PF.into(), host_uses_it_anyway: true };
    for command in [&take, &unbind] {
        let why = refused(&state, command);
        assert_eq!((why.reason, why.errno), (Reason::GroupOwned, 16), "{why}");
        assert!(why.message.contains(VF2) && why.message.contains("vm-1"), "{why}");
        assert_eq!(why.resolve, ["berth release r-1"]);
    }
    release(&mut state, 1);
    run_all(&mut state, &[take]);
}
