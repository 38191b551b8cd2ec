//! Refusals as `application/problem+json` (RFC 9457).

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use berth_ownership::{Reason, Refusal};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::{model::ApiError, view};

/// The media type.
pub(crate) const MEDIA_TYPE: &str = "application/problem+json";

/// A problem: what is wrong, for people and for programs.
///
/// # Errors
/// None: what can't be written as JSON is left out.
pub(crate) fn document(refusal: &Refusal, status: u16, instance: &str) -> Value {
    let row = refusal.reason.row();
    let wire = view::refusal(refusal);
    let mut problem = Map::new();
    problem.insert("type".to_owned(), json!(type_of(refusal.reason)));
    problem.insert("title".to_owned(), json!(row.title));
    problem.insert("status".to_owned(), json!(status));
    problem.insert("detail".to_owned(), json!(refusal.message));
    problem.insert("instance".to_owned(), json!(instance));
    problem.insert("reason".to_owned(), json!(row.name));
    problem.insert("errno".to_owned(), json!(wire.errno));
    problem.insert("errnoName".to_owned(), json!(wire.errno_name));
    problem.insert("object".to_owned(), json!(refusal.object));
    if let Some(owner) = wire.owner.as_ref().and_then(|owner| serde_json::to_value(owner).ok()) {
        problem.insert("owner".to_owned(), owner);
    }
    let blockers = serde_json::to_value(&wire.blockers).unwrap_or_else(|_| json!([]));
    problem.insert("blockers".to_owned(), blockers);
    problem.insert("resolve".to_owned(), json!(refusal.resolve));
    Value::Object(problem)
}

/// The URI of a kind of problem.
pub(crate) fn type_of(reason: Reason) -> String {
    format!("urn:berth:problem:{}", reason.name())
}

/// The answer to a refused request.
pub(crate) fn response(error: &ApiError, instance: &str) -> Response {
    with_status(error, error.reason().http_status(), instance)
}

/// The same with a status of HTTP's own, where the reason's doesn't say enough.
pub(crate) fn with_status(error: &ApiError, status: u16, instance: &str) -> Response {
    let body = document(error.refusal(), status, instance).to_string();
    let mut response = Body::from(body).into_response();
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(super::SAME_ORIGIN.0, super::SAME_ORIGIN.1);
    if error.is_passing() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
