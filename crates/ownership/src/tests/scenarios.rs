//! One story a test: what a person would try, and what the answer says.

use super::fixture::{
    T0, TTL, ask, at, attach, detach, device, driven, foreign, id, later, observe, order, process,
    refused, release_with, reserve, returned, run, run_all, run_at,
};
use crate::*;

const A: &str = "0000:65:00.0";
const B: &str = "0000:65:00.1";

fn pair() -> State {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-2", vec![device(A), device(B)])]);
    state
}

fn on(n: usize, policy: Policy, address: &str) -> Reserve {
    let devices = vec![DeviceId::from(address)];
    Reserve {
        targets: vec![TargetRequest { group: "g-2".into(), devices }],
        ..reserve(n, policy, "a", "g-2")
    }
}

fn single() -> State {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-1", vec![device(A)])]);
    state
}

fn state_of(state: &State, n: usize) -> ReservationState {
    state.reservation(&id(n)).expect("it is on record").state
}

fn condition_of(state: &State, group: &str) -> Condition {
    state.group(&group.into()).expect("it is on record").condition
}

#[test]
fn exclusive_needs_a_group_of_one_and_bridges_count() {
    let state = pair();
    let refusal = refused(&state, &ask(on(0, Policy::Exclusive, A)));
    assert_eq!((refusal.reason, refusal.errno), (Reason::GroupNotSingleton, 22));
    assert_eq!(refusal.resolve, ["berth reserve --holder NAME --group g-2 --policy group"]);

    let mut state = State::new();
    let dma = DriverDma::Managed("pcieport".to_owned());
    let bridge = DeviceFacts { bridge: true, dma, ..device(B) };
    run_all(&mut state, &[observe("g-2", vec![device(A), bridge])]);
    let refusal = refused(&state, &ask(on(0, Policy::Exclusive, A)));
    assert_eq!(refusal.reason, Reason::GroupNotSingleton);
    // A bridge on pcieport blocks nothing else.
    run_all(&mut state, &[ask(reserve(0, Policy::Group, "a", "g-2"))]);
    attach(&mut state, 0);
    assert_eq!(state.owner_cnt(&"g-2".into()), 1);
}

#[test]
fn shared_joins_with_the_same_domain_and_names_the_first_to_others() {
    let mut state = pair();
    run_all(&mut state, &[ask(on(0, Policy::Shared, A))]);
    let early = refused(&state, &ask(on(1, Policy::Shared, B)));
    assert_eq!((early.reason, early.errno), (Reason::DomainMismatch, 22));
    attach(&mut state, 0);
    let other = refused(&state, &ask(on(1, Policy::Shared, B)));
    assert_eq!(other.reason, Reason::DomainMismatch);
    assert!(other.message.contains("d-0") && other.message.contains("vm-0"), "{other}");
    let owner = other.owner.expect("the first is named");
    assert_eq!((owner.reservation, owner.claims), (Some(id(0)), 1));

    let request = Reserve { domain: Some("d-0".into()), ..on(1, Policy::Shared, B) };
    let stranger = Reserve { label: "b".into(), ..request.clone() };
    assert_eq!(refused(&state, &ask(stranger)).reason, Reason::LabelMismatch);
    run_all(&mut state, &[ask(request)]);
    attach(&mut state, 1);
    assert_eq!(state.owner_cnt(&"g-2".into()), 2);

    let replace = Command::Replace { order: order(0), domain: "d-0".into() };
    let refusal = refused(&state, &replace);
    assert_eq!((refusal.reason, refusal.errno), (Reason::ReplaceRefused, 22));
    detach(&mut state, 0);
    assert_eq!(state.owner_cnt(&"g-2".into()), 1);
    detach(&mut state, 1);
    assert_eq!(state.group(&"g-2".into()).map(|g| g.ownership.clone()), Some(Ownership::Free));
}

