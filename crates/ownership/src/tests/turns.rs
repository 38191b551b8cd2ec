//! Turns of single stories: what is done once, what is left alone, and what begins anew.

use super::fixture::{
    A, B, T0, TTL, ask, at, attach, detach, device, driven, foreign, id, later, now, observe, on,
    order, pair, process, refused, release, release_with, reserve, returned, run, run_all, run_at,
    single,
};
use crate::*;

fn record(state: &State, n: usize) -> Reservation {
    state.reservation(&id(n)).expect("it is on record").clone()
}

fn only_label(state: &State) -> Option<Label> {
    state.device(&A.into()).expect("it is there").only_label.clone()
}

fn attach_to(n: usize, domain: Option<&str>) -> Command {
    Command::Attach { order: order(n), domain: domain.map(Into::into) }
}

fn events(state: &State, cmd: &Command) -> Vec<Event> {
    state.decide(cmd, &now()).expect("it is taken")
}

#[test]
fn a_lost_hold_frees_the_group_and_remembers_who_had_it() {
    for (touched, policy, label) in [
        (false, ResetPolicy::AllowSameLabel, None),
        (true, ResetPolicy::None, None),
        (true, ResetPolicy::AllowSameLabel, Some("a".into())),
    ] {
        let mut state = single();
        let asked = Reserve { reset_policy: policy, ..reserve(0, Policy::Exclusive, "a", "g-1") };
        run_all(&mut state, &[ask(asked)]);
        if touched {
            attach(&mut state, 0);
            detach(&mut state, 0);
        }
        let lost = Command::HoldLost { reservation: id(0), why: "a rival".to_owned() };
        run_all(&mut state, std::slice::from_ref(&lost));
        let found = record(&state, 0);
        assert_eq!((found.state, found.detail.as_str()), (ReservationState::Lost, "a rival"));
        assert!(state.group(&"g-1".into()).expect("it is there").reservations.is_empty());
        assert_eq!(only_label(&state), label, "{touched} {policy:?}");
    }
}

#[test]
fn a_device_that_vanished_comes_back_to_the_label_that_had_it() {
    for touched in [false, true] {
        let mut state = single();
        run_all(&mut state, &[ask(reserve(0, Policy::Exclusive, "a", "g-1"))]);
        if touched {
            attach(&mut state, 0);
        }
        run_all(&mut state, &[Command::DeviceGone { device: A.into() }]);
        assert_eq!(record(&state, 0).state, ReservationState::Lost);
        run_all(&mut state, &[observe("g-1", vec![device(A)])]);
        assert_eq!(only_label(&state), touched.then(|| "a".into()));
    }
}

#[test]
fn what_a_group_is_seen_without_is_gone() {
    let mut state = pair();
    let Command::Observe(facts) = observe("g-2", vec![device(B)]) else { panic!("no facts") };
    let gone = Event::DeviceGone { device: A.into() };
    let seen = Event::GroupObserved { facts };
    assert_eq!(events(&state, &observe("g-2", vec![device(B)])), [gone, seen.clone()]);
    // Also where only the last of it is told.
    state.apply(&seen);
    assert!(state.device(&A.into()).is_none() && state.device(&B.into()).is_some());
    let Command::Observe(facts) = observe("g-3", vec![device(B)]) else { panic!("no facts") };
    state.apply(&Event::GroupObserved { facts });
    assert!(state.group(&"g-2".into()).is_none_or(|group| group.devices.is_empty()));
    assert_eq!(state.device(&B.into()).expect("it moved").group, "g-3".into());
}

/// Handed over to process 7 by a lease.
fn handed() -> State {
    let mut state = single();
    let request = Reserve {
        delivery: Delivery::Unbound,
        ttl_ms: Some(TTL),
        ..reserve(0, Policy::Group, "a", "g-1")
    };
    let hand_over = Command::HandOver { order: order(0), process: process(7) };
    let done = Command::HandOverDone { reservation: id(0) };
    run_all(&mut state, &[ask(request), hand_over, done]);
    state
}

