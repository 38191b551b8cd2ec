//! Who may do what: by the caller's role, and by whose reservation it is.

use berth_ownership::{Reason, Refusal, Reservation};

use crate::model::{ApiError, Caller, Role};

/// Refuses callers below a role.
pub(super) fn require(caller: &Caller, role: Role, call: &str) -> Result<(), ApiError> {
    if caller.role >= role {
        return Ok(());
    }
    let text = format!(
        "{call} needs role {role}; {} has role {} on this listener",
        caller.identity, caller.role
    );
    let way_out = format!(
        "call by a listener that gives {} the role {role}, or ask an operator",
        caller.identity
    );
    Err(Refusal::new(Reason::PermissionDenied, call, text).with_resolve(vec![way_out]).into())
}

/// Refuses holders that act on somebody else's reservation.
pub(super) fn own(caller: &Caller, record: &Reservation, call: &str) -> Result<(), ApiError> {
    require(caller, Role::Holder, call)?;
    if caller.role >= Role::Orchestrator || is_own(caller, record) {
        return Ok(());
    }
    let text = format!(
        "{call} {}: it is for {}, asked for by {}, and {} has role holder",
        record.id, record.for_identity, record.requester, caller.identity
    );
    Err(ApiError::new(Reason::NotForYou, &record.id, text))
}

/// Refuses those who would end live claims without the holder's consent and may not: operators
/// may, and who asked for the reservation may.
pub(super) fn force(caller: &Caller, record: &Reservation, call: &str) -> Result<(), ApiError> {
    let asked = caller.role >= Role::Orchestrator && record.requester == caller.identity;
    if asked {
        return Ok(());
    }
    require(caller, Role::Operator, call)
}

fn is_own(caller: &Caller, record: &Reservation) -> bool {
    record.for_identity == caller.identity || record.requester == caller.identity
}
