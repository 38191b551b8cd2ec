//! What the walks through the table of roles share.
#![allow(dead_code, reason = "each test binary uses a part")]

use berth_proto::v1;
use berthd::model::{Call, Caller, Role, Standing, Transport, Verdict};

use crate::front_support::Running;

pub(crate) const ROLES: [Role; 4] =
    [Role::Viewer, Role::Holder, Role::Orchestrator, Role::Operator];

/// The ways to stand to a reservation: it is for the caller, the caller asked for it, neither.
pub(crate) const STANDINGS: [Standing; 3] = [
    Standing { is_for: true, asked: false },
    Standing { is_for: false, asked: true },
    Standing { is_for: false, asked: false },
];

/// Who runs the tests, and so calls.
pub(crate) fn me() -> u32 {
    rustix::process::getuid().as_raw()
}

/// Somebody else.
pub(crate) fn other() -> u32 {
    me() + 4711
}

/// A reservation of group 2 to which the caller stands so, on the terms that are given.
pub(crate) async fn reservation(
    running: &Running,
    standing: Standing,
    terms: v1::ReserveRequest,
) -> String {
    let of = |own: bool| if own { me() } else { other() };
    let request = v1::ReserveRequest {
        holder: "vm".to_owned(),
        groups: vec!["2".to_owned()],
        policy: v1::Policy::Exclusive.into(),
        for_identity: format!("uid:{}", of(standing.is_for)),
        // Not the identity: what can't be reset stays with its label.
        label: "one".to_owned(),
        ..terms
    };
    let caller = Caller::unix(of(standing.asked), None, Role::Operator);
    running.daemon.service().reserve(&caller, request).await.expect("the group is free").id
}

/// Ends a reservation, where the call under test didn't.
pub(crate) async fn end(running: &Running, id: String) {
    let operator = Caller::unix(0, None, Role::Operator);
    let end = v1::ReleaseRequest { id, force: true, ..Default::default() };
    // What is gone already is what is wanted.
    let _ = running.daemon.service().release(&operator, end).await;
}

/// The reason that a call is refused with for want of rights; `None` where it is allowed.
pub(crate) fn expected(
    call: Call,
    role: Role,
    transport: Transport,
    standing: Standing,
) -> Option<String> {
    match call.decide(role, transport, Some(standing)) {
        Verdict::Allowed => None,
        Verdict::NotYours => Some("NOT_FOR_YOU".to_owned()),
        Verdict::NeedsRole(_) | Verdict::NotProven | Verdict::NotThisWay => {
            Some("PERMISSION_DENIED".to_owned())
        }
    }
}

/// A reason, where it is one for want of rights: any other answer is not about who asks.
pub(crate) fn for_want_of_rights(reason: &str) -> Option<String> {
    matches!(reason, "PERMISSION_DENIED" | "NOT_FOR_YOU").then(|| reason.to_owned())
}
