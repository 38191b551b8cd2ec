//! The daemon as a service manager sees it: sockets that were passed, readiness, heartbeats.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic as tests do")]

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt as _,
            net::{UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    process::{Pid, Signal},
};

const PATIENCE: Duration = Duration::from_secs(120);

/// A `berthd` on a simulated host that was started as a service manager starts it: up to three
/// descriptors from number 3 on, named, and a socket to talk to.
struct Service {
    child: Child,
    notify: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Service {
    fn start(dir: tempfile::TempDir, passed: Vec<(&str, OwnedFd)>, more: &[(&str, &str)]) -> Self {
        let notify = UnixDatagram::bind(dir.path().join("notify.sock")).unwrap();
        notify.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let names: Vec<&str> = passed.iter().map(|(name, _)| *name).collect();
        let mut command = Command::new("sh");
        // A process has no other way to give descriptors to the next one than its standard ones.
        let script = "exec 3<&0 4<&1 5<&2 0</dev/null 1>/dev/null 2>\"$LOG\"; \
                      LISTEN_PID=$$ exec \"$@\"";
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_berthd"), "--host", "sim"]);
        command.args(["--config", &at("berthd.toml"), "--state-dir", &at("state")]);
        command.env("LOG", at("log")).env("NOTIFY_SOCKET", at("notify.sock"));
        command.env("LISTEN_FDS", passed.len().to_string());
        command.env("LISTEN_FDNAMES", names.join(":"));
        command.envs(more.iter().copied());
        let mut fds = passed.into_iter().map(|(_, fd)| Stdio::from(fd));
        let mut next = || fds.next().unwrap_or_else(Stdio::null);
        command.stdin(next()).stdout(next()).stderr(next());
        let child = command.spawn().unwrap();
        Self { child, notify, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until it says something to the service manager.
    fn hear(&mut self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut packet = [0; 1024];
        while Instant::now() < deadline {
            if let Ok(length) = self.notify.recv(&mut packet)
                && packet[..length].split(|byte| *byte == b'\n').any(|line| line == what.as_bytes())
            {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended with {status} before {what}:\n{}", self.log());
            }
        }
        panic!("nothing heard of {what}:\n{}", self.log());
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it doesn't end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory with a configuration whose listeners are in it.
fn directory(more: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut text = String::new();
    for (serve, name) in
        [("grpc", "berthd.sock"), ("http", "http.sock"), ("handover", "handover.sock")]
    {
        text += &format!("[[listen]]\nserve = {serve:?}\npath = {:?}\n", at(name));
    }
    fs::write(dir.path().join("berthd.toml"), text + more).unwrap();
    dir
}

fn stream(path: &Path) -> OwnedFd {
    UnixListener::bind(path).unwrap().into()
}

fn unix(path: &Path, kind: SocketType, listens: bool) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    if listens {
        rustix::net::listen(&socket, 16).unwrap();
    }
    socket
}

fn packets(path: &Path) -> OwnedFd {
    unix(path, SocketType::SEQPACKET, true)
}

#[test]
fn sockets_that_were_passed_are_served_and_left_as_they_are() {
    let dir = directory("");
    let at = |name: &str| dir.path().join(name);
    let passed = vec![
        ("http", stream(&at("http.sock"))),
        ("handover", packets(&at("handover.sock"))),
        ("grpc", stream(&at("berthd.sock"))),
    ];
    // It came before there was a daemon, and waits for it.
    let mut early = UnixStream::connect(at("http.sock")).unwrap();
    let request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    early.write_all(request).unwrap();
    let paths = ["http.sock", "handover.sock", "berthd.sock"].map(at);
    let mut service = Service::start(dir, passed, &[]);
    service.hear("READY=1");
    let mut answer = String::new();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "it waits until the daemon is ready: {answer}");

    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(&paths[1]).unwrap()).unwrap();
    rustix::net::send(&socket, b"{}", rustix::net::SendFlags::empty()).unwrap();
    let mut packet = [0; 4096];
    let (length, _) =
        rustix::net::recv(&socket, &mut packet, rustix::net::RecvFlags::empty()).unwrap();
    let packet = String::from_utf8_lossy(&packet[..length]).into_owned();
    assert!(packet.contains("\"ok\":false"), "{packet}");

    let mut preface = UnixStream::connect(&paths[2]).unwrap();
    preface.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    preface.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    let mut frame = [0; 9];
    preface.set_read_timeout(Some(PATIENCE)).unwrap();
    preface.read_exact(&mut frame).unwrap();
    assert_eq!(frame[3], 4, "gRPC's first frame is its settings");

    service.signal(Signal::TERM);
    service.hear("STOPPING=1");
    assert!(service.end().success(), "{}", service.log());
    for path in paths {
        assert!(path.exists(), "{} is the service manager's", path.display());
    }
}

#[test]
fn what_is_not_passed_is_bound_where_it_was_asked_for() {
    let dir = directory("");
    let path = dir.path().join("berthd.sock");
    let http = dir.path().join("http.sock");
    let passed = vec![("grpc", stream(&path))];
    let mut service = Service::start(dir, passed, &[]);
    service.hear("READY=1");
    UnixStream::connect(&http).expect("it listens");
    service.signal(Signal::TERM);
    assert!(service.end().success(), "{}", service.log());
    assert!(path.exists() && !http.exists(), "each removes what it made");
}

#[test]
fn listeners_that_are_there_by_default_are_left_out_unless_they_were_passed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("g.sock");
    let text = format!("[[listen]]\nserve = \"grpc\"\npath = {:?}\n", path.display().to_string());
    fs::write(dir.path().join("berthd.toml"), text).unwrap();
    let mut service = Service::start(dir, vec![("grpc", stream(&path))], &[]);
    service.hear("READY=1");
    let log = service.log();
    assert_eq!(log.matches("listening").count(), 1, "{log}");
    assert!(log.contains("left out"), "{log}");
}

/// What a daemon that was passed this says before it ends.
fn refused(dir: tempfile::TempDir, passed: Vec<(&str, OwnedFd)>) -> String {
    let mut service = Service::start(dir, passed, &[]);
    let status = service.end();
    assert_eq!(status.code(), Some(1), "{}", service.log());
    service.log()
}

#[test]
fn sockets_that_cannot_be_used_are_named_with_the_way_out() {
    type Make = fn(&Path) -> OwnedFd;
    let tcp: Make = |_| TcpListener::bind("127.0.0.1:0").unwrap().into();
    let cases: &[(&str, Make, &str)] = &[
        ("berthd.socket", stream, "socket \"berthd.socket\" of the service manager: not a name"),
        ("", stream, "not a name that berthd knows; write FileDescriptorName="),
        ("grpc", packets, "grpc is not spoken over a socket of this type; use ListenStream="),
        ("handover", stream, "handover is not spoken over a socket of this type; use ListenSeq"),
        ("http", |path| unix(path, SocketType::DGRAM, false), "http is not spoken over"),
        ("http", |path| unix(path, SocketType::STREAM, false), "it doesn't listen; leave Accept"),
        ("http", |path| File::create(path).unwrap().into(), "not a socket; pass what"),
        ("grpc", tcp, "gRPC over TCP needs TLS"),
        ("handover", tcp, "descriptors travel over unix sockets only"),
        ("http", tcp, "passed it as http, but no listener is there; add a [[listen]]"),
        ("http", stream, "passed it as http, but no listener is there; add a [[listen]]"),
    ];
    for (name, make, expected) in cases {
        let dir = directory("");
        let socket = make(&dir.path().join("elsewhere.sock"));
        let said = refused(dir, vec![(name, socket)]);
        assert!(said.contains(expected), "{name}\n  said  {said}\n  not   {expected}");
    }
}

#[test]
fn a_socket_is_passed_once_and_lets_in_no_more_than_the_configuration_says() {
    let dir = directory("");
    let path = dir.path().join("http.sock");
    let socket = stream(&path);
    let twice = vec![("http", socket.try_clone().unwrap()), ("http", socket)];
    assert!(refused(dir, twice).contains("passed it twice"));

    let dir = directory("");
    let path = dir.path().join("http.sock");
    let socket = stream(&path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let said = refused(dir, vec![("http", socket)]);
    assert!(said.contains("its unit gives it mode 0666, the configuration 0660"), "{said}");
}

#[test]
fn an_environment_that_no_service_manager_sets_is_refused() {
    for (variables, expected) in [
        (&[("LISTEN_FDS", "many")][..], "LISTEN_FDS=\"many\" is not what"),
        (&[("LISTEN_FDS", "2")], "LISTEN_FDNAMES has 1 names and LISTEN_FDS 2 descriptors"),
        (&[("WATCHDOG_USEC", "soon")], "WATCHDOG_USEC=soon is no number; let a service manager"),
    ] {
        let dir = directory("");
        let socket = stream(&dir.path().join("http.sock"));
        let mut service = Service::start(dir, vec![("http", socket)], variables);
        assert_eq!(service.end().code(), Some(1), "{}", service.log());
        assert!(service.log().contains(expected), "{}", service.log());
    }
}

#[test]
fn it_beats_from_the_moment_it_is_ready_on() {
    let mut service = Service::start(directory(""), Vec::new(), &[("WATCHDOG_USEC", "2000000")]);
    service.hear("READY=1");
    for _ in 0..3 {
        service.hear("WATCHDOG=1");
    }
    let mut unwatched = Service::start(
        directory(""),
        Vec::new(),
        &[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "1")],
    );
    unwatched.hear("READY=1");
    let mut packet = [0; 1024];
    unwatched.notify.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert!(unwatched.notify.recv(&mut packet).is_err(), "the watchdog is another process's");
}

#[test]
fn a_reload_is_told_and_ends_nothing() {
    let mut service = Service::start(directory(""), Vec::new(), &[]);
    service.hear("READY=1");
    let listeners = fs::read_to_string(service.path("berthd.toml")).unwrap();
    for more in ["[limits]\nwatchers = 5\n", "[limits]\nwatchers = 0\n"] {
        fs::write(service.path("berthd.toml"), listeners.clone() + more).unwrap();
        service.signal(Signal::HUP);
        service.hear("RELOADING=1");
        service.hear("READY=1");
    }
    let log = service.log();
    assert!(log.contains("the configuration is in force"), "{log}");
    assert!(log.contains("the last configuration stays in force"), "{log}");
    service.signal(Signal::TERM);
    service.hear("STOPPING=1");
    assert!(service.end().success(), "{}", service.log());
}
