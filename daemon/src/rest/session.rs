//! The page's own door: signing in with a link, looking at the session, signing out. It is no part of
//! the API.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
    routing::get,
};
use http::{HeaderValue, Request, StatusCode, header};
use serde_json::json;

use super::{Front, bind, problem, whole};
use crate::{
    audit,
    listen::Admission,
    model::{ApiError, Caller},
    websession::{Checked, PATH},
};

/// The door, which opens only to requests that a listener on loopback has looked at.
pub(super) fn router(front: &Arc<Front>) -> Router {
    let (looking, entering, leaving) = (Arc::clone(front), Arc::clone(front), Arc::clone(front));
    let route = get(move |request: Request<Body>| async move {
        answer(checked(&request).and_then(|checked| look(&looking, &checked)))
    })
    .post(move |request: Request<Body>| async move { answer(enter(&entering, request).await) })
    .delete(move |request: Request<Body>| async move {
        answer(checked(&request).and_then(|checked| leave(&leaving, &checked)))
    });
    Router::new().route(PATH, route)
}

fn answer(answer: Result<Response, ApiError>) -> Response {
    answer.unwrap_or_else(|error| problem::response(&error, PATH))
}

fn checked(request: &Request<Body>) -> Result<Checked, ApiError> {
    request.extensions().get::<Checked>().cloned().ok_or_else(|| {
        let text = "browsers sign in where the page is served on loopback, without TLS";
        ApiError::not_found(PATH, text)
    })
}

fn told(state: &impl serde::Serialize) -> Result<Response, ApiError> {
    let bytes = serde_json::to_vec(state);
    let bytes = bytes.map_err(|error| ApiError::internal("session", error.to_string()))?;
    Ok(super::json(StatusCode::OK, Bytes::from(bytes)))
}

fn look(front: &Front, checked: &Checked) -> Result<Response, ApiError> {
    told(&front.service.web_sessions().look(&checked.shows)?)
}

/// A link's secret becomes a session: a cookie that no script reads, and a token that no other page
/// can send.
async fn enter(front: &Front, request: Request<Body>) -> Result<Response, ApiError> {
    let checked = checked(&request)?;
    let admission = request.extensions().get::<Admission>().cloned();
    let fields = bind::object(&whole(request.into_body(), front).await?)?;
    let Some(token) = fields.get("token").and_then(|token| token.as_str()) else {
        let way_out = "send {\"token\": ...} with what stands behind /sign-in/ in the link";
        return Err(ApiError::invalid_argument("token", "the body has no token", way_out));
    };
    let page = admission.as_ref().and_then(|admission| admission.caller().ok());
    let page = page.and_then(|caller| caller.origin.as_deref());
    let opened = front.service.web_sessions().open(token, page).inspect_err(|error| {
        audit::refused(&nobody(admission.as_ref()), "sign in", error);
    })?;
    audit::changed(&opened.caller, "sign in", "session");
    let mut response = told(&json!({ "csrf": opened.csrf, "session": opened.state }))?;
    put_cookie(&mut response, &format!("{}={}; {KEPT}", checked.cookie, opened.cookie))?;
    Ok(response)
}

fn leave(front: &Front, checked: &Checked) -> Result<Response, ApiError> {
    let identity = front.service.web_sessions().close(&checked.shows)?;
    audit::signed_out(&identity);
    let mut response = told(&json!({}))?;
    put_cookie(&mut response, &format!("{}=; {KEPT}; Max-Age=0", checked.cookie))?;
    Ok(response)
}

/// `__Host-` and `Secure` need TLS, which a page on loopback doesn't have: see docs/security.md.
const KEPT: &str = "Path=/; HttpOnly; SameSite=Strict";

fn put_cookie(response: &mut Response, line: &str) -> Result<(), ApiError> {
    let value = HeaderValue::from_str(line)
        .map_err(|error| ApiError::internal("cookie", error.to_string()))?;
    response.headers_mut().insert(header::SET_COOKIE, value);
    Ok(())
}

/// Whoever is connected, for the audit of a link that opened nothing.
fn nobody(admission: Option<&Admission>) -> Caller {
    let connected = admission.and_then(|admission| admission.caller().ok());
    connected.cloned().unwrap_or_else(|| Caller::tcp(crate::model::Role::Viewer))
}
