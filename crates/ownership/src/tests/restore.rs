//! What was stored is checked before it counts, whether it is little or much.

use super::fixture::*;
use crate::*;

fn parts(groups: usize) -> Parts {
    let mut state = State::new();
    for n in 0..groups {
        let (group, address) = (format!("g-{n}"), format!("0000:{n:02x}:00.0"));
        let reserve = ask(reserve(n, Policy::Exclusive, "red", &group));
        for cmd in [observe(&group, vec![device(&address)]), reserve] {
            let events = state.decide(&cmd, &now()).expect("every group is free");
            state.apply_all(&events);
        }
    }
    state.parts()
}

fn broken(parts: &Parts, breaks: impl FnOnce(&mut Parts)) -> String {
    let mut parts = parts.clone();
    breaks(&mut parts);
    State::restore(parts).expect_err("broken parts")
}

#[test]
fn a_reference_to_nothing_is_found_in_a_small_and_in_a_large_state() {
    for groups in [1, 3, 63, 64, 200] {
        let parts = parts(groups);
        assert_eq!(State::restore(parts.clone()).expect("sound parts").parts(), parts);
        for (text, wrong) in [
            ("holds g-0, which is not there", broken(&parts, |it| drop(it.groups.remove(0)))),
            ("is in c-0, which is not there", broken(&parts, |it| drop(it.contexts.remove(0)))),
            ("uses d-0, which is not there", broken(&parts, |it| drop(it.domains.remove(0)))),
            (
                "held by r-0, which holds nothing",
                broken(&parts, |it| drop(it.reservations.remove(0))),
            ),
            (
                "is not in its group g-0",
                broken(&parts, |it| {
                    it.groups[0].devices.clear();
                    it.groups[0].reservations.clear();
                    it.reservations.remove(0);
                    it.contexts.remove(0);
                }),
            ),
        ] {
            assert!(wrong.contains(text), "{groups}: {wrong}");
        }
    }
}
