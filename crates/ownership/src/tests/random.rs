//! Random walks through large worlds.

use proptest::prelude::*;

use super::fixture::{T0, ask, at, device, driven, id, observe, order, process, reserve, returned};
use crate::*;

const GROUPS: usize = 12;
const OWNERS: usize = 16;

fn large() -> State {
    let mut state = State::new();
    for group in 0..GROUPS {
        let mut devices: Vec<DeviceFacts> =
            (0..=group % 4).map(|n| device(&format!("0000:{group:02x}:00.{n}"))).collect();
        if group % 5 == 4 {
            devices.push(driven(&format!("0000:{group:02x}:1f.0"), "ahci"));
        }
        if group % 3 == 2 {
            let dma = DriverDma::Managed("pcieport".to_owned());
            let bridge =
                DeviceFacts { bridge: true, dma, ..device(&format!("0000:{group:02x}:02.0")) };
            devices.push(bridge);
        }
        let cmd = observe(&format!("g-{group}"), devices);
        let events = state.decide(&cmd, &at(T0)).expect("facts are taken");
        state.apply_all(&events);
    }
    state
}

/// One step of a walk: numbers that pick a command.
type Step = (u8, usize, usize, usize, u8);

fn command(state: &State, (verb, n, group, other, bits): Step) -> Command {
    let reservation = id(n);
    let pending = state.reservation(&reservation).and_then(|record| record.pending.as_ref());
    let why = "random".to_owned();
    if verb < 10 {
        let policy = Policy::ALL[usize::from(bits) % 3];
        let mut request = reserve(n, policy, ["a", "a", "b"][n % 3], &format!("g-{group}"));
        request.delivery = Delivery::ALL[usize::from(bits / 3) % 4];
        request.backend = if bits & 64 == 0 { Backend::Iommufd } else { Backend::Type1 };
        request.join = (bits & 32 != 0).then(|| id(other));
        request.ttl_ms = (bits & 16 != 0).then_some(100);
        request.flags.take_from_host = bits & 128 != 0;
        if bits & 8 != 0 && other % GROUPS != group {
            let group = format!("g-{}", other % GROUPS).into();
            request.targets.push(TargetRequest { group, devices: Vec::new() });
        }
        return ask(request);
    }
    if let (10..26, Some(pending)) = (verb, pending) {
        return match (pending.kind, bits & 1 == 0) {
            (OperationKind::Prepare, true) => {
                Command::PrepareDone { reservation, hold: Hold::Kernel }
            }
            (OperationKind::Prepare, false) => {
                Command::PrepareFailed { reservation, why, returned: Vec::new() }
            }
            (OperationKind::Attach, true) => Command::AttachDone { reservation },
            (OperationKind::Attach, false) => Command::AttachFailed { reservation, why },
            (OperationKind::Detach, true) => Command::DetachDone { reservation },
            (OperationKind::Detach, false) => Command::DetachFailed { reservation, why },
            (OperationKind::Replace, true) => Command::ReplaceDone { reservation },
            (OperationKind::Replace, false) => Command::ReplaceFailed { reservation, why },
            (OperationKind::HandOver, true) => Command::HandOverDone { reservation },
            (OperationKind::HandOver, false) => Command::HandOverFailed { reservation, why },
            (OperationKind::Release, _) => {
                let reset =
                    [ResetOutcome::Verified, ResetOutcome::NotPossible, ResetOutcome::Failed];
                let returned = returned(state, n, reset[usize::from(bits / 2) % 3]);
                Command::ReleaseDone { reservation, returned }
            }
        };
    }
    let address = || DeviceId::from(format!("0000:{group:02x}:00.0"));
    match verb {
        10..20 => Command::Attach { order: order(n), domain: None },
        20..23 => Command::Detach { order: order(n) },
        23..25 => Command::HandOver { order: order(n), process: process(1) },
        25 => Command::BindSeen { reservation, process: None },
        26..28 => Command::Release { order: order(n), force: bits & 1 == 0 },
        28 => Command::Expire { reservation },
        29 => Command::HolderGone { reservation },
        30 if bits & 1 == 0 => Command::HolderPassed { reservation, process: process(3) },
        30 => Command::HolderMoved { reservation, process: process(2) },
        31 => Command::HoldLost { reservation, why },
        32 => Command::DetachedByRestart { reservation, why },
        33 => Command::Quarantine { device: address(), why },
        34..36 => Command::ClearQuarantine { device: address(), why },
        36 => Command::KernelDmaSet { device: address(), driver: None },
        37 => Command::KernelDmaRelease { device: address(), host_uses_it_anyway: false },
        38 => Command::KernelDmaDone { device: address(), dma: DriverDma::None },
        39 => Command::CreateDomain {
            domain: format!("d-x{}", bits % 4).into(),
            context: format!("c-{n}").into(),
        },
        40 => Command::Replace { order: order(n), domain: format!("d-x{}", bits % 4).into() },
        41 => Command::DeviceGone { device: address() },
        42 => Command::Renew { order: order(n), ttl_ms: Some(100) },
        _ => Command::Forget { reservation },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is asked in whatever order: what must always hold holds, epochs grow, and the
    /// events alone lead to the same state.
    #[test]
    fn large_worlds_stay_sound(
        steps in prop::collection::vec(
            (0_u8..44, 0..OWNERS, 0..GROUPS, 0..OWNERS, any::<u8>()), 1..300)
    ) {
        let mut state = large();
        let mut replayed = state.clone();
        for (tick, step) in steps.into_iter().enumerate() {
            let cmd = command(&state, step);
            let time = at(T0 + 10 * u64::try_from(tick).expect("few steps"));
            let Ok(events) = state.decide(&cmd, &time) else { continue };
            let before = state.clone();
            for event in &events {
                state.apply(event);
                let json = serde_json::to_string(event).expect("events are data");
                replayed.apply(&serde_json::from_str(&json).expect("and back"));
            }
            prop_assert_eq!(invariants::check(&state), Ok(()), "after {:?}", cmd);
            for group in before.groups() {
                let next = state.group(&group.id).map(|group| group.epoch);
                prop_assert!(next >= Some(group.epoch), "epoch of {} by {:?}", group.id, cmd);
            }
        }
        prop_assert_eq!(replayed.parts(), state.parts());
        prop_assert_eq!(State::restore(state.parts()).map(|state| state.parts()), Ok(state.parts()));
    }

    /// Events that were never decided are taken in any state without a panic.
    #[test]
    fn apply_takes_anything(
        steps in prop::collection::vec(
            (0_u8..44, 0..OWNERS, 0..GROUPS, 0..OWNERS, any::<u8>()), 1..200),
        shuffle in any::<u64>()
    ) {
        let mut state = large();
        let mut events = Vec::new();
        for step in steps {
            let cmd = command(&state, step);
            if let Ok(decided) = state.decide(&cmd, &at(T0)) {
                state.apply_all(&decided);
                events.extend(decided);
            }
        }
        let mut stranger = large();
        let len = events.len().max(1);
        for n in 0..events.len() {
            let skip = usize::try_from(shuffle % 97).expect("small");
            stranger.apply(&events[(n * (skip + 1) + skip) % len]);
        }
    }
}

/// A snapshot of a large state is shared, not copied.
#[test]
fn ten_thousand_reservations_are_decided_and_cloned_quickly() {
    let mut state = State::new();
    for n in 0..10_000 {
        let group = format!("g-{n:05}");
        let cmds = [
            observe(&group, vec![device(&format!("{n:04x}:00:00.0"))]),
            ask(reserve(n, Policy::Exclusive, "a", &group)),
        ];
        for cmd in cmds {
            let events = state.decide(&cmd, &at(T0)).expect("every group is free");
            state.apply_all(&events);
        }
    }
    assert_eq!(state.reservations().count(), 10_000);
    let start = std::time::Instant::now();
    let mut snapshots = Vec::new();
    for n in 0..10_000 {
        let events = state
            .decide(&Command::Release { order: order(n), force: false }, &at(T0))
            .expect("a hold can be released");
        state.apply_all(&events);
        snapshots.push(state.clone());
    }
    println!("10,000 releases with a snapshot each: {:?}", start.elapsed());
    assert_eq!(snapshots[0].groups().filter(|group| !group.reservations.is_empty()).count(), 9_999);
    assert!(invariants::check(&state).is_ok());
}