#[test]
fn a_lease_that_ended_stays_ended_and_another_begins_as_the_holder_goes() {
    let gone = Command::HolderGone { reservation: id(0) };
    let mut state = handed();
    let seen = |pid| Command::BindSeen { reservation: id(0), process: Some(process(pid)) };
    let time = at(T0 + 100);
    run_at(&mut state, &gone, &time).expect("it is known");
    let found = record(&state, 0);
    assert_eq!((found.state, found.claims), (ReservationState::Reserved, 0));
    assert_eq!(found.expires, Some(Expiry::after(&time, TTL)));

    let mut state = handed();
    let before = record(&state, 0).expires;
    run_at(&mut state, &Command::Expire { reservation: id(0) }, &later()).expect("it is over");
    assert_eq!(record(&state, 0).state, ReservationState::Expired);
    run_all(&mut state, &[seen(8)]);
    let found = record(&state, 0);
    assert_eq!((found.resume, found.process), (Some(ReservationState::Held), Some(process(7))));
    run_at(&mut state, &gone, &later()).expect("it is known");
    assert_eq!(record(&state, 0).expires, before);
}

#[test]
fn a_holder_that_fetches_again_has_what_it_had() {
    let mut state = handed();
    let seen = Command::BindSeen { reservation: id(0), process: None };
    run_all(&mut state, &[seen]);
    assert_eq!(record(&state, 0).state, ReservationState::Held);
    state.apply(&Event::Handed { reservation: id(0), process: process(8) });
    let found = record(&state, 0);
    assert_eq!((found.state, found.process), (ReservationState::Held, Some(process(8))));
}

#[test]
fn a_restart_says_nothing_of_what_had_nothing() {
    let restart = Command::DetachedByRestart { reservation: id(0), why: "restart".to_owned() };
    let mut state = single();
    run_all(&mut state, &[ask(reserve(0, Policy::Exclusive, "a", "g-1"))]);
    assert_eq!(events(&state, &restart), []);
    // On the same boot a lease goes on, on another it begins anew.
    let mut state = single();
    let request = Reserve { ttl_ms: Some(TTL), ..reserve(0, Policy::Exclusive, "a", "g-1") };
    run_all(&mut state, &[ask(request), attach_to(0, None)]);
    let expires = record(&state, 0).expires;
    let mut same = state.clone();
    run_all(&mut same, &[Command::AttachDone { reservation: id(0) }]);
    run_at(&mut same, &restart, &at(T0 + 100)).expect("it is taken");
    assert_eq!(record(&same, 0).expires, expires);
    let boot = Time { boot_id: "another".into(), ..at(5) };
    run_at(&mut state, &restart, &boot).expect("it is taken");
    let found = record(&state, 0);
    assert_eq!(found.expires, Some(Expiry::after(&boot, TTL)));
    assert_eq!(found.pending, None, "what was under way is no more");
    run_all(&mut state, &[Command::HoldLost { reservation: id(0), why: "a rival".to_owned() }]);
    let third = Time { boot_id: "a third".into(), ..at(5) };
    assert_eq!(state.decide(&restart, &third).expect("it is taken"), []);
}

#[test]
fn outcomes_are_of_what_is_under_way() {
    let no_operation = |state: &State, cmd: &Command| {
        assert_eq!(refused(state, cmd).reason, Reason::NoOperation, "{cmd:?}");
    };
    let mut state = single();
    run_all(&mut state, &[ask(reserve(0, Policy::Exclusive, "a", "g-1"))]);
    no_operation(&state, &Command::HandOverUndone { reservation: id(0) });
    let dma = DriverDma::None;
    no_operation(&state, &Command::KernelDmaDone { device: A.into(), dma });
    attach(&mut state, 0);
    run_all(&mut state, &[Command::Detach { order: order(0) }]);
    no_operation(&state, &Command::AttachDone { reservation: id(0) });
}

#[test]
fn what_could_not_be_prepared_tells_of_what_was_touched() {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-2", vec![driven(A, "nvme"), driven(B, "e1000e")])]);
    let flags = Flags { take_from_host: true, host_uses_it_anyway: false };
    run_all(&mut state, &[ask(Reserve { flags, prepare: true, ..on(0, Policy::Group, A) })]);
    let back = DeviceReturn {
        device: B.into(),
        reset: ResetOutcome::NotNeeded,
        baseline_restored: true,
        note: String::new(),
    };
    let why = "EBUSY".to_owned();
    let failed = Command::PrepareFailed { reservation: id(0), why, returned: vec![back] };
    let events = run(&mut state, &failed).expect("it is under way");
    let [Event::Released { devices, .. }, ..] = &events[..] else { panic!("{events:?}") };
    assert_eq!(devices.iter().map(|left| left.device.as_str()).collect::<Vec<_>>(), [B]);
    assert_eq!(record(&state, 0).state, ReservationState::Released);
}