#[test]
fn a_token_owner_replaces_and_a_failed_replace_leaves_the_old_domain() {
    let mut state = pair();
    run_all(&mut state, &[ask(on(0, Policy::Group, A))]);
    let other = refused(&state, &ask(on(1, Policy::Group, B)));
    assert_eq!((other.reason, other.errno), (Reason::GroupOwned, 16));
    run_all(&mut state, &[ask(Reserve { join: Some(id(0)), ..on(1, Policy::Group, B) })]);
    attach(&mut state, 0);
    attach(&mut state, 1);
    let create = Command::CreateDomain { domain: "d-9".into(), context: "c-0".into() };
    let replace = Command::Replace { order: order(0), domain: "d-9".into() };
    let why = "EINVAL".to_owned();
    run_all(&mut state, &[create, replace.clone()]);
    let attached = |state: &State| match &state.group(&"g-2".into()).expect("there").ownership {
        Ownership::Group { token, claims: 2, domain } if *token == id(0) => domain.clone(),
        other => panic!("{other:?}"),
    };
    let busy = refused(&state, &Command::Detach { order: order(0) });
    assert_eq!(busy.reason, Reason::ReservationBusy);
    assert!(busy.message.contains("replace"), "{busy}");
    run_all(&mut state, &[Command::ReplaceFailed { reservation: id(0), why }]);
    assert_eq!(attached(&state), Some("d-0".into()));
    run_all(&mut state, &[replace, Command::ReplaceDone { reservation: id(0) }]);
    assert_eq!(attached(&state), Some("d-9".into()));
    let delete = Command::DeleteDomain { domain: "d-9".into() };
    assert_eq!(refused(&state, &delete).reason, Reason::DomainInUse);
    // Detached means blocked, for the whole group; the token still owns it.
    detach(&mut state, 1);
    assert_eq!(attached(&state), None);
    let third = refused(&state, &ask(on(2, Policy::Group, B)));
    assert_eq!((third.reason, third.errno), (Reason::GroupOwned, 1));
}

#[test]
fn type1_has_one_domain() {
    let mut state = single();
    let request = Reserve { backend: Backend::Type1, ..reserve(0, Policy::Group, "a", "g-1") };
    run_all(&mut state, &[ask(request.clone())]);
    attach(&mut state, 0);
    let create = Command::CreateDomain { domain: "d-9".into(), context: "c-0".into() };
    assert_eq!(refused(&state, &create).reason, Reason::BackendCannot);
    let replace = Command::Replace { order: order(0), domain: "d-0".into() };
    assert_eq!(refused(&state, &replace).reason, Reason::BackendCannot);
    let unbound = Reserve { id: id(1), delivery: Delivery::Unbound, ..request };
    let refusal = refused(&state, &ask(unbound));
    assert_eq!(refusal.reason, Reason::BackendCannot);
    assert!(refusal.resolve[0].contains("--delivery node"), "{refusal}");
}

#[test]
fn deliveries_are_those_of_the_policy() {
    let state = single();
    for policy in Policy::ALL {
        let granted = Delivery::ALL.map(|delivery| {
            let request = Reserve { delivery, ..reserve(0, policy, "a", "g-1") };
            state.decide(&ask(request), &at(T0)).is_ok()
        });
        let expected = match policy {
            Policy::Exclusive => [true, true, true, true],
            Policy::Shared => [true, true, false, false],
            Policy::Group => [true, false, true, true],
        };
        assert_eq!(granted, expected, "{policy}: held, bound, unbound, node");
    }
}

