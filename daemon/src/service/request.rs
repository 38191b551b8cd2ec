//! Request ids and fresh ids.

use prost::Message;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::parse;
use crate::model::{AnswerOf, ApiError, Caller, Meta, RequestId};

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
        hash.update(body.encode_to_vec());
        RequestId { id: request_id.to_owned(), body: hash.finalize().into(), answer }
    });
    Ok(Meta { actor: caller.identity.clone(), cause: call.to_owned(), request_id })
}

/// A fresh id: a prefix and 12 hexadecimal digits.
pub(super) fn fresh(prefix: &str) -> String {
    let random = Uuid::new_v4().simple().to_string();
    let digits = random.get(..12).unwrap_or(&random);
    format!("{prefix}{digits}")
}
