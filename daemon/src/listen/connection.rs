//! One connection: HTTP over a stream, with limits, until it ends, the daemon stops, or the rules
//! that it was let in by say otherwise.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use http::{HeaderValue, Method, header};
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tower::ServiceExt as _;

use super::{
    Admission, Behind, CallKind, Excess, Meter, Meters, Seat, Shared,
    gather::{Gather, Traffic},
    guard::{Guard, Passage},
    pieces::Pieces,
    preface,
};
use crate::{
    audit, grpc,
    model::{Call, Caller, Role},
    rest::{self, Metrics},
};

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// What stands behind a listener.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) protocol: Protocol,
    pub(super) behind: Behind,
    /// Checks of TCP requests.
    pub(super) guard: Option<Arc<Guard>>,
    pub(super) shared: Shared,
}

/// How often an idle HTTP/2 peer is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);

impl Door {
    /// Serves one connection of somebody whom `admit` knows, by the rules that count.
    pub(super) async fn serve<S>(
        self,
        stream: S,
        admit: impl Fn() -> Admission + Send + 'static,
        _seat: Seat,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (limits, timeouts) = (**self.shared.limits.get(), **self.shared.timeouts.get());
        let header_time = Duration::from_millis(timeouts.header_ms);
        let drain_time = Duration::from_millis(timeouts.drain_ms);
        let stopping = self.shared.stopping.clone();
        let mut rules = self.shared.rules.subscribe();
        let admission = admit();
        let traffic = Arc::new(Traffic::default());
        let desk = Arc::new(Desk::new(&self, admission.clone(), Arc::clone(&traffic)));
        let shut_out = async move {
            while rules.changed().await.is_ok() {
                if !admission.has_the_rights_of(&admit()) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        let service = service_fn(move |request| Arc::clone(&desk).answer(request));
        // The two kinds of connection have the same methods and no common trait.
        macro_rules! drive {
            ($connection:expr) => {{
                let mut connection = std::pin::pin!($connection);
                let ended = tokio::select! {
                    result = traffic.turns_of(connection.as_mut()) => Some(result),
                    () = stopping.cancelled() => None,
                    () = shut_out => None,
                };
                match ended {
                    Some(result) => result,
                    None => {
                        connection.as_mut().graceful_shutdown();
                        let drained = traffic.turns_of(connection);
                        timeout(drain_time, drained).await.unwrap_or(Ok(()))
                    }
                }
            }};
        }
        let header_bytes = usize::try_from(limits.header_bytes).unwrap_or(usize::MAX);
        let result = match self.protocol {
            Protocol::Http1 => {
                let mut builder = conn::http1::Builder::new();
                builder
                    .timer(TokioTimer::new())
                    .header_read_timeout(header_time)
                    .max_buf_size(header_bytes);
                drive!(builder.serve_connection(TokioIo::new(stream), service))
            }
            Protocol::Http2 => {
                let patience = Duration::from_millis(timeouts.handshake_ms);
                let stream = match preface::begun(stream, patience).await {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::debug!(%error, "connection ended before it began");
                        return;
                    }
                };
                let mut builder = conn::http2::Builder::new(TokioExecutor::new());
                builder
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(limits.streams)
                    .max_header_list_size(limits.header_bytes)
                    .keep_alive_interval(PING)
                    .keep_alive_timeout(header_time);
                let stream = Gather::new(stream, Arc::clone(&traffic));
                drive!(builder.serve_connection(TokioIo::new(stream), service))
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended");
        }
    }
}

/// What answers the requests of one connection.
struct Desk {
    behind: Behind,
    guard: Option<Arc<Guard>>,
    admission: Admission,
    protocol: Protocol,
    metrics: Arc<Metrics>,
    meters: Arc<Meters>,
    meter: Arc<Meter>,
    traffic: Arc<Traffic>,
}

impl Desk {
    fn new(door: &Door, admission: Admission, traffic: Arc<Traffic>) -> Self {
        let meters = Arc::clone(&door.shared.meters);
        let meter = match admission.caller() {
            Ok(caller) => meters.of(caller),
            // Whoever is shut out may not ask without end why.
            Err(error) => {
                let identity = error.refusal().object.clone();
                meters.of(&Caller { identity, ..Caller::tcp(Role::Viewer) })
            }
        };
        Self {
            behind: door.behind.clone(),
            guard: door.guard.clone(),
            admission,
            protocol: door.protocol,
            metrics: Arc::clone(&door.shared.metrics),
            meters,
            meter,
            traffic,
        }
    }

    async fn answer(
        self: Arc<Self>,
        request: hyper::Request<Incoming>,
    ) -> Result<http::Response<Pieces>, Infallible> {
        let answering = self.traffic.answer();
        let caller = self.admission.caller().ok();
        let passage = self.guard.as_ref().map_or(Ok(Passage::Plain), |guard| {
            guard.pass(&request, caller.and_then(|caller| caller.origin.as_deref()))
        });
        let response = match passage {
            Err(refused) => {
                let (path, status) = (request.uri().path(), refused.status().as_u16());
                audit::turned_away(caller, path, status);
                *refused
            }
            Ok(passage) => match self.known(&request, &passage) {
                Some(response) => response,
                None => self.route(request, passage).await?,
            },
        };
        if self.protocol == Protocol::Http1 {
            self.metrics.count_http(response.status());
        }
        Ok(response.map(|body| match self.protocol {
            Protocol::Http1 => Pieces::whole(body),
            Protocol::Http2 => Pieces::of(body, answering),
        }))
    }

    /// The answer that needs no call.
    fn known<B>(&self, request: &hyper::Request<B>, passage: &Passage) -> Option<Response> {
        if let Passage::Session(admission) = passage {
            let caller = admission.caller().ok()?;
            return self.too_many(request, &self.meters.of(caller), Some(caller));
        }
        self.too_many(request, &self.meter, self.admission.caller().ok()).or_else(|| {
            let at_once = self.behind.at_once.as_ref()?;
            at_once(&self.admission, request.method(), request.uri())
        })
    }

    /// The answer to one call too many.
    fn too_many<B>(
        &self,
        request: &hyper::Request<B>,
        meter: &Meter,
        caller: Option<&Caller>,
    ) -> Option<Response> {
        if !Meters::is_limited(meter) {
            return None;
        }
        let kind = kind_of(self.protocol, request.method(), request.uri().path())?;
        let excess = self.meters.take(meter, kind).err()?;
        audit::over_rate(caller, request.uri().path(), &excess.error);
        Some(match self.protocol {
            Protocol::Http1 => too_many_requests(&excess, request.uri().path()),
            Protocol::Http2 => {
                let status = grpc::status_after(&excess.error, excess.wait);
                self.metrics.count_grpc(status.code());
                status.into_http()
            }
        })
    }

    async fn route(
        &self,
        mut request: hyper::Request<Incoming>,
        passage: Passage,
    ) -> Result<Response, Infallible> {
        let extensions = request.extensions_mut();
        let admission = match passage {
            Passage::Session(admission) => admission,
            Passage::Door(checked) => {
                extensions.insert(checked);
                self.admission.clone()
            }
            Passage::Plain => self.admission.clone(),
        };
        extensions.insert(admission);
        self.behind.router.clone().oneshot(request.map(Body::new)).await
    }
}

/// As what a call is counted; what only asks for the daemon's health isn't.
fn kind_of(protocol: Protocol, method: &Method, path: &str) -> Option<CallKind> {
    match protocol {
        Protocol::Http1 if matches!(path, "/healthz" | "/readyz") => None,
        Protocol::Http1 if *method == Method::GET || *method == Method::HEAD => {
            Some(CallKind::Read)
        }
        Protocol::Http1 => Some(CallKind::Command),
        Protocol::Http2 => {
            let Some(name) = path.strip_prefix("/berth.v1.") else {
                let health = path.starts_with("/grpc.health.v1.Health/");
                return (!health).then_some(CallKind::Read);
            };
            let row = Call::ALL.iter().map(|call| call.row()).find(|row| row.rpc == Some(name));
            let reads = row.is_none_or(|row| row.least == Role::Viewer);
            Some(if reads { CallKind::Read } else { CallKind::Command })
        }
    }
}

/// 429, and when to come again.
fn too_many_requests(excess: &Excess, path: &str) -> Response {
    let mut response = rest::problem_response(&excess.error, path);
    // Whole seconds, and none would be at once.
    let seconds = excess.wait.as_secs().saturating_add(1);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_as_what_they_are() {
        let grpc = |path: &str| kind_of(Protocol::Http2, &Method::POST, path);
        assert_eq!(grpc("/berth.v1.Groups/ListGroups"), Some(CallKind::Read));
        assert_eq!(grpc("/berth.v1.Reservations/Reserve"), Some(CallKind::Command));
        assert_eq!(grpc("/berth.v1.Reservations/Renew"), Some(CallKind::Command));
        assert_eq!(grpc("/berth.v1.Events/Watch"), Some(CallKind::Read));
        assert_eq!(grpc("/grpc.health.v1.Health/Check"), None);
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        assert_eq!(grpc(reflection), Some(CallKind::Read));
        let http = |method: Method, path: &str| kind_of(Protocol::Http1, &method, path);
        assert_eq!(http(Method::GET, "/api/v1/groups"), Some(CallKind::Read));
        assert_eq!(http(Method::DELETE, "/api/v1/reservations/r-1"), Some(CallKind::Command));
        assert_eq!(http(Method::GET, "/healthz"), None);
    }
}