#[test]
fn host_drivers_block_until_they_are_taken_on_purpose() {
    let mut state = State::new();
    let mut disk = driven(A, "nvme");
    run_all(&mut state, &[observe("g-1", vec![disk.clone()])]);
    let plain = reserve(0, Policy::Exclusive, "a", "g-1");
    let refusal = refused(&state, &ask(plain.clone()));
    assert_eq!((refusal.reason, refusal.errno), (Reason::KernelDma, 1));
    assert_eq!(refusal.blockers[0].driver.as_deref(), Some("nvme"));
    assert_eq!(refusal.resolve[0], format!("berth kernel-dma release {A}"));

    disk.uses = vec![HostUse { kind: "mount".to_owned(), what: "/srv".to_owned() }];
    run_all(&mut state, &[observe("g-1", vec![disk])]);
    let taken = Flags { take_from_host: true, host_uses_it_anyway: false };
    for flags in [Flags::default(), taken] {
        let refusal = refused(&state, &ask(Reserve { flags, ..plain.clone() }));
        assert_eq!(refusal.reason, Reason::HostUsesDevice);
        assert!(refusal.message.contains("/srv"), "{refusal}");
    }
    let release = Command::KernelDmaRelease { device: A.into(), host_uses_it_anyway: false };
    assert_eq!(refused(&state, &release).reason, Reason::HostUsesDevice);

    let flags = Flags { take_from_host: true, host_uses_it_anyway: true };
    run_all(&mut state, &[ask(Reserve { flags, ..plain })]);
    assert_eq!(state_of(&state, 0), ReservationState::Preparing);
    assert_eq!(state.reservation(&id(0)).map(|r| r.taken.clone()), Some(vec![A.into()]));
    run_all(&mut state, &[Command::PrepareDone { reservation: id(0), hold: Hold::Kernel }]);
    attach(&mut state, 0);
}

#[test]
fn an_unknown_driver_and_a_driver_on_a_sibling_count() {
    let mut state = State::new();
    let dma = DriverDma::Assumed("mystery".to_owned());
    run_all(&mut state, &[observe("g-2", vec![device(A), DeviceFacts { dma, ..device(B) }])]);
    let refusal = refused(&state, &ask(on(0, Policy::Group, A)));
    assert_eq!(refusal.reason, Reason::KernelDma);
    assert_eq!(refusal.blockers.len(), 1);
    assert_eq!(refusal.blockers[0].device, B.into());
    assert_eq!(state.owner_cnt(&"g-2".into()), 1);
}

#[test]
fn a_host_driver_being_bound_keeps_reservations_away() {
    let mut state = single();
    run_all(&mut state, &[Command::KernelDmaSet { device: A.into(), driver: None }]);
    let flags = Flags { take_from_host: true, host_uses_it_anyway: true };
    let request = Reserve { flags, ..reserve(0, Policy::Exclusive, "a", "g-1") };
    assert_eq!(refused(&state, &ask(request.clone())).reason, Reason::ReservationBusy);
    let why = "no".to_owned();
    run_all(&mut state, &[Command::KernelDmaFailed { device: A.into(), why }, ask(request)]);
    let set = Command::KernelDmaSet { device: A.into(), driver: None };
    let refusal = refused(&state, &set);
    assert_eq!((refusal.reason, refusal.errno), (Reason::GroupOwned, 16));
}

#[test]
fn foreign_owners_are_named() {
    let mut state = State::new();
    run_all(&mut state, &[foreign("g-1", vec![device(A)], 4321)]);
    let refusal = refused(&state, &ask(reserve(0, Policy::Exclusive, "a", "g-1")));
    assert_eq!(refusal.reason, Reason::ForeignOwner);
    assert!(refusal.message.contains("4321"), "{refusal}");
}

#[test]
fn several_groups_are_granted_all_or_none() {
    let mut state = single();
    run_all(&mut state, &[observe("g-3", vec![driven("0000:03:00.0", "e1000e")])]);
    let mut request = reserve(0, Policy::Exclusive, "a", "g-1");
    request.targets.push(TargetRequest { group: "g-3".into(), devices: Vec::new() });
    assert_eq!(refused(&state, &ask(request.clone())).reason, Reason::KernelDma);
    assert!(state.group(&"g-1".into()).is_some_and(|group| group.reservations.is_empty()));
    request.flags.take_from_host = true;
    run_all(&mut state, &[ask(request)]);
    assert!(state.groups().all(|group| group.reservations == [id(0)]));
}

