//! One connection: HTTP over a stream, with limits, until it ends or the daemon stops.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{Router, body::Body, response::Response};
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tower::ServiceExt as _;

use super::{Admission, Shared, guard::Guard};

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
    pub(super) router: Router,
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
        let router = self.router;
        let guard = self.guard;
        let counter = (self.protocol == Protocol::Http1).then(|| self.shared.metrics.clone());
        let service = service_fn(move |request| {
            let answer = answer(router.clone(), guard.clone(), admission.clone(), request);
            let counter = counter.clone();
            async move {
                let response = answer.await;
                if let (Some(counter), Ok(response)) = (counter, &response) {
                    counter.count_http(response.status());
                }
                response
            }
        });
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

async fn answer(
    router: Router,
    guard: Option<Arc<Guard>>,
    admission: Admission,
    mut request: hyper::Request<Incoming>,
) -> Result<Response, Infallible> {
    if let Some(response) = guard.and_then(|guard| guard.refuse(&request)) {
        return Ok(response);
    }
    request.extensions_mut().insert(admission);
    router.oneshot(request.map(Body::new)).await
}