#[test]
fn devices_taken_beside_ones_own_need_no_reset() {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-2", vec![driven(A, "nvme"), driven(B, "e1000e")])]);
    let flags = Flags { take_from_host: true, host_uses_it_anyway: false };
    run_all(&mut state, &[ask(Reserve { flags, ..on(0, Policy::Group, A) })]);
    if record(&state, 0).pending.is_some() {
        run_all(&mut state, &[Command::PrepareDone { reservation: id(0), hold: Hold::Kernel }]);
    }
    attach(&mut state, 0);
    run_all(&mut state, &[Command::Release { order: order(0), force: false }]);
    let back = |device: &str, reset| DeviceReturn {
        device: device.into(),
        reset,
        baseline_restored: true,
        note: String::new(),
    };
    let outcome = vec![back(A, ResetOutcome::Verified), back(B, ResetOutcome::NotNeeded)];
    let done = Command::ReleaseDone { reservation: id(0), returned: outcome };
    let events = run(&mut state, &done).expect("it is under way");
    let left = events.iter().find_map(|event| match event {
        Event::Released { devices, .. } => Some(devices.clone()),
        _ => None,
    });
    let left = left.expect("it is released");
    assert_eq!(left.iter().map(|left| left.device.as_str()).collect::<Vec<_>>(), [A, B]);
    assert!(left.iter().all(|left| left.quarantined.is_none()), "{left:?}");
}

#[test]
fn who_has_attached_does_not_attach_again_nor_to_another_domain() {
    let mut state = pair();
    let second = Reserve { join: Some(id(0)), ..on(1, Policy::Group, B) };
    run_all(&mut state, &[ask(on(0, Policy::Group, A)), ask(second)]);
    attach(&mut state, 0);
    assert_eq!(refused(&state, &attach_to(0, None)).reason, Reason::AlreadyAttached);
    let create = Command::CreateDomain { domain: "d-9".into(), context: "c-0".into() };
    run_all(&mut state, &[create]);
    assert_eq!(refused(&state, &attach_to(1, Some("d-9"))).reason, Reason::DomainMismatch);
    // Both say which domain they mean before the token has another one.
    let replace = Command::Replace { order: order(0), domain: "d-9".into() };
    run_all(&mut state, &[replace, Command::ReplaceDone { reservation: id(0) }]);
    let found = record(&state, 0);
    assert_eq!((found.domain, found.pending), ("d-9".into(), None));
    assert_eq!(state.group(&"g-2".into()).expect("there").attached, Some("d-9".into()));
}

#[test]
fn who_joins_without_naming_devices_gets_those_that_are_left() {
    let mut state = pair();
    let rest = |n, policy| reserve(n, policy, "a", "g-2");
    run_all(&mut state, &[ask(on(0, Policy::Group, A))]);
    run_all(&mut state, &[ask(Reserve { join: Some(id(0)), ..rest(1, Policy::Group) })]);
    assert_eq!(record(&state, 1).targets[0].devices, [DeviceId::from(B)]);
    let other = Reserve { join: Some(id(0)), ..rest(2, Policy::Shared) };
    assert_eq!(refused(&state, &ask(other.clone())).reason, Reason::InvalidArgument);
    // Of whom it is nothing to know, not even the policy is told.
    let stranger = Reserve { label: "b".into(), ..other };
    assert_eq!(refused(&state, &ask(stranger)).reason, Reason::LabelMismatch);
    let presents =
        Reserve { domain: Some("d-0".into()), label: "b".into(), ..on(2, Policy::Group, B) };
    assert_eq!(refused(&state, &ask(presents)).reason, Reason::LabelMismatch);

    let mut state = pair();
    run_all(&mut state, &[ask(on(0, Policy::Shared, A))]);
    attach(&mut state, 0);
    run_all(&mut state, &[ask(Reserve { domain: Some("d-0".into()), ..rest(1, Policy::Shared) })]);
    assert_eq!(record(&state, 1).targets[0].devices, [DeviceId::from(B)]);
}

