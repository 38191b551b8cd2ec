//! What can only be reset together, in groups of their own.

use super::fixture::{ask, id, observe, refused, release, reserve, run, run_all};
use crate::*;

const A: &str = "0000:0a:00.0";
const B: &str = "0000:0a:00.1";

/// Two devices on one bus, each in a group of its own; `alone` has a reset that hits it alone.
fn bus(alone: &[&str]) -> State {
    let mut state = State::new();
    for (group, id, peer) in [("g-a", A, B), ("g-b", B, A)] {
        let mut facts = DeviceFacts::new(id);
        facts.reset_peers = vec![peer.into()];
        facts.resets_peers = !alone.contains(&id);
        run_all(&mut state, &[observe(group, vec![facts])]);
    }
    state
}

fn of(n: usize, holder: &str, label: &str, group: &str) -> Reserve {
    Reserve { holder: holder.into(), ..reserve(n, Policy::Exclusive, label, group) }
}

#[test]
fn whoever_comes_second_is_refused_whichever_device_resets_the_other() {
    for alone in [&[][..], &[A], &[B]] {
        for (first, second, device, theirs) in [("g-a", "g-b", B, A), ("g-b", "g-a", A, B)] {
            let mut state = bus(alone);
            run_all(&mut state, &[ask(of(1, "vm-1", "a", first))]);
            for stranger in [of(2, "vm-2", "a", second), of(2, "vm-1", "b", second)] {
                let refusal = refused(&state, &ask(stranger));
                assert_eq!(refusal.reason, Reason::ResetScope, "{alone:?} {first}");
                assert_eq!(refusal.errno, Errno::EBUSY.number);
                assert_eq!(refusal.object, device);
                assert!(refusal.message.contains(theirs), "{}", refusal.message);
                let owner = refusal.owner.expect("an owner");
                assert_eq!(owner.reservation, Some(id(1)));
                assert_eq!(refusal.blockers[0].device, theirs.into());
                assert_eq!(refusal.resolve[0], "berth release r-1");
                assert!(refusal.resolve[1].contains("--holder vm-1 --label a"));
            }
            // The same holder may, and so may anybody once the first is gone.
            run_all(&mut state, &[ask(of(2, "vm-1", "a", second))]);
            release(&mut state, 1);
            release(&mut state, 2);
            run_all(&mut state, &[ask(of(3, "vm-3", "c", second))]);
        }
    }
}

#[test]
fn devices_with_a_reset_of_their_own_bind_nobody() {
    let mut state = bus(&[A, B]);
    run_all(&mut state, &[ask(of(1, "vm-1", "a", "g-a")), ask(of(2, "vm-2", "b", "g-b"))]);
    for n in [1, 2] {
        let record = state.reservation(&id(n)).expect("a reservation");
        assert_eq!(state.reset_hits(&record.targets, record.reset_policy), []);
    }
}

#[test]
fn both_in_one_reservation_hit_nobody_else() {
    let mut state = bus(&[]);
    let group = |group: &str| TargetRequest { group: group.into(), devices: Vec::new() };
    let targets = vec![group("g-a"), group("g-b")];
    run_all(&mut state, &[ask(Reserve { targets, ..of(1, "vm-1", "a", "g-a") })]);
    let record = state.reservation(&id(1)).expect("a reservation");
    assert_eq!(state.reset_hits(&record.targets, record.reset_policy), []);
}

#[test]
fn what_is_hit_is_told_before_anybody_has_it() {
    let state = bus(&[]);
    let events = state.decide(&ask(of(1, "vm-1", "a", "g-a")), &super::fixture::now());
    let events = events.expect("nobody has the other one");
    let Some(Event::Reserved { reservation }) = events.last() else { panic!("{events:?}") };
    let hits = state.reset_hits(&reservation.targets, reservation.reset_policy);
    assert_eq!(hits, [ResetHit { by: A.into(), hits: B.into(), group: "g-b".into() }]);
}

#[test]
fn whose_reset_does_not_matter_reaches_nobody() {
    let careless =
        |n, holder, group| Reserve { reset_policy: ResetPolicy::None, ..of(n, holder, "a", group) };
    let mut state = bus(&[]);
    run_all(&mut state, &[ask(careless(1, "vm-1", "g-a")), ask(careless(2, "vm-2", "g-b"))]);
    let mut state = bus(&[]);
    run_all(&mut state, &[ask(careless(1, "vm-1", "g-a"))]);
    let careful = ask(of(2, "vm-2", "a", "g-b"));
    assert_eq!(
        refused(&state, &careful).reason,
        Reason::ResetScope,
        "its own reset hits the first"
    );
    assert!(run(&mut state, &ask(careless(2, "vm-2", "g-b"))).is_ok());
}
