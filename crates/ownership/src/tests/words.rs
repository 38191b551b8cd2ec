//! What people read: names, refusals with who blocks and the way out, what is said of an outcome.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::fixture::{
    A, B, adopt, ask, at, attach, device, driven, foreign, id, later, observe, on, order, pair,
    process, refused, reserve, returned, run, run_all, run_at, single,
};
use crate::*;

fn texts(refusal: &Refusal) -> Vec<(&str, &str)> {
    refusal.blockers.iter().map(|it| (it.device.as_str(), it.text.as_str())).collect()
}

#[test]
fn names_are_shown() {
    assert_eq!(Epoch(5).to_string(), "5");
    assert_eq!(ReservationState::Held.to_string(), "held");
    assert_eq!(Delivery::Unbound.to_string(), "unbound");
    assert_eq!(Backend::Type1.to_string(), "type1");
    let sriov = Sriov { vfs: 2, autoprobe: false };
    assert_eq!(sriov.to_string(), "2 VFs, not offered to host drivers");
    let unseen = name_foreign(&[UNSEEN, 5], &[]);
    assert_eq!(unseen, ["a process that berthd can't see", "process 5"]);
    assert_eq!(GrpcCode::Unauthenticated.number(), 16);
}

#[test]
fn what_is_nothing_is_told_from_what_is_something() {
    let causes = vec![Cause {
        code: CauseCode::LinkWidth,
        what: "x8 of x16".to_owned(),
        since_ms: UnixMs(7),
    }];
    assert!(Health::default().is_empty());
    assert!(!Health { causes, counted: None }.is_empty());
    let hash = |process: &HolderProcess| {
        let mut hasher = DefaultHasher::new();
        process.hash(&mut hasher);
        hasher.finish()
    };
    let named = HolderProcess { name: "qemu".to_owned(), ..process(7) };
    assert_eq!(hash(&process(7)), hash(&named));
    assert_ne!(hash(&process(7)), hash(&process(8)));
    let gone = Event::DeviceGone { device: A.into() };
    let expired = Event::Expired { reservation: id(0) };
    assert_eq!((gone.reservation(), expired.reservation()), (None, Some(&id(0))));
    // What is as usual isn't stored.
    let mut device = single().device(&A.into()).expect("it is there").clone();
    let json = |device: &Device| serde_json::to_value(device).expect("devices are data");
    assert!(json(&device).get("failed_resets").is_none());
    device.failed_resets = 2;
    assert_eq!(json(&device)["failed_resets"], 2);
}

#[test]
fn a_refusal_names_who_blocks_and_the_way_out() {
    let mut state = single();
    run_all(&mut state, &[ask(reserve(0, Policy::Exclusive, "a", "g-1"))]);
    let refusal = refused(&state, &ask(reserve(1, Policy::Exclusive, "a", "g-1")));
    assert_eq!(refusal.resolve, ["berth release r-0"]);
    assert_eq!(texts(&refusal).len(), 1);
    assert!(refusal.blockers[0].text.contains("r-0"), "{refusal:?}");
    assert_eq!((refusal.errno, refusal.owner.expect("it is known").kind), (16, "hold".to_owned()));
    attach(&mut state, 0);
    let refusal = refused(&state, &ask(reserve(1, Policy::Exclusive, "a", "g-1")));
    assert_eq!((refusal.reason, refusal.errno), (Reason::GroupOwned, 1));

    let mut state = pair();
    let refusal = refused(&state, &ask(on(0, Policy::Exclusive, A)));
    assert_eq!(texts(&refusal), [(A, "no driver"), (B, "no driver")]);
    run_all(&mut state, &[ask(on(0, Policy::Shared, A))]);
    attach(&mut state, 0);
    let refusal = refused(&state, &ask(on(1, Policy::Shared, B)));
    assert_eq!(refusal.resolve, ["present d-0 with --domain"]);
    assert_eq!(texts(&refusal).len(), 1);
    assert_eq!(refusal.owner.expect("it is known").kind, "shared");

    // Who has claims comes before who has a hold.
    let mut state = pair();
    let second = Reserve { join: Some(id(0)), ..on(1, Policy::Group, B) };
    run_all(&mut state, &[ask(on(0, Policy::Group, A)), ask(second)]);
    attach(&mut state, 1);
    let refusal = refused(&state, &ask(on(2, Policy::Group, A)));
    assert_eq!(refusal.owner.expect("it is known").reservation, Some(id(1)));
}

