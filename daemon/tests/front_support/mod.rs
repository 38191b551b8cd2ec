//! A daemon in this process on a simulated host, and plain clients for its sockets.
#![allow(dead_code, reason = "each test binary uses a part")]

#[path = "../daemon_support/mod.rs"]
mod daemon_support;

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use berth_host::sim::SimHost;
use berthd::run::Daemon;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A gRPC channel to a socket.
pub(crate) async fn channel_at(path: PathBuf) -> Channel {
    Endpoint::from_static("http://berthd")
        .connect_with_connector(tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .expect("berthd answers")
}

/// A daemon with all its listeners in a directory of its own.
pub(crate) struct Running {
    pub(crate) daemon: Daemon,
    pub(crate) host: SimHost,
    pub(crate) dir: tempfile::TempDir,
}

impl Running {
    /// On the built-in topology `small`, with the default settings.
    pub(crate) async fn start() -> Self {
        Self::with("").await
    }

    /// With lines of `berthd.toml`.
    pub(crate) async fn with(settings: &str) -> Self {
        Self::on("small", settings).await
    }

    /// The same on another built-in topology.
    pub(crate) async fn on(topology: &str, settings: &str) -> Self {
        Self::of(SimHost::builtin(topology).expect("a built-in topology"), settings).await
    }

    /// The same on any simulated machine.
    pub(crate) async fn of(host: SimHost, settings: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut words = vec!["--host=sim:small"];
        if !settings.contains("[[listen]]") {
            words.push("--listen-http=127.0.0.1:0");
        }
        let mut config = daemon_support::settings(dir.path(), settings, &words);
        config.timeouts.drain_ms = 5_000;
        let machine = Arc::new(host.clone());
        let daemon = Daemon::start(&config, machine).await.expect("the daemon starts");
        Self { daemon, host, dir }
    }

    /// What a file with other settings amounts to, for the dials.
    pub(crate) fn settings(&self, settings: &str) -> berthd::config::Config {
        daemon_support::settings(self.dir.path(), settings, &["--host=sim:small"])
    }

    pub(crate) fn grpc_path(&self) -> PathBuf {
        self.dir.path().join("berthd.sock")
    }

    pub(crate) fn http_path(&self) -> PathBuf {
        self.dir.path().join("http.sock")
    }

    pub(crate) fn tcp(&self) -> SocketAddr {
        self.daemon.tcp_addresses()[0]
    }

    /// A gRPC channel.
    pub(crate) async fn channel(&self) -> Channel {
        channel_at(self.grpc_path()).await
    }

    /// One request over the unix socket.
    pub(crate) async fn unix(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let body = body.map(ToString::to_string);
        self.unix_raw(method, path, body.as_deref(), "").await
    }

    /// The same with a body of any kind and more header lines.
    pub(crate) async fn unix_raw(
        &self,
        method: &str,
        path: &str,
        body: Option<&str>,
        headers: &str,
    ) -> Answer {
        self.unix_of(self.http_path(), request(method, path, "berth", body, headers)).await
    }

    /// One request over another unix socket.
    pub(crate) async fn unix_at(
        &self,
        socket: PathBuf,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Answer {
        self.unix_of(socket, request(method, path, "berth", Some(&body.to_string()), "")).await
    }

    async fn unix_of(&self, socket: PathBuf, request: String) -> Answer {
        blocking(move || {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            exchange(stream, &request)
        })
        .await
    }

    /// One request over TCP with a `Host` and more header lines.
    pub(crate) async fn tcp_raw(
        &self,
        method: &str,
        path: &str,
        host: &str,
        headers: &str,
    ) -> Answer {
        self.tcp_with(method, path, host, None, headers).await
    }

    /// The same with a body.
    pub(crate) async fn tcp_with(
        &self,
        method: &str,
        path: &str,
        host: &str,
        body: Option<&str>,
        headers: &str,
    ) -> Answer {
        let request = request(method, path, host, body, headers);
        let address = self.tcp();
        blocking(move || {
            let stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            exchange(stream, &request)
        })
        .await
    }

    /// The first line of an answer that goes on; waited for less long than it takes a stream to
    /// say that it is alive.
    pub(crate) async fn first_line(&self, path: &str) -> String {
        let request = request("GET", path, "berth", None, "accept: text/event-stream\r\n");
        let socket = self.http_path();
        blocking(move || {
            let mut stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(request.as_bytes())?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line.trim_end().to_owned())
        })
        .await
    }

    /// Server-sent events, `count` of them, as (id, event, data).
    pub(crate) async fn events(&self, path: &str, headers: &str, count: usize) -> Vec<Frame> {
        let headers = format!("accept: text/event-stream\r\n{headers}");
        let request = request("GET", path, "berth", None, &headers);
        let socket = self.http_path();
        blocking(move || {
            let mut stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            frames(stream, count)
        })
        .await
    }
}

/// An answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error}: status {}: {}", self.status, self.body))
    }

    /// The problem that it is.
    pub(crate) fn problem(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{problem}");
        problem
    }
}

/// One server-sent event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) id: String,
    pub(crate) event: String,
    pub(crate) data: String,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("a client that ends").expect("an answer")
}

fn request(method: &str, path: &str, host: &str, body: Option<&str>, headers: &str) -> String {
    let body = body.unwrap_or("");
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\
         content-length: {length}\r\n\r\n{body}"
    )
}

fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<Answer> {
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| io::Error::other(format!("not HTTP: {head}")))?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Answer { status, headers, body: body.to_owned() })
}

fn frames(stream: impl Read, count: usize) -> io::Result<Vec<Frame>> {
    let mut found = Vec::new();
    let mut frame = Frame::default();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if let Some(id) = line.strip_prefix("id: ") {
            frame.id = id.to_owned();
        } else if let Some(event) = line.strip_prefix("event: ") {
            frame.event = event.to_owned();
        } else if let Some(data) = line.strip_prefix("data: ") {
            frame.data = data.to_owned();
        } else if line.is_empty() && !frame.data.is_empty() {
            found.push(std::mem::take(&mut frame));
            if found.len() >= count {
                return Ok(found);
            }
        } else if line.starts_with("HTTP/1.1 ") && !line.contains(" 200 ") {
            return Err(io::Error::other(line));
        }
    }
    Ok(found)
}
