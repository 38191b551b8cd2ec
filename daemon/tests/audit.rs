//! The audit's lines: who changed what, who was refused, from where, on what ground.

mod front_support;

use std::{
    io,
    sync::{Arc, Mutex},
};

use front_support::Running;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

/// What was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Lines {
    /// The line that has all of these.
    fn has(&self, parts: &[&str]) {
        let text = String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned();
        let found = text.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "no line has {parts:?} in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_names_who_from_where_and_on_what_ground() {
    let lines = Lines::default();
    tracing_subscriber::fmt()
        .with_env_filter("audit=info")
        .with_ansi(false)
        .with_writer(lines.clone())
        .init();
    let dir = tempfile::tempdir().expect("a directory");
    let (me, at) = (rustix::process::getuid().as_raw(), dir.path().display());
    let settings = format!(
        "[[listen]]\nserve = \"grpc\"\npath = \"{at}/berthd.sock\"\n\
         [[listen.rule]]\nuid = {me}\nrole = \"none\"\n\
         [[listen]]\nserve = \"handover\"\npath = \"{at}/handover.sock\"\n\
         [[listen]]\nserve = \"http\"\npath = \"{at}/http.sock\"\n\
         [[listen.rule]]\nuid = {me}\nrole = \"orchestrator\"\n\
         [[listen]]\nserve = \"http\"\naddress = \"127.0.0.1:0\"\n\
         [[quota]]\nreservations = 1\n[[rate]]\ncommands_per_s = 1\ncommands_burst = 4\n"
    );
    let running = Running::with(&settings).await;
    let post = |path: &str, body: serde_json::Value| {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let socket = dir.path().join("http.sock");
        tokio::task::spawn_blocking(move || {
            use std::io::{Read as _, Write as _};
            let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("connected");
            stream.write_all(head.as_bytes()).expect("written");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            text
        })
    };
    let ask =
        |device: &str| json!({"holder": "vm", "policy": "EXCLUSIVE", "devices": [{"pci": device}]});
    let made = post("/api/v1/reservations", ask("0000:00:06.0")).await.expect("no panic");
    let id = made.split("\"id\":\"").nth(1).and_then(|it| it.split('"').next()).expect(&made);
    let ground = format!("ground=\"rule uid {me}\"");
    let identity = format!("identity=\"uid:{me}\"");
    let pid = format!("pid={}", std::process::id());
    let listener = format!("listener=\"unix:{at}/http.sock\"");
    let who = [identity.as_str(), &pid, &listener, &ground, "role=\"orchestrator\""];
    let with = |more: &[&'static str]| [&who[..], more].concat();
    lines.has(&[&who[..], &["done", "call=\"reserve\"", id]].concat());
    post("/api/v1/reservations", ask("0000:00:05.0")).await.expect("no panic");
    lines.has(&with(&["call=\"reserve\"", "QUOTA_EXCEEDED"]));
    post("/api/v1/devices/0000:00:05.0/cordon", json!({})).await.expect("no panic");
    lines.has(&with(&["call=\"cordon\"", "PERMISSION_DENIED"]));
    for _ in 0..4 {
        post("/api/v1/reservations", json!({})).await.expect("no panic");
    }
    lines.has(&[&identity, &pid, &listener, "RATE_LIMITED"]);
    running.tcp_raw("GET", "/api/v1/groups", "evil.example", "").await;
    lines.has(&["method or session", "peer=\"127.0.0.1:", "listener=\"127.0.0.1:0\""]);
    let refused = front_support::channel_at(dir.path().join("berthd.sock")).await;
    let mut groups = berth_proto::v1::groups_client::GroupsClient::new(refused);
    groups.list_groups(berth_proto::v1::ListGroupsRequest {}).await.expect_err("shut out");
    lines.has(&["shut out", &identity, &pid, "berthd.sock", "may not use this listener"]);
    let metrics = running.tcp_raw("GET", "/metrics", "localhost", "").await.body;
    for kind in ["changed", "refused", "over_quota", "over_rate", "shut_out", "turned_away"] {
        let counted = metrics
            .lines()
            .find_map(|line| line.strip_prefix(&format!("berth_audit_total{{kind=\"{kind}\"}} ")));
        let count: u64 = counted.and_then(|it| it.parse().ok()).expect("a count");
        assert!(count >= 1, "{kind}: {metrics}");
    }
    running.daemon.stop().await;
}