#[test]
fn a_refusal_for_what_the_host_does_names_the_use() {
    let uses = vec![HostUse { kind: "mount".to_owned(), what: "/srv".to_owned() }];
    let used = DeviceFacts { uses, ..driven(A, "nvme") };
    let mut state = State::new();
    run_all(&mut state, &[observe("g-2", vec![used, driven(B, "e1000e")])]);
    let flags = Flags { take_from_host: true, host_uses_it_anyway: false };
    let refusal = refused(&state, &ask(Reserve { flags, ..on(0, Policy::Group, B) }));
    assert_eq!(refusal.reason, Reason::HostUsesDevice);
    assert_eq!(texts(&refusal).len(), 1, "{refusal:?}");
    let ways =
        [&format!("end the use of {A}: mount /srv"), "pass --take-from-host --host-uses-it-anyway"];
    assert_eq!(refusal.resolve, ways);

    let mut state = State::new();
    run_all(&mut state, &[foreign("g-1", vec![device(A)], UNSEEN)]);
    let refusal = refused(&state, &ask(reserve(0, Policy::Exclusive, "a", "g-1")));
    assert_eq!(refusal.reason, Reason::ForeignOwner);
    assert!(!refusal.resolve.iter().any(|way| way.contains("adopt")), "{refusal:?}");

    // Only the device that is being worked on keeps others away.
    let mut state = pair();
    let set = Command::KernelDmaSet { device: A.into(), driver: Some("nvme".to_owned()) };
    run_all(&mut state, &[set]);
    let refusal = refused(&state, &ask(on(0, Policy::Group, B)));
    assert_eq!(refusal.reason, Reason::ReservationBusy);
    assert_eq!(refusal.blockers.iter().map(|it| it.device.as_str()).collect::<Vec<_>>(), [A]);

    let mut state = single();
    let cordon = Command::Cordon { device: A.into(), why: "update".to_owned(), ttl_ms: None };
    run_all(&mut state, &[cordon]);
    let refusal = refused(&state, &ask(reserve(0, Policy::Exclusive, "a", "g-1")));
    assert_eq!(refusal.resolve, [format!("berth uncordon {A}")]);
}

#[test]
fn a_refusal_tells_how_far_a_reservation_has_come() {
    let attach_again = Command::Attach { order: order(0), domain: None };
    let mut state = single();
    run_all(&mut state, &[ask(reserve(0, Policy::Exclusive, "a", "g-1"))]);
    run_all(&mut state, &[Command::HoldLost { reservation: id(0), why: "a rival".to_owned() }]);
    let refusal = refused(&state, &attach_again);
    assert!(refusal.message.ends_with("r-0 is lost: a rival"), "{refusal}");

    let mut state = single();
    let request = Reserve { ttl_ms: Some(100), ..reserve(0, Policy::Exclusive, "a", "g-1") };
    run_all(&mut state, &[ask(request)]);
    attach(&mut state, 0);
    run_at(&mut state, &Command::Expire { reservation: id(0) }, &later()).expect("it is over");
    let refusal = refused(&state, &attach_again);
    assert!(refusal.message.ends_with("r-0 is expired"), "{refusal}");
    let ways = ["berth reservation renew r-0", "berth release r-0 --force"];
    assert_eq!(refusal.resolve, ways);

    let mut state = single();
    let request = Reserve { delivery: Delivery::Unbound, ..reserve(0, Policy::Group, "a", "g-1") };
    let hand_over = Command::HandOver { order: order(0), process: process(7) };
    run_all(&mut state, &[ask(request), hand_over]);
    run_all(&mut state, &[Command::HandOverDone { reservation: id(0) }]);
    let moved = |pid| Command::HolderMoved { reservation: id(0), process: process(pid) };
    let detail = |state: &State| state.reservation(&id(0)).expect("recorded").detail.clone();
    let passed = Command::HolderPassed { reservation: id(0), process: process(9) };
    run_all(&mut state, std::slice::from_ref(&passed));
    assert_eq!(detail(&state), "process 9 came of the holder and has the devices open");
    let mut same = state.clone();
    run_all(&mut same, &[moved(9)]);
    assert_eq!(detail(&same), "what process 9 had is still open");
    run_all(&mut state, &[moved(8)]);
    assert_eq!(detail(&state), "process 8 still has the devices open");
    run_all(&mut state, &[passed]);
    assert_eq!(detail(&state), "process 9 still has the devices open");
    let renew = Command::Renew { order: order(0), ttl_ms: None };
    if let Err(refusal) = state.decide(&renew, &at(1)) {
        assert_eq!(refusal.resolve, ["berth release r-0 --force"]);
    }
    let again = Command::HandOver { order: order(0), process: process(7) };
    assert_eq!(refused(&state, &again).resolve, ["berth release r-0 --force"]);
}

