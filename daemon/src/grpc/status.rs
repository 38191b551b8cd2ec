//! Refusals as gRPC statuses: an ErrorInfo for everybody, a `berth.v1.Refusal` for ours.

use std::{collections::HashMap, time::Duration};

use berth_proto::v1;
use prost::Message as _;
use prost_types::Any;
use tonic::{Code, Status};
use tonic_types::{ErrorInfo, pb};

use crate::{model::ApiError, view};

/// The domain of every ErrorInfo.
const DOMAIN: &str = "berth";
const ERROR_INFO_TYPE_URL: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const RETRY_INFO_TYPE_URL: &str = "type.googleapis.com/google.rpc.RetryInfo";
/// Details travel in a header, base64 on top; clients take 8 KiB of headers, some 16.
const DETAILS_BYTES: usize = 5 * 1024;
const TEXT_CHARS: usize = 1024;

/// The status of a refusal.
#[must_use]
pub fn status(error: &ApiError) -> Status {
    with(error, None)
}

/// The same, with when to call again.
pub(crate) fn status_after(error: &ApiError, wait: Duration) -> Status {
    let retry_delay = prost_types::Duration::try_from(wait).ok();
    let info = pb::RetryInfo { retry_delay };
    let type_url = RETRY_INFO_TYPE_URL.to_owned();
    with(error, Some(Any { type_url, value: info.encode_to_vec() }))
}

fn with(error: &ApiError, more: Option<Any>) -> Status {
    let refusal = error.refusal();
    let code = Code::from(refusal.reason.grpc().number());
    let message: String = refusal.message.chars().take(TEXT_CHARS).collect();
    let mut parts = vec![error_info(error), details(view::refusal(refusal))];
    parts.extend(more);
    let details = pb::Status { code: i32::from(code), message: message.clone(), details: parts };
    Status::with_details(code, message, details.encode_to_vec().into())
}

fn error_info(error: &ApiError) -> Any {
    let refusal = error.refusal();
    let mut metadata = HashMap::from([
        ("errno".to_owned(), refusal.errno.to_string()),
        ("object".to_owned(), refusal.object.chars().take(TEXT_CHARS).collect()),
    ]);
    if let Some(owner) = &refusal.owner {
        metadata.insert("owner".to_owned(), owner.kind.clone());
        if let Some(reservation) = &owner.reservation {
            metadata.insert("reservation".to_owned(), reservation.to_string());
        }
    }
    let info = ErrorInfo::new(refusal.reason.name(), DOMAIN, metadata);
    let info = pb::ErrorInfo { reason: info.reason, domain: info.domain, metadata: info.metadata };
    Any { type_url: ERROR_INFO_TYPE_URL.to_owned(), value: info.encode_to_vec() }
}

/// The refusal, shortened until it fits: the first blockers say most.
fn details(mut refusal: v1::Refusal) -> Any {
    refusal.message = refusal.message.chars().take(TEXT_CHARS).collect();
    while refusal.encoded_len() > DETAILS_BYTES && refusal.blockers.pop().is_some() {}
    while refusal.encoded_len() > DETAILS_BYTES && refusal.resolve.pop().is_some() {}
    Any { type_url: berth_proto::REFUSAL_TYPE_URL.to_owned(), value: refusal.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use berth_ownership::{Blocker, Reason, Refusal};
    use tonic_types::StatusExt as _;

    use super::*;

    #[test]
    fn every_reason_has_its_code_and_its_details() {
        for reason in Reason::all() {
            let status = status(&ApiError::new(*reason, "g-1", "no"));
            assert_eq!(i32::from(status.code()), reason.grpc().number());
            let info = status.get_details_error_info().expect("an ErrorInfo");
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason.name(), "berth"));
            assert_eq!(info.metadata["object"], "g-1");
            if reason.errno().number == 1 {
                assert_ne!(status.code(), Code::PermissionDenied, "{reason}");
            }
        }
    }

    #[test]
    fn a_long_refusal_still_fits_into_headers() {
        let blocker = |at: u32| Blocker {
            device: format!("0000:{at:02x}:00.0").as_str().into(),
            driver: Some("nvme".to_owned()),
            processes: vec!["x".repeat(200)],
            mounts: vec!["y".repeat(200)],
            text: "z".repeat(200),
        };
        let refusal = Refusal::new(Reason::KernelDma, "g-1", "m".repeat(5000))
            .with_blockers((0..200).map(blocker).collect());
        let status = status(&ApiError::Refused(refusal));
        assert!(status.details().len() + status.message().len() < 8 * 1024);
        let all = pb::Status::decode(status.details()).expect("a google.rpc.Status");
        let detail = all.details.last().expect("the refusal");
        let wire = v1::Refusal::decode(&*detail.value).expect("a refusal");
        assert!(!wire.blockers.is_empty());
    }
}