#[test]
fn a_request_that_presents_what_its_policy_has_not_is_malformed() {
    let mut state = pair();
    run_all(&mut state, &[ask(on(0, Policy::Shared, A))]);
    let domain = Some(DomainId::from("d-0"));
    for request in [
        Reserve { domain: domain.clone(), ..on(1, Policy::Exclusive, B) },
        Reserve { join: Some(id(0)), ..on(1, Policy::Exclusive, B) },
        Reserve { domain, join: Some(id(0)), ..on(1, Policy::Shared, B) },
    ] {
        let refusal = refused(&state, &ask(request));
        assert_eq!(refusal.reason, Reason::InvalidArgument);
        assert!(refusal.message.contains(" claim "), "{refusal}");
    }
}

#[test]
fn contexts_are_made_once_and_deleted() {
    let mut state = State::new();
    let make = Command::CreateContext {
        context: "c-7".into(),
        label: "a".into(),
        policy: Policy::Group,
        backend: Backend::Iommufd,
    };
    run_all(&mut state, std::slice::from_ref(&make));
    assert!(state.context(&"c-7".into()).is_some());
    assert!(state.decide(&make, &now()).is_err());
    run_all(&mut state, &[Command::DeleteContext { context: "c-7".into() }]);
    assert!(state.context(&"c-7".into()).is_none());
}

#[test]
fn an_order_of_the_present_epoch_is_taken() {
    let mut state = single();
    run_all(&mut state, &[ask(reserve(0, Policy::Exclusive, "a", "g-1"))]);
    let epoch = record(&state, 0).epoch;
    let back = |epoch| Command::Release { order: Order::at(id(0), epoch), force: false };
    assert!(state.decide(&back(epoch), &now()).is_ok());
    assert!(state.decide(&back(Epoch(epoch.0 + 1)), &now()).is_err());
    state.apply(&Event::EpochRaised { floor: Epoch(70) });
    assert_eq!(state.epoch_floor(), Epoch(70));
}

#[test]
fn marks_are_set_and_taken_once() {
    let mut state = single();
    let mark = Command::Quarantine { device: A.into(), why: "broken".to_owned() };
    let clear = Command::ClearQuarantine { device: A.into(), why: "mended".to_owned() };
    assert_eq!(events(&state, &clear), []);
    run_all(&mut state, std::slice::from_ref(&mark));
    assert_eq!(events(&state, &mark), []);
    assert_eq!(events(&state, &clear).len(), 1);
}

#[test]
fn a_lease_is_due_once_it_is_past_and_nothing_is_under_way() {
    let mut state = single();
    let request = Reserve { ttl_ms: Some(TTL), ..reserve(0, Policy::Exclusive, "a", "g-1") };
    run_all(&mut state, &[ask(request)]);
    assert!(!record(&state, 0).is_due(&now()) && record(&state, 0).is_due(&later()));
    run_all(&mut state, &[attach_to(0, None)]);
    assert!(!record(&state, 0).is_due(&later()), "it is being attached");
    let mut released = record(&state, 0);
    (released.state, released.pending) = (ReservationState::Released, None);
    assert!(!released.is_due(&later()));
}

#[test]
fn a_driver_that_is_not_there_is_not_taken_away() {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-2", vec![driven(A, "nvme"), device(B)])]);
    let free = |device: &str| Command::KernelDmaRelease {
        device: device.into(),
        host_uses_it_anyway: false,
    };
    assert_eq!(refused(&state, &free(B)).reason, Reason::NotAttached);
    assert!(state.decide(&free(A), &now()).is_ok());
}

#[test]
fn an_order_passes_over_groups_where_nothing_is_left_to_do() {
    let target = |group: &str, device: &str| TargetRequest {
        group: group.into(),
        devices: vec![device.into()],
    };
    let mut state = State::new();
    let groups = [observe("g-1", vec![device("0000:01:00.0")]), observe("g-2", pair_facts())];
    run_all(&mut state, &groups);
    let targets = vec![target("g-1", "0000:01:00.0"), target("g-2", A)];
    let second = Reserve { join: Some(id(0)), ..on(1, Policy::Group, B) };
    run_all(&mut state, &[ask(Reserve { targets, ..on(0, Policy::Group, A) }), ask(second)]);
    attach(&mut state, 0);
    attach(&mut state, 1);
    // The token's DMA is blocked in one of the two groups already.
    detach(&mut state, 1);
    detach(&mut state, 0);
    let refusal = refused(&state, &Command::Detach { order: order(0) });
    assert_eq!(refusal.reason, Reason::NotAttached);
}