#[test]
fn epochs_fence_old_orders_and_only_grow() {
    let mut state = single();
    let first = Reserve { ..reserve(0, Policy::Exclusive, "a", "g-1") };
    let mut early = at(T0);
    early.unix_ms = UnixMs(1_000_000);
    run_at(&mut state, &ask(first.clone()), &early).expect("it is free");
    let epoch = state.reservation(&id(0)).expect("there").epoch;
    assert_eq!(epoch, Epoch(1_000_000));
    run_all(&mut state, &[Command::Release { order: order(0), force: false }]);
    run_all(&mut state, &[Command::Forget { reservation: id(0) }]);
    // The clock went back: the epoch does not.
    run(&mut state, &ask(first)).expect("it is free again");
    assert_eq!(state.reservation(&id(0)).map(|r| r.epoch), Some(Epoch(1_000_001)));
    let stale = Command::Attach { order: Order::at(id(0), epoch), domain: None };
    assert_eq!(refused(&state, &stale).reason, Reason::StaleEpoch);
    // Nor where the group is gone and comes back.
    run_all(&mut state, &[Command::GroupGone { group: "g-1".into() }]);
    assert_eq!(state_of(&state, 0), ReservationState::Lost);
    run_all(&mut state, &[observe("g-1", vec![device(A)])]);
    run_all(&mut state, &[ask(reserve(1, Policy::Exclusive, "a", "g-1"))]);
    assert!(state.reservation(&id(1)).is_some_and(|r| r.epoch > Epoch(1_000_001)));
}

#[test]
fn a_lease_lapses_without_claims_and_expires_with_them() {
    let mut state = single();
    let request = Reserve { ttl_ms: Some(TTL), ..reserve(0, Policy::Exclusive, "a", "g-1") };
    let expire = Command::Expire { reservation: id(0) };
    run_all(&mut state, &[ask(request.clone())]);
    assert!(state.due(&at(T0 + TTL - 1)).is_empty());
    assert_eq!(state.due(&later()), [id(0)]);
    run_at(&mut state, &expire, &later()).expect("due");
    assert_eq!(state_of(&state, 0), ReservationState::Released);

    run_all(&mut state, &[Command::Forget { reservation: id(0) }, ask(request)]);
    attach(&mut state, 0);
    run_at(&mut state, &expire, &later()).expect("due");
    assert_eq!(state_of(&state, 0), ReservationState::Expired);
    assert_eq!(state.owner_cnt(&"g-1".into()), 1, "DMA goes on");
    for cmd in [
        Command::Detach { order: order(0) },
        Command::Release { order: order(0), force: false },
        Command::HandOver { order: order(0), process: process(1) },
    ] {
        assert_eq!(refused(&state, &cmd).reason, Reason::LeaseExpired);
    }
    let renew = Command::Renew { order: order(0), ttl_ms: None };
    run_at(&mut state, &renew, &later()).expect("renewing returns it");
    assert_eq!(state_of(&state, 0), ReservationState::Held);
    assert!(state.due(&later()).is_empty());
    let mut rebooted = later();
    rebooted.boot_id = "other".into();
    rebooted.boot_ms = 3;
    let why = "host rebooted".to_owned();
    let restart = Command::DetachedByRestart { reservation: id(0), why };
    run_at(&mut state, &restart, &rebooted).expect("claims end");
    assert_eq!(state_of(&state, 0), ReservationState::Reserved);
    rebooted.boot_ms = 3 + TTL;
    assert_eq!(state.due(&rebooted), [id(0)], "the lease began anew");
}

#[test]
fn what_cannot_be_reset_goes_to_the_same_label_only() {
    let mut state = single();
    run_all(&mut state, &[ask(reserve(0, Policy::Exclusive, "a", "g-1"))]);
    attach(&mut state, 0);
    release_with(&mut state, 0, ResetOutcome::NotPossible);
    let other = refused(&state, &ask(reserve(1, Policy::Exclusive, "b", "g-1")));
    assert_eq!(other.reason, Reason::LabelMismatch);
    run_all(&mut state, &[ask(reserve(2, Policy::Exclusive, "a", "g-1"))]);
    release_with(&mut state, 2, ResetOutcome::NotNeeded);
    assert_eq!(
        refused(&state, &ask(reserve(1, Policy::Exclusive, "b", "g-1"))).reason,
        Reason::LabelMismatch
    );
    // Unplugging it does not help.
    run_all(&mut state, &[Command::GroupGone { group: "g-1".into() }]);
    run_all(&mut state, &[observe("g-1", vec![device(A)])]);
    assert_eq!(
        refused(&state, &ask(reserve(1, Policy::Exclusive, "b", "g-1"))).reason,
        Reason::LabelMismatch
    );
    let why = "wiped by hand".to_owned();
    run_all(&mut state, &[Command::ClearQuarantine { device: A.into(), why }]);
    run_all(&mut state, &[ask(reserve(1, Policy::Exclusive, "b", "g-1"))]);
}

