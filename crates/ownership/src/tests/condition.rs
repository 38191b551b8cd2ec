//! What the machine shows against devices, and cordons with an end.

use super::fixture::{
    T0, TTL, ask, assess, at, id, later, now, observe, order, refused, reserve, returned, run_all,
};
use crate::*;

const A: &str = "0000:01:00.0";

fn single() -> State {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-1", vec![DeviceFacts::new(A)])]);
    state
}

fn request() -> Command {
    ask(reserve(0, Policy::Exclusive, "a", "g-1"))
}

fn condition(state: &State) -> Condition {
    state.group(&"g-1".into()).unwrap().condition
}

fn cordon(ttl_ms: Option<u64>) -> Command {
    Command::Cordon { device: A.into(), why: "firmware".to_owned(), ttl_ms }
}

fn end(state: &State, time: &Time) -> Vec<Event> {
    state.decide(&Command::EndCordon { device: A.into() }, time).unwrap()
}

#[test]
fn a_device_fails_and_comes_back_by_what_it_shows() {
    let mut state = single();
    run_all(&mut state, &[assess(A, &[CauseCode::LinkWidth])]);
    assert_eq!(condition(&state), Condition::Degraded);
    assert!(state.decide(&request(), &now()).is_ok(), "nothing is refused by itself");
    run_all(&mut state, &[assess(A, &[CauseCode::ConfigGone, CauseCode::LinkWidth])]);
    assert_eq!(condition(&state), Condition::Failed);
    let refusal = refused(&state, &request());
    assert_eq!(refusal.reason, Reason::DeviceFailed);
    assert_eq!(refusal.blockers[0].device, A.into());
    for part in [A, "CONFIG_GONE 3", "LINK_WIDTH 3"] {
        assert!(refusal.message.contains(part), "{part}: {refusal}");
    }
    assert!(refusal.resolve.iter().any(|way| way.contains("reseat")), "{:?}", refusal.resolve);
    run_all(&mut state, &[assess(A, &[CauseCode::LinkWidth])]);
    assert_eq!(condition(&state), Condition::Degraded);
    run_all(&mut state, &[assess(A, &[])]);
    assert_eq!(condition(&state), Condition::Ok);
    let same = state.decide(&assess(A, &[]), &now()).unwrap();
    assert!(same.is_empty(), "what is known is no event: {same:?}");
}

#[test]
fn what_runs_is_not_touched() {
    let mut state = single();
    run_all(&mut state, &[request(), assess(A, &[CauseCode::AerFatal])]);
    let attach = Command::Attach { order: order(0), domain: None };
    let done = Command::AttachDone { reservation: id(0) };
    run_all(&mut state, &[attach, done]);
    assert_eq!(state.reservation(&id(0)).map(|record| record.claims), Some(1));
}

#[test]
fn the_site_says_what_is_refused() {
    for (refuse_degraded, refuse_failed) in
        [(false, false), (false, true), (true, false), (true, true)]
    {
        let table = Table::standard().with_conditions(refuse_degraded, refuse_failed);
        let mut state = State::with_table(table);
        run_all(&mut state, &[observe("g-1", vec![DeviceFacts::new(A)])]);
        for (code, refuse, reason) in [
            (CauseCode::AerNonfatal, refuse_degraded, Reason::DeviceDegraded),
            (CauseCode::AerFatal, refuse_failed, Reason::DeviceFailed),
        ] {
            run_all(&mut state, &[assess(A, &[code])]);
            let refused = state.decide(&request(), &now()).err().map(|refusal| refusal.reason);
            assert_eq!(refused, refuse.then_some(reason), "{code}");
        }
    }
}

