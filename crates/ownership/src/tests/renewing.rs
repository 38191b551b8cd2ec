//! A lease that goes on, and one that doesn't any more.

use super::fixture::*;
use crate::*;

#[test]
fn what_is_being_given_back_is_not_renewed() {
    for by_its_lease in [true, false] {
        let mut state = State::new();
        let request = Reserve {
            ttl_ms: Some(TTL),
            prepare: true,
            ..reserve(1, Policy::Exclusive, "red", "g-1")
        };
        let done = Command::PrepareDone { reservation: "r-1".into(), hold: Hold::Kernel };
        let renew = Command::Renew { order: Order::new("r-1"), ttl_ms: None };
        let first =
            [observe("g-1", vec![device("0000:00:01.0")]), ask(request), done, renew.clone()];
        for command in first {
            let events = state.decide(&command, &now()).expect("nothing is in the way");
            state.apply_all(&events);
        }
        let ends = if by_its_lease {
            Command::Expire { reservation: "r-1".into() }
        } else {
            Command::Release { order: Order::new("r-1"), force: false }
        };
        let events = state.decide(&ends, &at(T0 + 2 * TTL)).expect("it ends");
        state.apply_all(&events);
        let refusal = state.decide(&renew, &at(T0 + 2 * TTL)).expect_err("it is being released");
        assert_eq!(refusal.reason, Reason::ReservationBusy);
    }
}
