//! HTTP/1.1 over a unix socket: a client that keeps its connection, and axum with a constant.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use axum::{Router, http::header, routing};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    runtime::Runtime,
    task::{JoinHandle, JoinSet},
};

use berth_measure::rate;

/// A connection and what was read from it.
struct Connection {
    stream: UnixStream,
    request: String,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(socket: &Path, path: &str) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.context("connect")?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        Ok(Self { stream, request, buffer: Vec::with_capacity(16 << 10) })
    }

    /// One request; the body of its answer is in the buffer from the offset that is answered.
    async fn get(&mut self) -> Result<usize> {
        self.stream.write_all(self.request.as_bytes()).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the server closed the connection");
            }
            if let Some((head, length)) = head(&self.buffer)?
                && self.buffer.len() >= head + length
            {
                return Ok(head);
            }
        }
    }
}

/// Where the body begins and how long it is, once the head is there.
fn head(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(bytes.get(..end).unwrap_or(&[])).context("a head")?;
    if !text.starts_with("HTTP/1.1 200 ") {
        bail!("the server answers {text}");
    }
    let length = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .context("an answer without a length")?;
    Ok(Some((end + 4, length)))
}

/// One answer's body.
///
/// # Errors
/// Of the server.
pub(super) async fn get(socket: &Path, path: &str) -> Result<String> {
    let mut connection = Connection::open(socket, path).await?;
    let at = connection.get().await?;
    Ok(String::from_utf8_lossy(connection.buffer.get(at..).unwrap_or(&[])).into_owned())
}

/// Requests per second over some connections.
///
/// # Errors
/// Of the server.
pub(super) async fn slice(
    socket: &Path,
    path: &str,
    flight: usize,
    length: Duration,
) -> Result<f64> {
    let mut connections = Vec::with_capacity(flight);
    for _ in 0..flight {
        connections.push(Connection::open(socket, path).await?);
    }
    let began = Instant::now();
    let mut running = JoinSet::new();
    for mut connection in connections {
        running.spawn(async move {
            let mut done: u64 = 0;
            while began.elapsed() < length {
                connection.get().await?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    let mut done = 0;
    while let Some(count) = running.join_next().await {
        done += count??;
    }
    Ok(rate(done, began.elapsed()))
}

/// axum that answers a constant.
///
/// # Errors
/// The socket can't be bound.
pub(super) fn constant(runtime: &Runtime, socket: &Path, body: String) -> Result<JoinHandle<()>> {
    let body: &'static str = body.leak();
    let answer = move || async move { ([(header::CONTENT_TYPE, "application/json")], body) };
    let router = Router::new().route("/api/v1/groups/{group}", routing::get(answer));
    let _inside = runtime.enter();
    let listener = UnixListener::bind(socket).context("bind the peer's socket")?;
    Ok(runtime.spawn(async move {
        // It is aborted when it isn't needed any more.
        let _ = axum::serve(listener, router).await;
    }))
}
