//! SIGHUP: what can change while the daemon runs does, a file that is wrong changes nothing, and what
//! needs a restart is named.

mod front_support;

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use front_support::PATIENCE;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A daemon in a process of its own.
struct Process {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(settings: impl Fn(&Path) -> String) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("berthd.toml"), settings(dir.path())).expect("written");
        let child = Command::new(env!("CARGO_BIN_EXE_berthd"))
            .args(["--host", "sim:small", "--config"])
            .arg(dir.path().join("berthd.toml"))
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .env_remove("BERTH_LOG")
            .stderr(Stdio::from(std::fs::File::create(dir.path().join("log")).expect("a log")))
            .spawn()
            .expect("berthd starts");
        let process = Self { child, dir };
        process.until("it is ready", |it| {
            it.ask("http.sock", "GET", "/readyz", None).is_some_and(|(status, _)| status == 200)
        });
        process
    }

    fn write(&self, settings: &str) {
        std::fs::write(self.dir.path().join("berthd.toml"), settings).expect("written");
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::HUP).expect("it lives");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).expect("a log")
    }

    fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let ends = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < ends, "not in time: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ask(
        &self,
        socket: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Option<(u16, Value)> {
        let mut stream = UnixStream::connect(self.dir.path().join(socket)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let body = body.map(ToString::to_string).unwrap_or_default();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Some((status, serde_json::from_str(body).unwrap_or_default()))
    }

    fn config(&self) -> Value {
        self.ask("http.sock", "GET", "/api/v1/config", None).expect("an answer").1
    }

    /// Reserves a device and gives it back: the status, and the reason of a refusal.
    fn reserve(&self, device: &str) -> (u16, String) {
        let body = json!({"holder": "vm", "policy": "EXCLUSIVE", "devices": [{"pci": device}]});
        let asked = self.ask("http.sock", "POST", "/api/v1/reservations", Some(&body));
        let (status, answer) = asked.expect("an answer");
        if let Some(id) = answer["id"].as_str() {
            self.ask("http.sock", "DELETE", &format!("/api/v1/reservations/{id}"), None);
        }
        (status, answer["reason"].as_str().unwrap_or_default().to_owned())
    }
}

fn listeners(dir: &Path) -> String {
    let at = dir.display();
    format!(
        "[[listen]]\nserve = \"grpc\"\npath = \"{at}/berthd.sock\"\n\
         [[listen]]\nserve = \"handover\"\npath = \"{at}/handover.sock\"\n\
         [[listen]]\nserve = \"http\"\npath = \"{at}/http.sock\"\n\
         [[listen]]\nserve = \"http\"\npath = \"{at}/second.sock\"\n"
    )
}

const DEVICE: &str = "0000:00:06.0";

#[test]
fn a_reload_puts_in_force_what_can_change_and_names_what_can_not() {
    let daemon = Process::start(listeners);
    let base = listeners(daemon.dir.path());
    assert_eq!(daemon.reserve(DEVICE).0, 201);
    // A connection that stands is cut when it has other rights by the new rules.
    let mut standing =
        UnixStream::connect(daemon.dir.path().join("second.sock")).expect("it listens");
    standing.set_read_timeout(Some(PATIENCE)).expect("set");
    standing.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").expect("written");
    let mut first = [0; 12];
    standing.read_exact(&mut first).expect("an answer");

    let quota = "[[quota]]\nreservations = 0\n[timeouts]\nact_ms = 9000\n[limits]\nstreams = 9\n";
    daemon.write(&format!(
        "log = \"debug\"\nstate_dir = \"/elsewhere\"\n{base}role = \"viewer\"\n{quota}"
    ));
    daemon.until("the quota is in force", |it| it.reserve(DEVICE).1 == "QUOTA_EXCEEDED");
    let mut rest = Vec::new();
    standing.read_to_end(&mut rest).expect("it is closed, not cut in the middle");
    let body = json!({"holder": "vm", "policy": "EXCLUSIVE", "devices": [{"pci": DEVICE}]});
    let (status, answer) =
        daemon.ask("second.sock", "POST", "/api/v1/reservations", Some(&body)).expect("an answer");
    assert_eq!((status, &answer["reason"]), (403, &json!("PERMISSION_DENIED")), "{answer}");
    let config = daemon.config();
    let needs = config["needsRestart"].to_string();
    assert!(needs.contains("timeouts.act_ms: 9000 (runs with 10000)"), "{config}");
    assert_eq!(config["refused"], "", "{config}");
    daemon.until("the log's filter counts", |it| it.log().contains("DEBUG"));
    assert!(daemon.log().contains("needs a restart: timeouts.act_ms"), "{}", daemon.log());

    let deny = format!("{base}[[device]]\nverdict = \"deny\"\naddress = \"{DEVICE}\"\n");
    daemon.write(&deny);
    daemon.until("the rule is in force", |it| it.reserve(DEVICE).1 == "DENIED_BY_RULE");
    assert_eq!(daemon.config()["needsRestart"], json!([]));
}

#[test]
fn a_file_that_is_wrong_leaves_the_last_configuration_in_force_and_says_so() {
    let quota = "[[quota]]\nreservations = 0\n";
    let daemon = Process::start(|dir| format!("{}{quota}", listeners(dir)));
    let base = listeners(daemon.dir.path());
    assert_eq!(daemon.reserve(DEVICE).1, "QUOTA_EXCEEDED");
    daemon.write(&format!("{base}[limits]\nstreams = 0\n"));
    daemon.until("it is refused", |it| it.config()["refused"] != "");
    let why = daemon.config()["refused"].to_string();
    let line = base.lines().count() + 2;
    assert!(why.contains(&format!("berthd.toml:{line}: limits.streams")), "{why}");
    assert!(daemon.log().contains("the last configuration stays in force"), "{}", daemon.log());
    assert_eq!(daemon.reserve(DEVICE).1, "QUOTA_EXCEEDED", "the last quota counts");
    let (_, doctor) = daemon.ask("http.sock", "GET", "/api/v1/doctor", None).expect("an answer");
    let findings = doctor["findings"].as_array().expect("findings").clone();
    let found = findings.iter().find(|it| it["code"] == "CONFIG_REFUSED").expect("a finding");
    assert!(found["cause"].to_string().contains("limits.streams"), "{found}");
    daemon.write(&base);
    daemon.until("the next one is in force", |it| it.reserve(DEVICE).0 == 201);
    assert_eq!(daemon.config()["refused"], "");
}
