//! The real berthd gives up what it doesn't need, and does all its work nevertheless.

use std::{
    fs::{self, File},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use berthd::{
    config::{Args, Config},
    hardening,
};
use clap::Parser as _;
use serde_json::Value;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running berthd. Dropping it kills it.
struct Running {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// On the built-in topology `small`, with lines of `berthd.toml`.
    fn start(settings: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("berthd.toml"), settings).expect("written");
        let log = File::create(dir.path().join("log")).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_berthd"));
        command.args(["--host=sim:small", "--listen-http=127.0.0.1:0"]);
        for (option, place) in [
            ("--config=", "berthd.toml"),
            ("--state-dir=", "state"),
            ("--listen-grpc=unix:", "run/berthd.sock"),
            ("--listen-http=unix:", "run/http.sock"),
            ("--listen-handover=unix:", "run/handover.sock"),
        ] {
            command.arg(format!("{option}{}", dir.path().join(place).display()));
        }
        let child = command.stdin(Stdio::null()).stderr(log).spawn().expect("berthd starts");
        let running = Self { child, dir };
        let end = Instant::now() + PATIENCE;
        while !running.log().contains("ready") {
            assert!(Instant::now() < end, "not ready: {}", running.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn status(&self, field: &str) -> String {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(path).expect("its status");
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.expect("the field").trim().to_owned()
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let socket = UnixStream::connect(self.dir.path().join("run/http.sock")).expect("connected");
        exchange(socket, method, path, body)
    }

    fn json(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, text) = self.ask(method, path, body);
        assert!(status < 300, "{method} {path}: {status} {text}\n{}", self.log());
        serde_json::from_str(&text).expect("JSON")
    }

    fn tcp(&self) -> String {
        let log = self.log();
        let (_, rest) = log.split_once("the page is at http://").expect("the page");
        rest.split('/').next().expect("an address").to_owned()
    }

    /// Whether seccomp or Landlock kept it from anything, by its own word.
    fn refused(&self) -> Vec<String> {
        let (_, metrics) = self.ask("GET", "/metrics", "");
        let counted =
            metrics.lines().filter(|it| it.starts_with("berth_refused_system_calls_total{"));
        counted.map(str::to_owned).collect()
    }
}

fn exchange(
    mut stream: impl std::io::Read + std::io::Write,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, String) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         accept: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, rest) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, rest.to_owned())
}

/// A whole life of a reservation, the page, and the history.
fn live(running: &Running) {
    let ask = r#"{"holder": "vm1", "policy": "EXCLUSIVE", "delivery": "HELD",
                  "devices": [{"pci": "0000:00:05.0"}]}"#;
    let made = running.json("POST", "/api/v1/reservations", ask);
    let id = made["id"].as_str().expect("an id").to_owned();
    let path = format!("/api/v1/reservations/{id}");
    let attached = running.json("POST", &format!("{path}/attach"), "{}");
    assert_eq!(attached["state"], "HELD", "{attached}");
    running.json("DELETE", &path, "");
    let events = running.json("GET", "/api/v1/events", "");
    assert!(events["events"].as_array().is_some_and(|events| events.len() > 4), "{events}");
    for path in ["/api/v1/doctor", "/api/v1/snapshot", "/api/v1/groups", "/api/v1/capabilities"] {
        running.json("GET", path, "");
    }
    let page = TcpStream::connect(running.tcp()).expect("the page's socket");
    assert_eq!(exchange(page, "GET", "/", "").0, 200);
}

#[test]
fn berthd_works_confined_and_nothing_is_refused_to_it() {
    let running = Running::start("");
    assert_eq!(
        (running.status("Seccomp").as_str(), running.status("NoNewPrivs").as_str()),
        ("2", "1")
    );
    live(&running);
    assert_eq!(running.refused(), [""; 0], "{}", running.log());
    let (_, metrics) = running.ask("GET", "/metrics", "");
    assert!(metrics.contains("berth_confined{means=\"seccomp\"} 1\n"), "{metrics}");
    assert!(!running.log().contains("seccomp refuses"), "{}", running.log());
    // Every thread is, not the first alone.
    for task in fs::read_dir(format!("/proc/{}/task", running.child.id())).expect("threads") {
        let Ok(status) = fs::read_to_string(task.expect("a thread").path().join("status")) else {
            continue;
        };
        assert!(status.contains("Seccomp:\t2\n"), "{status}");
    }
}