#[test]
fn what_comes_back_unclean_is_quarantined() {
    for (reset, restored, policy) in [
        (ResetOutcome::Failed, true, ResetPolicy::AllowSameLabel),
        (ResetOutcome::NotPossible, true, ResetPolicy::Require),
        (ResetOutcome::NotNeeded, true, ResetPolicy::AllowSameLabel),
        (ResetOutcome::Verified, false, ResetPolicy::AllowSameLabel),
        (ResetOutcome::Verified, false, ResetPolicy::None),
    ] {
        let mut state = single();
        let request = reserve(0, Policy::Exclusive, "a", "g-1");
        run_all(&mut state, &[ask(Reserve { reset_policy: policy, ..request })]);
        attach(&mut state, 0);
        run_all(&mut state, &[Command::Release { order: order(0), force: false }]);
        let mut outcome = returned(&state, 0, reset);
        outcome[0].baseline_restored = restored;
        run_all(&mut state, &[Command::ReleaseDone { reservation: id(0), returned: outcome }]);
        assert_eq!(condition_of(&state, "g-1"), Condition::Quarantined, "{reset:?} {restored}");
        let refusal = refused(&state, &ask(reserve(1, Policy::Exclusive, "a", "g-1")));
        assert_eq!(refusal.reason, Reason::Quarantined);
        assert_eq!(refusal.resolve, [format!("berth quarantine clear {A} --reason TEXT")]);
    }
    // Nobody says how it went: that is a failure.
    let mut state = single();
    run_all(&mut state, &[ask(reserve(0, Policy::Exclusive, "a", "g-1"))]);
    attach(&mut state, 0);
    run_all(&mut state, &[Command::Release { order: order(0), force: false }]);
    run_all(&mut state, &[Command::ReleaseDone { reservation: id(0), returned: Vec::new() }]);
    assert_eq!(condition_of(&state, "g-1"), Condition::Quarantined);
}

#[test]
fn an_unbound_holder_claims_with_the_hand_over() {
    let mut state = single();
    let request = Reserve { delivery: Delivery::Unbound, ..reserve(0, Policy::Group, "a", "g-1") };
    run_all(&mut state, &[ask(request)]);
    let attach = Command::Attach { order: order(0), domain: None };
    assert_eq!(refused(&state, &attach).reason, Reason::HolderOwnsDomain);
    let hand_over = Command::HandOver { order: order(0), process: process(7) };
    run_all(&mut state, std::slice::from_ref(&hand_over));
    assert_eq!(state_of(&state, 0), ReservationState::Reserved, "the groups are let go of first");
    assert_eq!(refused(&state, &hand_over).reason, Reason::ReservationBusy, "two at once");
    run_all(&mut state, &[Command::HandOverDone { reservation: id(0) }]);
    assert_eq!(state_of(&state, 0), ReservationState::Handed);
    assert_eq!(state.reservation(&id(0)).unwrap().process, Some(process(7)));
    assert_eq!(state.owner_cnt(&"g-1".into()), 1);
    let by_now = HolderProcess { name: "qemu".to_owned(), ..process(7) };
    let seen = Command::BindSeen { reservation: id(0), process: Some(by_now) };
    run_all(&mut state, &[hand_over, seen]);
    let recorded = |state: &State| state.reservation(&id(0)).unwrap().process.clone().unwrap();
    assert_eq!(recorded(&state).to_string(), "qemu (7)");
    assert_eq!(state_of(&state, 0), ReservationState::Held);
    let passed = |pid| Command::HolderPassed { reservation: id(0), process: process(pid) };
    run_all(&mut state, &[passed(9)]);
    assert_eq!(
        state_of(&state, 0),
        ReservationState::Held,
        "what came of the holder is the holder"
    );
    assert_eq!(state.reservation(&id(0)).unwrap().process, Some(process(9)));
    let moved = Command::HolderMoved { reservation: id(0), process: process(8) };
    run_all(&mut state, &[moved, passed(10)]);
    assert_eq!(state.reservation(&id(0)).unwrap().process, Some(process(10)));
    assert_eq!(state_of(&state, 0), ReservationState::Draining);
    assert_eq!(state.owner_cnt(&"g-1".into()), 1, "nothing is freed without proof");
    run_all(&mut state, &[Command::HolderGone { reservation: id(0) }]);
    assert_eq!(state_of(&state, 0), ReservationState::Reserved);
    assert_eq!(state.owner_cnt(&"g-1".into()), 0);
}

