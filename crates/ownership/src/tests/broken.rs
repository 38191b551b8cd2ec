//! Stored parts that break one invariant each: every one is found, and told in its words.

use super::fixture::{
    A, B, ask, attach, device, id, observe, on, order, process, reserve, run_all,
};
use crate::*;

/// Two reservations of one token in one group, both attached; a second domain beside.
fn token() -> Parts {
    let mut state = State::new();
    let second = Reserve { join: Some(id(0)), ..on(1, Policy::Group, B) };
    let first = ask(on(0, Policy::Group, A));
    run_all(&mut state, &[observe("g-2", vec![device(A), device(B)]), first, ask(second)]);
    attach(&mut state, 0);
    attach(&mut state, 1);
    run_all(&mut state, &[Command::CreateDomain { domain: "d-9".into(), context: "c-0".into() }]);
    state.parts()
}

/// Two that share a domain, both attached.
fn shared() -> Parts {
    let mut state = State::new();
    let first = ask(on(0, Policy::Shared, A));
    run_all(&mut state, &[observe("g-2", vec![device(A), device(B)]), first]);
    attach(&mut state, 0);
    let second = Reserve { domain: Some("d-0".into()), ..on(1, Policy::Shared, B) };
    run_all(&mut state, &[ask(second)]);
    attach(&mut state, 1);
    state.parts()
}

/// Two of one token in two groups, handed over to one identity.
fn handed() -> Parts {
    let mut state = State::new();
    let unbound =
        |n, group| Reserve { delivery: Delivery::Unbound, ..reserve(n, Policy::Group, "a", group) };
    let second = Reserve { join: Some(id(0)), ..unbound(1, "g-2") };
    let groups = [observe("g-1", vec![device(A)]), observe("g-2", vec![device(B)])];
    run_all(&mut state, &groups);
    run_all(&mut state, &[ask(unbound(0, "g-1")), ask(second)]);
    for n in [0, 1] {
        let hand_over = Command::HandOver { order: order(n), process: process(7) };
        run_all(&mut state, &[hand_over, Command::HandOverDone { reservation: id(n) }]);
    }
    state.parts()
}

type Break = (&'static str, fn(&mut Parts));

fn assert_found(sound: &Parts, breaks: &[Break]) {
    assert_eq!(State::restore(sound.clone()).expect("sound parts").parts(), *sound);
    for (text, change) in breaks {
        let mut parts = sound.clone();
        change(&mut parts);
        let told = State::restore(parts).expect_err(text);
        assert!(told.contains(text), "{text}: {told}");
    }
}

fn pending(parts: &mut Parts, state: ReservationState) {
    let record = &mut parts.reservations[0];
    (record.state, record.claims) = (state, 0);
    record.pending = Some(Pending {
        kind: OperationKind::Attach,
        domain: None,
        process: None,
        force: false,
        cause: String::new(),
        since_ms: UnixMs(7),
    });
}

/// The second reservation in a context of its own.
fn another_context(parts: &mut Parts) {
    let second = &mut parts.reservations[1];
    (second.context, second.domain) = ("c-1".into(), "d-1".into());
    let mut context = parts.contexts[0].clone();
    (context.id, context.domains) = ("c-1".into(), vec!["d-1".into()]);
    context.reservations = vec![id(1)];
    let mut domain = parts.domains[0].clone();
    (domain.id, domain.context) = ("d-1".into(), "c-1".into());
    parts.contexts.push(context);
    parts.domains.push(domain);
}

#[test]
fn what_a_reservation_says_of_itself_is_checked() {
    assert_found(
        &token(),
        &[
            ("with 2 claims instead of 1", |it| it.reservations[0].claims = 2),
            ("is released while", |it| pending(it, ReservationState::Released)),
            ("is lost while", |it| pending(it, ReservationState::Lost)),
            ("differ in label", |it| it.contexts[0].label = "b".into()),
            ("differ in kind", |it| it.contexts[0].policy = Policy::Shared),
            ("differ in kind", |it| it.contexts[0].backend = Backend::Type1),
            ("uses d-0 of c-7", |it| it.domains[0].context = "c-7".into()),
            ("uses d-0 of c-0", |it| it.domains[0].label = "b".into()),
        ],
    );
}

#[test]
fn what_a_group_has_attached_is_checked() {
    assert_found(
        &token(),
        &[
            ("another domain attached", |it| it.groups[0].attached = None),
            ("d-7 attached, which is not there", |it| {
                it.groups[0].attached = Some("d-7".into());
                if let Ownership::Group { domain, .. } = &mut it.groups[0].ownership {
                    *domain = Some("d-7".into());
                }
            }),
            ("attached beside r-0", |it| {
                let mut domain = it.domains[0].clone();
                (domain.id, domain.context) = ("d-7".into(), "c-7".into());
                it.domains.push(domain);
                it.groups[0].attached = Some("d-7".into());
                if let Ownership::Group { domain, .. } = &mut it.groups[0].ownership {
                    *domain = Some("d-7".into());
                }
            }),
            ("attached and no owner", |it| {
                for record in &mut it.reservations {
                    (record.state, record.claims) = (ReservationState::Reserved, 0);
                }
                it.groups[0].ownership = Ownership::Free;
            }),
        ],
    );
}

#[test]
fn two_owners_of_a_group_are_found() {
    let token = token();
    assert_found(
        &token,
        &[
            ("is held by r-0 and by r-1", another_context),
            ("is held by r-0 and by r-1", |it| it.reservations[1].token = id(1)),
        ],
    );
    assert_found(
        &shared(),
        &[
            ("is held by r-0 and by r-1", another_context),
            ("is held by r-0 and by r-1", |it| {
                it.reservations[1].domain = "d-9".into();
                let mut domain = it.domains[0].clone();
                domain.id = "d-9".into();
                it.domains.push(domain);
            }),
        ],
    );
}

#[test]
fn what_a_context_has_is_checked() {
    assert_found(
        &token(),
        &[
            ("c-0 has d-9, which doesn't say so", |it| it.domains[1].label = "b".into()),
            ("c-0 has d-9, which doesn't say so", |it| it.domains[1].context = "c-7".into()),
        ],
    );
    assert_found(
        &shared(),
        &[("c-0 has 2 domains", |it| {
            let mut domain = it.domains[0].clone();
            domain.id = "d-9".into();
            it.contexts[0].domains.push(domain.id.clone());
            it.domains.push(domain);
        })],
    );
    assert_found(
        &handed(),
        &[
            ("used by two labels or tokens", |it| it.reservations[1].token = id(1)),
            ("handed over to uid:2000 too", |it| {
                it.reservations[1].for_identity = "uid:2000".to_owned();
            }),
        ],
    );
}