#[test]
fn what_is_off_is_off_and_said() {
    let off = Running::start("[hardening]\nseccomp = \"off\"\nlandlock = \"off\"\n");
    assert_eq!(off.status("Seccomp"), "0");
    live(&off);
    let (_, metrics) = off.ask("GET", "/metrics", "");
    assert!(metrics.contains("berth_confined{means=\"seccomp\"} 0\n"), "{metrics}");
    let log = Running::start("[hardening]\nseccomp = \"log\"\n");
    assert_eq!(log.status("Seccomp"), "2");
    live(&log);
    let found = log.json("GET", "/api/v1/doctor", "");
    let finding = found["findings"].as_array().expect("findings").iter();
    let finding = finding.filter(|it| it["code"] == "NOT_CONFINED").collect::<Vec<_>>();
    assert!(
        finding.iter().any(|it| it.to_string().contains("hardening.seccomp is log")),
        "{found}"
    );
}

/// Where a child of the test below finds its directory.
const CHILD: &str = "BERTH_TEST_CONFINED";

#[test]
fn a_confined_process_reaches_nothing_but_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("state")).expect("made");
    fs::write(dir.path().join("secret"), "secret").expect("written");
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "the_confined_child", "--nocapture"])
        .env(CHILD, dir.path())
        .output()
        .expect("a child");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("nothing was reached"), "{said}");
    for call in ["mount", "socket", "chroot", "init_module"] {
        assert!(
            said.contains(&format!("seccomp refuses the system call {call} ")),
            "{call}: {said}"
        );
    }
}

/// Does nothing by itself.
#[test]
fn the_confined_child() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let args = ["berthd", "--host=sim:small", "--state-dir"].map(PathBuf::from).into_iter();
    let state = dir.join("state");
    let run = format!("unix:{}", state.join("s").display());
    let more = [
        state.clone(),
        format!("--listen-grpc={run}").into(),
        format!("--listen-http={run}").into(),
    ];
    let args = Args::try_parse_from(args.chain(more)).expect("arguments");
    let config = Config::parse("", None, &args).expect("settings");
    let status = hardening::enter(&config);
    assert!(status.seccomp(), "{status:?}");
    own_is_within_reach(&state);
    if status.landlock() {
        for out in [dir.join("secret"), PathBuf::from("/etc/shadow"), PathBuf::from("/bin/true")] {
            let error = File::open(&out).expect_err("out of reach");
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{}", out.display());
        }
        fs::write(dir.join("new"), "x").expect_err("out of reach");
        fs::rename(state.join("kept"), dir.join("gone")).expect_err("out of reach");
    } else {
        eprintln!("this kernel has no Landlock");
    }
    calls_are_refused();
    println!("nothing was reached");
}

fn own_is_within_reach(state: &Path) {
    fs::write(state.join("kept"), "text").expect("its own state");
    let text = fs::read_to_string(state.join("kept")).expect("its own state");
    assert_eq!(text, "text");
    fs::read_to_string("/proc/self/stat").expect("processes");
}

fn calls_are_refused() {
    use rustix::{io::Errno, net, process, system};
    let denied = Err(Errno::PERM);
    let family = net::AddressFamily::PACKET;
    assert_eq!(net::socket(family, net::SocketType::RAW, None).map(drop), denied);
    assert_eq!(
        net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).map(drop),
        denied
    );
    let flags = rustix::mount::MountFlags::empty();
    assert_eq!(rustix::mount::mount("none", "/mnt", "tmpfs", flags, None), denied);
    assert_eq!(process::chroot("/").map(drop), denied);
    assert_eq!(system::init_module(&[], c""), denied);
    let error = Command::new("/bin/true").spawn().map(drop).expect_err("no programs");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
}