#[test]
fn handing_over_again_to_the_same_process_changes_nothing() {
    let mut state = single();
    let request =
        Reserve { delivery: Delivery::Bound, ..reserve(0, Policy::Exclusive, "a", "g-1") };
    run_all(&mut state, &[ask(request)]);
    attach(&mut state, 0);
    let to = |pid| Command::HandOver { order: order(0), process: process(pid) };
    let events = |state: &State, pid| state.decide(&to(pid), &at(T0)).expect("attached").len();
    assert_eq!(events(&state, 7), 1);
    run_all(&mut state, &[to(7)]);
    assert_eq!(events(&state, 7), 0);
    assert_eq!(events(&state, 8), 1, "the holder is another one then");
    run_all(&mut state, &[Command::HolderGone { reservation: id(0) }]);
    assert_eq!(refused(&state, &to(7)).reason, Reason::NotAttached, "its claims ended with it");
}

#[test]
fn a_hand_over_that_failed_leaves_the_hold() {
    let mut state = single();
    let request = Reserve { delivery: Delivery::Node, ..reserve(0, Policy::Group, "a", "g-1") };
    run_all(&mut state, &[ask(request)]);
    let hand_over = Command::HandOver { order: order(0), process: process(7) };
    let why = "no access lists".to_owned();
    let failed = Command::HandOverFailed { reservation: id(0), why: why.clone() };
    run_all(&mut state, &[hand_over.clone(), failed]);
    let record = state.reservation(&id(0)).unwrap();
    assert_eq!((record.state, record.claims), (ReservationState::Reserved, 0));
    assert_eq!(record.detail, why);
    assert!(record.pending.is_none() && record.process.is_none());
    run_all(&mut state, &[hand_over, Command::HandOverDone { reservation: id(0) }]);
    run_all(&mut state, &[Command::HandOverUndone { reservation: id(0) }]);
    assert_eq!(state_of(&state, 0), ReservationState::Reserved);
}

#[test]
fn a_context_is_handed_over_to_one_identity() {
    let mut state = pair();
    let unbound =
        |n, device| Reserve { delivery: Delivery::Unbound, ..on(n, Policy::Group, device) };
    run_all(&mut state, &[ask(unbound(0, A))]);
    let stranger =
        Reserve { join: Some(id(0)), for_identity: "uid:2000".to_owned(), ..unbound(1, B) };
    run_all(
        &mut state,
        &[ask(stranger), Command::HandOver { order: order(0), process: process(7) }],
    );
    let second = Command::HandOver { order: order(1), process: process(8) };
    for step in ["under way", "handed", "bound"] {
        let refusal = refused(&state, &second);
        assert_eq!(refusal.reason, Reason::HolderOwnsDomain, "{step}");
        assert_eq!(refusal.resolve[0], "berth release r-0", "{step}");
        match step {
            "under way" => run_all(&mut state, &[Command::HandOverDone { reservation: id(0) }]),
            _ => run_all(&mut state, &[Command::BindSeen { reservation: id(0), process: None }]),
        }
    }
    run_all(&mut state, &[Command::HolderGone { reservation: id(0) }, second]);
}