#[test]
fn what_comes_back_is_looked_at_anew_and_a_cordon_stays() {
    let mut state = single();
    let gone = Command::DeviceGone { device: A.into() };
    let back = observe("g-1", vec![DeviceFacts::new(A)]);
    run_all(&mut state, &[assess(A, &[CauseCode::ConfigGone]), gone.clone(), back.clone()]);
    assert_eq!(condition(&state), Condition::Ok);
    run_all(&mut state, &[cordon(Some(TTL)), gone]);
    let absent: Vec<&DeviceId> = state.absent().map(|device| &device.facts.id).collect();
    assert_eq!(absent, [&DeviceId::from(A)], "the cordon is remembered while it is gone");
    assert_eq!(state.due_cordons(&later()), [A.into()]);
    run_all(&mut state, &[back]);
    assert_eq!((condition(&state), state.absent().count()), (Condition::Cordoned, 0));
    assert_eq!(state.due_cordons(&later()), [A.into()]);
}

#[test]
fn resets_that_failed_are_counted_until_one_works() {
    let mut state = single();
    let failed = |state: &State| state.device(&A.into()).map(|device| device.failed_resets);
    for (outcome, count) in [
        (ResetOutcome::Failed, 1),
        (ResetOutcome::Failed, 2),
        (ResetOutcome::NotPossible, 2),
        (ResetOutcome::Verified, 0),
    ] {
        let release = Command::Release { order: order(0), force: false };
        let clear = Command::ClearQuarantine { device: A.into(), why: "looked at".to_owned() };
        let attach = Command::Attach { order: order(0), domain: None };
        let attached = Command::AttachDone { reservation: id(0) };
        run_all(&mut state, &[request(), attach, attached, release]);
        let devices = returned(&state, 0, outcome);
        let done = Command::ReleaseDone { reservation: id(0), returned: devices };
        run_all(&mut state, &[done, Command::Forget { reservation: id(0) }, clear]);
        assert_eq!(failed(&state), Some(count), "{outcome:?}");
    }
}

#[test]
fn a_cordon_ends_by_itself() {
    let mut state = single();
    run_all(&mut state, &[cordon(Some(TTL))]);
    assert_eq!(refused(&state, &request()).reason, Reason::Cordoned);
    let before = at(T0 + TTL - 1);
    assert!(state.due_cordons(&before).is_empty() && end(&state, &before).is_empty());
    assert_eq!(state.due_cordons(&later()), [A.into()]);
    for event in end(&state, &later()) {
        state.apply(&event);
    }
    assert_eq!(condition(&state), Condition::Ok);
    assert!(end(&state, &later()).is_empty() && state.due_cordons(&later()).is_empty());
}

#[test]
fn the_wall_clock_ends_no_cordon() {
    let mut state = single();
    run_all(&mut state, &[cordon(Some(TTL))]);
    let jumped = Time { unix_ms: UnixMs(u64::MAX), ..at(T0 + 1) };
    assert!(end(&state, &jumped).is_empty());
    let back = Time { unix_ms: UnixMs(0), ..later() };
    assert_eq!(end(&state, &back).len(), 1);
}

#[test]
fn on_another_boot_a_cordon_begins_anew() {
    let mut state = single();
    run_all(&mut state, &[cordon(Some(TTL))]);
    let boot = |boot_ms| Time { boot_id: "next".into(), ..at(boot_ms) };
    assert_eq!(state.due_cordons(&boot(1)), [A.into()]);
    for event in end(&state, &boot(1)) {
        state.apply(&event);
    }
    assert_eq!(condition(&state), Condition::Cordoned);
    assert!(state.due_cordons(&boot(TTL)).is_empty());
    assert_eq!(state.due_cordons(&boot(TTL + 1)), [A.into()]);
}

#[test]
fn the_last_cordon_counts() {
    let mut state = single();
    run_all(&mut state, &[cordon(Some(TTL)), cordon(None)]);
    assert!(state.due_cordons(&later()).is_empty());
    assert!(state.decide(&cordon(None), &now()).unwrap().is_empty());
    run_all(&mut state, &[cordon(Some(TTL)), Command::Uncordon { device: A.into() }]);
    assert!(state.due_cordons(&later()).is_empty());
    assert_eq!(condition(&state), Condition::Ok);
}