fn pair_facts() -> Vec<DeviceFacts> {
    vec![device(A), device(B)]
}

#[test]
fn a_domain_that_is_attached_is_not_deleted_though_nobody_names_it() {
    let mut state = pair();
    let second = Reserve { join: Some(id(0)), ..on(1, Policy::Group, B) };
    run_all(&mut state, &[ask(on(0, Policy::Group, A)), ask(second)]);
    attach(&mut state, 0);
    attach(&mut state, 1);
    let create = Command::CreateDomain { domain: "d-9".into(), context: "c-0".into() };
    let replace = Command::Replace { order: order(0), domain: "d-9".into() };
    run_all(&mut state, &[create, replace, Command::ReplaceDone { reservation: id(0) }]);
    release(&mut state, 0);
    let delete = Command::DeleteDomain { domain: "d-9".into() };
    assert_eq!(refused(&state, &delete).reason, Reason::DomainInUse);
}

#[test]
fn a_device_goes_back_to_the_host_or_is_quarantined() {
    // Nothing was changed and no reset is asked for: silence is no failure.
    let mut state = single();
    let asked =
        Reserve { reset_policy: ResetPolicy::None, ..reserve(0, Policy::Exclusive, "a", "g-1") };
    run_all(&mut state, &[ask(asked)]);
    attach(&mut state, 0);
    let back = Command::Release { order: order(0), force: false };
    let silence = Command::ReleaseDone { reservation: id(0), returned: Vec::new() };
    run_all(&mut state, &[back.clone(), silence]);
    assert_eq!(state.group(&"g-1".into()).expect("there").condition, Condition::Ok);

    // Taken from a host driver that doesn't come back, and nobody else is there to wait for.
    let mut state = State::new();
    run_all(&mut state, &[observe("g-1", vec![driven(A, "nvme")])]);
    let flags = Flags { take_from_host: true, host_uses_it_anyway: false };
    run_all(&mut state, &[ask(Reserve { flags, ..reserve(0, Policy::Exclusive, "a", "g-1") })]);
    run_all(&mut state, &[Command::PrepareDone { reservation: id(0), hold: Hold::Kernel }]);
    attach(&mut state, 0);
    run_all(&mut state, &[back]);
    let mut outcome = returned(&state, 0, ResetOutcome::Verified);
    outcome.iter_mut().for_each(|outcome| outcome.baseline_restored = false);
    run_all(&mut state, &[Command::ReleaseDone { reservation: id(0), returned: outcome }]);
    assert_eq!(state.group(&"g-1".into()).expect("there").condition, Condition::Quarantined);
}

#[test]
fn what_is_gone_is_not_given_back() {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-2", vec![driven(A, "nvme"), driven(B, "e1000e")])]);
    let flags = Flags { take_from_host: true, host_uses_it_anyway: false };
    run_all(&mut state, &[ask(Reserve { flags, ..reserve(0, Policy::Group, "a", "g-2") })]);
    assert_eq!(record(&state, 0).taken.len(), 2);
    run_all(&mut state, &[Command::DeviceGone { device: B.into() }]);
    assert_eq!(record(&state, 0).taken, [DeviceId::from(A)]);
}

#[test]
fn what_was_not_reset_is_for_its_label_also_in_a_query() {
    let mut state = single();
    run_all(&mut state, &[ask(reserve(0, Policy::Exclusive, "a", "g-1"))]);
    attach(&mut state, 0);
    release_with(&mut state, 0, ResetOutcome::NotPossible);
    let may = |label: &str| state.may_hold(&"g-1".into(), Policy::Exclusive, &label.into());
    assert!(may("a").is_ok() && may("b").is_err());
}

#[test]
fn one_group_that_somebody_took_keeps_all_of_a_reservation_from_attaching() {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-1", vec![device(A)]), observe("g-3", vec![device(B)])]);
    let target = |group: &str| TargetRequest { group: group.into(), devices: Vec::new() };
    let targets = vec![target("g-1"), target("g-3")];
    run_all(&mut state, &[ask(Reserve { targets, ..reserve(0, Policy::Group, "a", "g-1") })]);
    run_all(&mut state, &[foreign("g-3", vec![device(B)], 9)]);
    assert_eq!(refused(&state, &attach_to(0, None)).reason, Reason::ForeignOwner);
}
