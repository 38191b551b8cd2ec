//! One connection: HTTP over a stream, with limits, until it ends or the daemon stops.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tower::ServiceExt as _;

use super::{Admission, Behind, Shared, guard::Guard};
use crate::rest::Metrics;

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
    /// Serves one connection.
    pub(super) async fn serve<S>(
        self,
        stream: S,
        admission: Admission,
        _permit: OwnedSemaphorePermit,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let header_time = Duration::from_millis(self.shared.timeouts.header_ms);
        let drain_time = Duration::from_millis(self.shared.timeouts.drain_ms);
        let stopping = self.shared.stopping.clone();
        let limits = self.shared.limits;
        let counted = self.protocol == Protocol::Http1;
        let desk = Arc::new(Desk {
            behind: self.behind,
            guard: self.guard,
            admission,
            counter: counted.then_some(self.shared.metrics),
        });
        let service = service_fn(move |request| Arc::clone(&desk).answer(request));
        let io = TokioIo::new(stream);
        // The two kinds of connection have the same methods and no common trait.
        macro_rules! drive {
            ($connection:expr) => {{
                let mut connection = std::pin::pin!($connection);
                let ended = tokio::select! {
                    result = connection.as_mut() => Some(result),
                    () = stopping.cancelled() => None,
                };
                match ended {
                    Some(result) => result,
                    None => {
                        connection.as_mut().graceful_shutdown();
                        timeout(drain_time, connection).await.unwrap_or(Ok(()))
                    }
                }
            }};
        }
        let result = match self.protocol {
            Protocol::Http1 => {
                let mut builder = conn::http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(header_time);
                drive!(builder.serve_connection(io, service))
            }
            Protocol::Http2 => {
                let mut builder = conn::http2::Builder::new(TokioExecutor::new());
                builder
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(limits.streams)
                    .keep_alive_interval(PING)
                    .keep_alive_timeout(header_time);
                drive!(builder.serve_connection(io, service))
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
    counter: Option<Arc<Metrics>>,
}

impl Desk {
    async fn answer(
        self: Arc<Self>,
        request: hyper::Request<Incoming>,
    ) -> Result<Response, Infallible> {
        let known = self.guard.as_ref().and_then(|guard| guard.refuse(&request));
        let known = known.or_else(|| {
            let at_once = self.behind.at_once.as_ref()?;
            at_once(&self.admission, request.method(), request.uri())
        });
        let response = match known {
            Some(response) => response,
            None => self.route(request).await?,
        };
        if let Some(counter) = &self.counter {
            counter.count_http(response.status());
        }
        Ok(response)
    }

    async fn route(&self, mut request: hyper::Request<Incoming>) -> Result<Response, Infallible> {
        request.extensions_mut().insert(self.admission.clone());
        self.behind.router.clone().oneshot(request.map(Body::new)).await
    }
}