#[test]
fn who_cannot_be_adopted_is_told_why() {
    let mut state = single();
    let refusal = refused(&state, &adopt(0, Policy::Exclusive, "a", "g-1", 5));
    assert!(refusal.message.contains("it has nothing of g-1 open, nor has anybody"), "{refusal}");
    run_all(&mut state, &[foreign("g-1", vec![device(A)], 5)]);
    let refusal = refused(&state, &adopt(0, Policy::Exclusive, "a", "g-1", 6));
    assert!(refusal.message.contains("it has nothing of the group open: qemu (5)"), "{refusal}");

    let with = |change: fn(&mut Reserve)| {
        let Command::Adopt(mut asked) = adopt(0, Policy::Exclusive, "a", "g-1", 5) else {
            panic!("no adoption");
        };
        change(&mut asked.request);
        refused(&state, &Command::Adopt(asked)).reason
    };
    assert_eq!(with(|asked| asked.policy = Policy::Shared), Reason::InvalidArgument);
    assert_eq!(with(|asked| asked.delivery = Delivery::Held), Reason::InvalidArgument);
    let token = |asked: &mut Reserve| {
        asked.policy = Policy::Group;
        asked.join = Some(id(1));
    };
    assert_eq!(with(token), Reason::InvalidArgument);
    assert_eq!(with(|asked| asked.domain = Some("d-1".into())), Reason::InvalidArgument);
    assert_eq!(with(|asked| asked.flags.take_from_host = true), Reason::InvalidArgument);
}

/// What the release says of the device.
fn given_back(change: fn(&mut DeviceReturn), reset: ResetOutcome) -> DeviceLeft {
    let mut state = single();
    run_all(&mut state, &[ask(reserve(0, Policy::Exclusive, "a", "g-1"))]);
    attach(&mut state, 0);
    run_all(&mut state, &[Command::Release { order: order(0), force: false }]);
    let mut outcome = returned(&state, 0, reset);
    outcome.iter_mut().for_each(change);
    let done = Command::ReleaseDone { reservation: id(0), returned: outcome };
    let events = run(&mut state, &done).expect("it is under way");
    let left = events.iter().find_map(|event| match event {
        Event::Released { devices, .. } => devices.first().cloned(),
        _ => None,
    });
    left.expect("one device is given back")
}

#[test]
fn what_came_of_a_reset_is_told_with_the_kernels_words() {
    let quiet = |_: &mut DeviceReturn| {};
    let words = |device: &mut DeviceReturn| device.note = "flr timed out".to_owned();
    assert_eq!(given_back(quiet, ResetOutcome::Verified).note, "reset verified");
    let left = given_back(words, ResetOutcome::Failed);
    assert_eq!(left.note, "reset failed: flr timed out");
    assert_eq!(left.quarantined.as_deref(), Some("its reset failed: flr timed out"));
}
