//! Request ids and fresh ids.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use prost::Message;
use sha2::{Digest as _, Sha256};

use super::parse;
use crate::model::{AnswerOf, ApiError, Caller, Meta, RequestId, Transport};

/// What goes into the events of a call, and under which request id its answer is kept. `body` is
/// the request without its request id and without how long it waits.
pub(super) fn meta(
    caller: &Caller,
    call: &str,
    request_id: &str,
    body: &impl Message,
    answer: AnswerOf,
) -> Result<Meta, ApiError> {
    parse::request_id(request_id)?;
    let request_id = (!request_id.is_empty()).then(|| {
        let mut hash = Sha256::new();
        hash.update(call.as_bytes());
        hash.update([0]);
        if let Some(tenant) = &caller.tenant {
            // What was answered under one label is no answer under another.
            hash.update(tenant.as_bytes());
            hash.update([0]);
        }
        hash.update(body.encode_to_vec());
        RequestId { id: request_id.to_owned(), body: hash.finalize().into(), answer }
    });
    let (actor, payer) = (caller.identity.clone(), Some(caller.payer()));
    let cause = match caller.transport {
        Transport::Web => format!("{call} (web)"),
        Transport::Unix | Transport::Tls | Transport::Tcp | Transport::Internal => call.to_owned(),
    };
    Ok(Meta { actor, cause, request_id, payer })
}

/// The last fresh id's number.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A fresh id: a prefix and 12 hexadecimal digits, which count 64ths of a millisecond since 1970.
/// Later ids are greater, so that the store appends them; random ones would touch a page each.
pub(super) fn fresh(prefix: &str) -> String {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(since_1970.as_micros() * 64 / 1000).unwrap_or(u64::MAX);
    let mut number = now;
    // Always `Some`: it can't fail.
    let _ = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
        number = now.max(last + 1);
        Some(number)
    });
    format!("{prefix}{:012x}", number & ((1 << 48) - 1))
}

#[cfg(test)]
mod tests {
    use super::fresh;

    #[test]
    fn fresh_ids_rise() {
        let ids: Vec<String> = (0..10_000).map(|_| fresh("r-")).collect();
        assert!(ids.is_sorted_by(|before, after| before < after));
        assert!(ids.iter().all(|id| id.len() == 14), "{:?}", ids.first());
    }
}
