//! REST: the protocol in proto3 JSON, events, metrics, health and the page.
//!
//! `routes` is the one table of calls. `bind` makes a JSON request of path, query and body,
//! which the request's type then reads: what it doesn't know is refused by name.

mod bind;
mod descriptors;
mod events;
mod kept;
mod metrics;
pub mod openapi;
mod page;
mod problem;
mod routes;
mod session;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{FromRequestParts as _, RawPathParams},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, get, on},
};
use http::{
    HeaderName, HeaderValue, Method, Request, StatusCode, header, request::Parts, uri::PathAndQuery,
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::metrics::{Metrics, Surface};
pub(crate) use self::problem::{response as problem_response, with_status as problem_with_status};
use self::{
    descriptors::{Descriptors, MessageInfo},
    kept::Kept,
    routes::{ROUTES, Reply, Route},
};
use crate::{
    config::{Limits, Timeouts},
    listen::{Admission, AtOnce, Behind, Doors, Meters, Seat, Seats},
    model::{ApiError, Caller, Live},
    service::{Service, heard},
};

/// What every request needs.
#[derive(Debug)]
pub struct Front {
    /// Answers the calls.
    pub service: Arc<Service>,
    /// Counts requests.
    pub metrics: Arc<Metrics>,
    /// True once the daemon has caught up with the kernel.
    pub ready: watch::Receiver<bool>,
    /// Cancelled when the daemon stops: streams end.
    pub stopping: CancellationToken,
    /// A place for each client that follows events.
    pub watchers: Arc<Seats>,
    /// What counts at the listeners, too.
    pub limits: Live<Limits>,
    /// How long things may take.
    pub timeouts: Live<Timeouts>,
    /// How often each may call.
    pub meters: Arc<Meters>,
    /// Who is connected where.
    pub doors: Arc<Doors>,
    /// The largest body.
    pub body_bytes: usize,
}

impl Front {
    /// A place among those who follow the events.
    pub(crate) fn watcher(&self) -> Result<Seat, ApiError> {
        let most = self.limits.get().watchers;
        self.watchers.try_seat(most).ok_or_else(|| {
            let text = format!("too many clients follow the events: {most} may (limits.watchers)");
            ApiError::unavailable("events", text)
        })
    }

    /// Calls are answered once the record agrees with the kernel.
    pub(crate) fn check_ready(&self) -> Result<(), ApiError> {
        if *self.ready.borrow() {
            return Ok(());
        }
        Err(ApiError::unavailable("berthd", "the daemon is starting"))
    }
}

/// The calls of one method of one path, each with its request's type.
struct Endpoint {
    calls: Vec<(&'static Route, Arc<MessageInfo>)>,
    front: Arc<Front>,
    kept: Arc<Kept>,
}

/// The whole HTTP surface.
///
/// # Errors
/// The table of routes doesn't fit the protocol.
pub fn behind(front: &Arc<Front>) -> Result<Behind, String> {
    let descriptors = Descriptors::load().map_err(|error| error.to_string())?;
    let document = Bytes::from(openapi::document(&descriptors)?.to_string());
    let kept = Arc::new(Kept::default());
    let mut router = api(front, &kept, descriptors)?;
    let (alive, health, counters) = (Arc::clone(front), Arc::clone(front), Arc::clone(front));
    router = router
        .route(openapi::PATH, get(move || async move { json(StatusCode::OK, document) }))
        .route("/healthz", get(move || async move { word(&alive, "ok") }))
        .route("/readyz", get(move || async move { ready(&health) }))
        .route(
            "/metrics",
            get(move |request: Request<Body>| async move {
                match sees_all(request.extensions()) {
                    Ok(()) => metrics::page(&counters).await,
                    Err(error) => problem::response(&error, "/metrics"),
                }
            }),
        )
        .merge(page::router())
        .merge(session::router(front));
    let router = router
        .fallback(|request: Request<Body>| async move { no_such_path(request.uri().path()) })
        .method_not_allowed_fallback(|request: Request<Body>| async move {
            not_allowed(request.method(), request.uri().path())
        });
    Ok(Behind { router, at_once: Some(at_once(Arc::clone(front), kept)) })
}

/// Answers what is kept, without a way through the router.
fn at_once(front: Arc<Front>, kept: Arc<Kept>) -> AtOnce {
    Arc::new(move |admission, method, uri| {
        // Whoever may not ask is refused by the call itself.
        let caller = admission.caller().ok().filter(|_| method == Method::GET)?;
        front.check_ready().ok()?;
        let snapshot = front.service.published(caller).ok()?;
        let name = uri.path_and_query()?.as_str();
        let bytes = match &caller.tenant {
            None => kept.get(&snapshot, name)?,
            Some(label) => kept.get(&snapshot, &of_tenant(label, name))?,
        };
        Some(json(StatusCode::OK, bytes))
    })
}

/// The calls of the table.
fn api(front: &Arc<Front>, kept: &Arc<Kept>, descriptors: Descriptors) -> Result<Router, String> {
    let request_of = |route: &Route| {
        let method = descriptors.method(route.rpc.0, route.rpc.1);
        method
            .map(|method| method.request.clone())
            .ok_or_else(|| format!("no call {:?}", route.rpc))
    };
    let requests: Vec<String> = ROUTES.iter().map(request_of).collect::<Result<_, _>>()?;
    let messages: HashMap<String, Arc<MessageInfo>> =
        descriptors.messages.into_iter().map(|(name, info)| (name, Arc::new(info))).collect();
    let mut router = Router::new();
    let mut calls = Vec::new();
    for (at, (route, request)) in ROUTES.iter().zip(&requests).enumerate() {
        let message = messages.get(request).ok_or_else(|| format!("no message {request}"))?;
        calls.push((route, Arc::clone(message)));
        let goes_on = ROUTES
            .get(at + 1)
            .is_some_and(|next| next.path == route.path && next.method == route.method);
        if !goes_on {
            let calls = std::mem::take(&mut calls);
            let (front, kept) = (Arc::clone(front), Arc::clone(kept));
            let endpoint = Arc::new(Endpoint { calls, front, kept });
            router = router.route(route.path, method_router(&route.method, endpoint)?);
        }
    }
    Ok(router)
}

fn method_router(method: &Method, endpoint: Arc<Endpoint>) -> Result<MethodRouter, String> {
    let filter = MethodFilter::try_from(method.clone()).map_err(|error| error.to_string())?;
    Ok(on(filter, move |request: Request<Body>| {
        let endpoint = Arc::clone(&endpoint);
        async move {
            let (mut parts, body) = request.into_parts();
            match answer(&endpoint, &mut parts, body).await {
                Ok(response) => response,
                Err(error) if error.refusal().object == TOO_LARGE => {
                    problem::with_status(&error, 413, parts.uri.path())
                }
                Err(error) => problem::response(&error, parts.uri.path()),
            }
        }
    }))
}

const TOO_LARGE: &str = "body size";

async fn answer(endpoint: &Endpoint, parts: &mut Parts, body: Body) -> Result<Response, ApiError> {
    let caller = caller(&parts.extensions)?;
    endpoint.front.check_ready()?;
    let Some((first, _)) = endpoint.calls.first() else {
        return Err(ApiError::internal(parts.uri.path(), "a path without a call"));
    };
    match first.answer {
        Reply::State => state(endpoint, &caller, parts).await,
        Reply::DocumentOrEvents if !events::wants_document(&parts.headers) => {
            events::stream(&endpoint.front, caller, &parts.uri, &parts.headers).await
        }
        Reply::Document | Reply::DocumentOrEvents => document(endpoint, caller, parts, body).await,
    }
}

/// The name of an answer that only those of a label get. No path has a blank in it.
fn of_tenant(label: &str, path: &str) -> String {
    format!("{label} {path}")
}

/// What is published; the answer is kept while it is.
async fn state(
    endpoint: &Endpoint,
    caller: &Caller,
    parts: &mut Parts,
) -> Result<Response, ApiError> {
    let snapshot = endpoint.front.service.published(caller)?;
    let name = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let name = match &caller.tenant {
        None => name.to_owned(),
        Some(label) => of_tenant(label, name),
    };
    let (route, fields) = bound(endpoint, parts, Map::new()).await?;
    let service = Arc::clone(&endpoint.front.service);
    let bytes = Bytes::from((route.call)(service, caller.clone(), Value::Object(fields)).await?);
    endpoint.kept.put(&snapshot, name, &bytes);
    Ok(json(StatusCode::OK, bytes))
}

async fn document(
    endpoint: &Endpoint,
    caller: Caller,
    parts: &mut Parts,
    body: Body,
) -> Result<Response, ApiError> {
    let mut fields = Map::new();
    let takes_body = |route: &Route| route.body || route.method == Method::DELETE;
    if endpoint.calls.first().is_some_and(|(first, _)| takes_body(first)) {
        fields = bind::object(&whole(body, &endpoint.front).await?)?;
    }
    let (route, fields) = bound(endpoint, parts, fields).await?;
    heard(&caller, &format!("{}/{}", route.rpc.0, route.rpc.1))?;
    let dry_run = fields.get("dryRun").or_else(|| fields.get("dry_run"));
    let status = if dry_run == Some(&Value::Bool(true)) { 200 } else { route.status };
    let service = Arc::clone(&endpoint.front.service);
    let bytes = (route.call)(service, caller, Value::Object(fields)).await?;
    let location = (status == 201).then(|| location(route.path, &bytes)).flatten();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let mut response = json(status, Bytes::from(bytes));
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The call that is meant, and its request out of path, query and body.
async fn bound(
    endpoint: &Endpoint,
    parts: &mut Parts,
    mut fields: Map<String, Value>,
) -> Result<(&'static Route, Map<String, Value>), ApiError> {
    let (route, message) = bind::choose(&endpoint.calls, &mut fields)?;
    if let Some(param) = route.param {
        let params = RawPathParams::from_request_parts(parts, &()).await.map_err(|error| {
            ApiError::invalid_argument("path", error.body_text(), "encode the path as UTF-8")
        })?;
        let text = params.iter().find(|(name, _)| *name == param.name).map_or("", |(_, text)| text);
        bind::put_param(&mut fields, param, text)?;
    }
    if route.body && parts.uri.query().is_some() {
        let way_out = "put the parameters into the body";
        return Err(ApiError::invalid_argument("query", "the call has no query", way_out));
    }
    bind::put_query(&mut fields, &parts.uri, message)?;
    Ok((route, fields))
}

/// Where a new object is found.
fn location(path: &str, answer: &[u8]) -> Option<HeaderValue> {
    #[derive(serde::Deserialize)]
    struct Named {
        id: String,
    }
    let named: Named = serde_json::from_slice(answer).ok()?;
    HeaderValue::from_str(&format!("{path}/{}", named.id)).ok()
}

/// Whether somebody may be told of all labels: the numbers have domains and listeners in them.
fn sees_all(extensions: &http::Extensions) -> Result<(), ApiError> {
    let caller = caller(extensions)?;
    match &caller.tenant {
        None => Ok(()),
        Some(label) => {
            let text = format!("{} is confined to {label} on this listener", caller.identity);
            Err(ApiError::permission("/metrics", text))
        }
    }
}

/// The caller that the listener admitted.
fn caller(extensions: &http::Extensions) -> Result<Caller, ApiError> {
    match extensions.get::<Admission>() {
        Some(admission) => admission.caller().cloned(),
        None => Err(ApiError::internal("caller", "a request without a listener")),
    }
}

/// The body, which a client may not send without end, nor take for ever to.
async fn whole(body: Body, front: &Front) -> Result<Bytes, ApiError> {
    let patience = Duration::from_millis(front.timeouts.get().body_ms);
    let collected = tokio::time::timeout(patience, collect(body, front.body_bytes)).await;
    collected.unwrap_or_else(|_| {
        let message = format!("the body did not come within {} ms", patience.as_millis());
        Err(ApiError::invalid_argument("body", message, "send the whole body at once"))
    })
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let message = format!("the body is larger than {limit} bytes");
            Err(ApiError::invalid_argument(TOO_LARGE, message, "send a smaller request"))
        }
        Err(error) => {
            let message = format!("the body broke off: {error}");
            Err(ApiError::invalid_argument("body", message, "send the whole body"))
        }
    }
}

fn json(status: StatusCode, bytes: Bytes) -> Response {
    let mut response = Body::from(bytes).into_response();
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(SAME_ORIGIN.0, SAME_ORIGIN.1);
    response
}

/// No page of another origin gets it as a part of itself.
const SAME_ORIGIN: (HeaderName, HeaderValue) = (
    HeaderName::from_static("cross-origin-resource-policy"),
    HeaderValue::from_static("same-origin"),
);

/// A word of the daemon's health. One that can change nothing still serves: it is no failure.
fn word(front: &Front, well: &str) -> Response {
    match front.service.ledger().degraded() {
        Some(degraded) => format!("{}\n", degraded.line()).into_response(),
        None => format!("{well}\n").into_response(),
    }
}

fn ready(front: &Front) -> Response {
    if *front.ready.borrow() && !front.stopping.is_cancelled() {
        return word(front, "ready");
    }
    let error = ApiError::unavailable("berthd", "the daemon is starting or stopping");
    problem::response(&error, "/readyz")
}

fn no_such_path(path: &str) -> Response {
    let message = format!("there is no {path}");
    let error = ApiError::Refused(
        berth_ownership::Refusal::new(berth_ownership::Reason::NotFound, path, message)
            .with_resolve(vec![format!("see {} for the paths that there are", openapi::PATH)]),
    );
    problem::response(&error, path)
}

fn not_allowed(method: &Method, path: &str) -> Response {
    let message = format!("{path} does not take {method}");
    let way_out = format!("see the Allow header, or {}", openapi::PATH);
    problem::with_status(&ApiError::invalid_argument("method", message, way_out), 405, path)
}