#[test]
fn a_lost_device_ends_what_rests_on_it_and_no_more() {
    let mut state = pair();
    run_all(&mut state, &[ask(reserve(0, Policy::Group, "a", "g-2"))]);
    attach(&mut state, 0);
    assert_eq!(state.owner_cnt(&"g-2".into()), 2);
    run_all(&mut state, &[Command::DeviceGone { device: B.into() }]);
    assert_eq!((state_of(&state, 0), state.owner_cnt(&"g-2".into())), (ReservationState::Held, 1));
    run_all(&mut state, &[observe("g-2", Vec::new())]);
    assert_eq!((state_of(&state, 0), state.owner_cnt(&"g-2".into())), (ReservationState::Lost, 0));
    let refusal = refused(&state, &Command::Attach { order: order(0), domain: None });
    assert_eq!(refusal.reason, Reason::HoldLost);
    assert_eq!(refusal.resolve, ["berth release r-0"]);
}

#[test]
fn devices_of_the_host_go_back_with_the_last_of_the_token() {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-2", vec![driven(A, "nvme"), driven(B, "e1000e")])]);
    let flags = Flags { take_from_host: true, host_uses_it_anyway: false };
    run_all(&mut state, &[ask(Reserve { flags, ..on(0, Policy::Group, A) })]);
    run_all(&mut state, &[Command::PrepareDone { reservation: id(0), hold: Hold::Kernel }]);
    attach(&mut state, 0);
    run_all(&mut state, &[ask(Reserve { join: Some(id(0)), ..on(1, Policy::Group, B) })]);
    attach(&mut state, 1);
    // While the other holds the group no host driver can be bound.
    run_all(&mut state, &[Command::Release { order: order(0), force: false }]);
    let mut outcome = returned(&state, 0, ResetOutcome::Verified);
    outcome.retain(|outcome| outcome.device == A.into());
    outcome[0].baseline_restored = false;
    run_all(&mut state, &[Command::ReleaseDone { reservation: id(0), returned: outcome }]);
    assert_eq!(condition_of(&state, "g-2"), Condition::Ok);
    let taken = state.reservation(&id(1)).map(|record| record.taken.len());
    assert_eq!(taken, Some(2), "the other gives both back");
}

#[test]
fn cordoned_and_wedged_keep_others_away_but_not_the_release() {
    let mut state = single();
    run_all(&mut state, &[ask(reserve(0, Policy::Exclusive, "a", "g-1"))]);
    let why = "firmware update".to_owned();
    run_all(&mut state, &[Command::Cordon { device: A.into(), why: why.clone(), ttl_ms: None }]);
    attach(&mut state, 0);
    run_all(&mut state, &[Command::Wedge { device: A.into(), why }]);
    assert_eq!(refused(&state, &Command::Detach { order: order(0) }).reason, Reason::Wedged);
    release_with(&mut state, 0, ResetOutcome::Verified);
    let request = ask(reserve(1, Policy::Exclusive, "a", "g-1"));
    assert_eq!(refused(&state, &request).reason, Reason::Wedged);
    run_all(&mut state, &[Command::Unwedge { device: A.into() }]);
    let refusal = refused(&state, &request);
    assert_eq!(refusal.reason, Reason::Cordoned);
    assert!(refusal.message.contains("firmware update"), "{refusal}");
    run_all(&mut state, &[Command::Uncordon { device: A.into() }, request]);
}

#[test]
fn what_may_be_attached_is_told_without_asking_for_it() {
    let mut state = pair();
    let may = |state: &State, policy| state.may_hold(&"g-2".into(), policy, &"a".into());
    assert!(may(&state, Policy::Group).is_ok());
    assert!(may(&state, Policy::Exclusive).is_err_and(|r| r.reason == Reason::GroupNotSingleton));
    run_all(&mut state, &[ask(on(0, Policy::Shared, A))]);
    assert!(may(&state, Policy::Shared).is_err_and(|r| r.reason == Reason::DomainMismatch));
    assert!(may(&state, Policy::Group).is_err_and(|r| r.reason == Reason::GroupOwned));
}
