//! Who may do what: by the table of roles, and by whose reservation it is.

use berth_ownership::{Reason, Refusal, Reservation};

use super::tenant::spans_labels;
use crate::model::{ApiError, Call, Caller, Over, Role, Standing, Transport, Verdict};

/// Refuses callers whom the table doesn't allow a call, be it about their own reservation.
pub(super) fn require(caller: &Caller, call: Call) -> Result<(), ApiError> {
    answer(caller, call, call.decide(caller.role, caller.transport, None), None)?;
    let Some(label) = caller.tenant.as_deref().filter(|_| spans_labels(call)) else {
        return Ok(());
    };
    let words = call.row().words;
    let text = format!(
        "{words} tells of all labels; {} is confined to {label} on this listener",
        caller.identity
    );
    let way_out = "ask somebody whose rule names no label".to_owned();
    let refusal = Refusal::new(Reason::PermissionDenied, words, text);
    Err(refusal.with_resolve(vec![way_out]).into())
}

/// Refuses callers whom the table doesn't allow a call about this reservation.
pub(super) fn about(caller: &Caller, call: Call, record: &Reservation) -> Result<(), ApiError> {
    let standing = Standing {
        is_for: record.for_identity == caller.identity,
        asked: record.requester == caller.identity,
    };
    let verdict = call.decide(caller.role, caller.transport, Some(standing));
    answer(caller, call, verdict, Some(record))
}

fn answer(
    caller: &Caller,
    call: Call,
    verdict: Verdict,
    record: Option<&Reservation>,
) -> Result<(), ApiError> {
    let words = call.row().words;
    Err(match (verdict, record) {
        (Verdict::Allowed, _) => return Ok(()),
        (Verdict::NeedsRole(role), _) => needs(caller, words, role),
        (Verdict::NotYours, Some(record)) => {
            let text = format!(
                "{words} {}: it is for {}, asked for by {}, and {} has role {}",
                record.id, record.for_identity, record.requester, caller.identity, caller.role
            );
            ApiError::new(Reason::NotForYou, &record.id, text)
        }
        (Verdict::NotThisWay, _) => not_this_way(caller, words),
        (Verdict::NotProven | Verdict::NotYours, _) => {
            let text = format!("{words} needs to know who calls, which TCP without TLS can't tell");
            let way_out = "call by a unix socket, or with a client certificate".to_owned();
            let refusal = Refusal::new(Reason::PermissionDenied, words, text);
            refusal.with_resolve(vec![way_out]).into()
        }
    })
}

/// Refuses a browser's session all that isn't for one, before anything is looked for.
pub(crate) fn heard(caller: &Caller, rpc: &str) -> Result<(), ApiError> {
    if caller.transport != Transport::Web {
        return Ok(());
    }
    let row = Call::ALL.iter().map(|call| call.row()).find(|row| row.rpc == Some(rpc));
    match row {
        Some(row) if row.over == Over::Web => Ok(()),
        Some(row) => Err(not_this_way(caller, row.words)),
        None => Err(not_this_way(caller, rpc)),
    }
}

fn not_this_way(caller: &Caller, words: &str) -> ApiError {
    let (text, way_out) = match caller.transport {
        Transport::Web => (
            format!(
                "a browser's session can't {words}: it reserves, renews and releases, cordons and \
                     clears quarantine"
            ),
            "use berth, or the unix socket of REST".to_owned(),
        ),
        Transport::Unix | Transport::Tls | Transport::Tcp | Transport::Internal => (
            format!("{words}: only a unix socket is asked for that"),
            "call by a unix socket of the host itself, e.g. unix:/run/berth/berthd.sock".to_owned(),
        ),
    };
    Refusal::new(Reason::PermissionDenied, words, text).with_resolve(vec![way_out]).into()
}

fn needs(caller: &Caller, words: &str, role: Role) -> ApiError {
    let text = format!(
        "{words} needs role {role}; {} has role {} on this listener",
        caller.identity, caller.role
    );
    let way_out = format!(
        "call by a listener that gives {} the role {role}, or ask an operator",
        caller.identity
    );
    Refusal::new(Reason::PermissionDenied, words, text).with_resolve(vec![way_out]).into()
}
