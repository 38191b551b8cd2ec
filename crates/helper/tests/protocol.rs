//! The built helper, asked by the client and by hand.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic as tests do")]

use std::{
    io::Write,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use berth_helper::{Connected, Deadlines, Forked};
use berth_host::{
    Act, ActOutcome, HostError, PciAddress, Privileged,
    linux::testing::{ConfigBytes, FakeDevice, FakeTree},
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

const HELPER: &str = env!("CARGO_BIN_EXE_berth-helper");

fn device() -> PciAddress {
    "0000:00:05.0".parse().unwrap()
}

fn machine() -> (tempfile::TempDir, FakeTree) {
    let dir = tempfile::tempdir().unwrap();
    let tree = FakeTree::at(dir.path()).unwrap();
    let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
    tree.add(&FakeDevice::new(device(), &config).group(8)).unwrap();
    (dir, tree)
}

fn patient() -> Deadlines {
    Deadlines { bind_ms: 60_000, reset_ms: 60_000, sriov_ms: 60_000, other_ms: 60_000 }
}

fn forked(root: &Path) -> Forked {
    Forked::new(HELPER, root, patient())
}

/// One act that writes and one that reads are done on the tree.
fn acts(helper: &dyn Privileged, root: &Path) {
    let set = Act::Override { device: device(), driver: Some("vfio-pci".into()) };
    assert!(matches!(helper.perform(&set), Ok(ActOutcome::Done)));
    let place = root.join("sys/bus/pci/devices/0000:00:05.0/driver_override");
    assert_eq!(std::fs::read_to_string(place).unwrap(), "vfio-pci");
    let config = helper.perform(&Act::ReadConfig { device: device() }).unwrap();
    assert!(matches!(config, ActOutcome::Config(bytes) if bytes[..2] == [0x34, 0x12]));
}

#[test]
fn acts_are_done_in_another_process() {
    let (_dir, tree) = machine();
    let helper = forked(tree.root());
    acts(&helper, tree.root());
    let reset = helper.perform(&Act::Reset { device: device() }).unwrap();
    assert!(matches!(reset, ActOutcome::Reset(outcome) if outcome.as_str() == "not_possible"));
}

/// The helper that has been started for the next act, by its process id.
fn waiting(root: &Path) -> i32 {
    let begin = Instant::now();
    loop {
        // Those of one thread each: whoever started it has ended by now, and left it to the others.
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children"));
        let pids: Vec<i32> = tasks
            .filter_map(|task| of(task).ok())
            .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|pid| pid.parse().ok())
            .filter(|pid| is_of(*pid, root))
            .collect();
        if let [pid] = pids[..] {
            return pid;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{pids:?} wait");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether it is a helper that works below this root.
fn is_of(pid: i32, root: &Path) -> bool {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).any(|word| word == root.as_os_str().as_encoded_bytes())
}

#[test]
fn the_next_helper_waits_and_does_one_act() {
    let (_dir, tree) = machine();
    let helper = forked(tree.root());
    acts(&helper, tree.root());
    let first = waiting(tree.root());
    acts(&helper, tree.root());
    let second = waiting(tree.root());
    assert_ne!(first, second, "it did two acts");
    let begin = Instant::now();
    while is_of(first, tree.root()) {
        assert!(begin.elapsed() < Duration::from_secs(60), "it did its act, and lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
    // One that was ended meanwhile is not asked.
    let pid = rustix::process::Pid::from_raw(second).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    while is_of(second, tree.root()) {
        std::thread::sleep(Duration::from_millis(10));
    }
    acts(&helper, tree.root());
    // Nobody is left behind with the client gone.
    let third = waiting(tree.root());
    drop(helper);
    while is_of(third, tree.root()) {
        assert!(begin.elapsed() < Duration::from_secs(60), "nobody can ask it any more");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn acts_are_done_by_whoever_listens_at_the_socket() {
    let (dir, tree) = machine();
    let path = dir.path().join("helper.sock");
    let socket = listener(&path, 64);
    let root = tree.root().to_owned();
    // As a service manager does with Accept=yes: a process for each connection.
    let manager = std::thread::spawn(move || {
        for _ in 0..3 {
            let connection = rustix::net::accept(&socket).unwrap();
            let mut command = Command::new(HELPER);
            command.arg("--sysfs-root").arg(&root).stdin(Stdio::from(connection));
            let mut child = command.stderr(Stdio::null()).spawn().unwrap();
            drop(command);
            assert!(child.wait().unwrap().success());
        }
    });
    let helper = Connected::new(&path, patient());
    acts(&helper, tree.root());
    let gone: PciAddress = "0000:0f:00.0".parse().unwrap();
    let error = helper.perform(&Act::Unbind { device: gone }).unwrap_err();
    assert_eq!(error, HostError::NoDevice(gone));
    manager.join().unwrap();
}

#[test]
fn a_socket_that_nobody_serves_is_named_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("helper.sock");
    let said = |helper: &Connected| {
        let error = helper.perform(&Act::OpenIommu).unwrap_err();
        assert!(matches!(error, HostError::Helper { still_running: false, .. }), "{error}");
        error.to_string()
    };
    let helper = Connected::new(&path, patient());
    let missing = said(&helper);
    drop(listener(&path, 1));
    let left_behind = said(&helper);
    for text in [&missing, &left_behind] {
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains("systemctl start berth-helper.socket"), "{text}");
    }
    assert_ne!(missing, left_behind);
}

#[test]
fn a_manager_that_accepts_nothing_costs_the_deadline_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("helper.sock");
    let _socket = listener(&path, 0);
    let helper = Connected::new(&path, Deadlines { other_ms: 300, ..patient() });
    let begin = Instant::now();
    let mut errors = Vec::new();
    // The first waits in the backlog, the later ones for a place in it.
    for _ in 0..3 {
        errors.push(helper.perform(&Act::OpenIommu).unwrap_err());
    }
    assert!(begin.elapsed() < Duration::from_secs(60));
    assert!(matches!(errors[0], HostError::Helper { still_running: true, .. }), "{}", errors[0]);
    let last = errors.pop().unwrap();
    assert!(matches!(last, HostError::Helper { still_running: false, .. }), "{last}");
    assert!(last.to_string().contains("connect to"), "{last}");
}

#[test]
fn errors_come_back_as_they_were() {
    let (_dir, tree) = machine();
    let helper = forked(tree.root());
    let gone: PciAddress = "0000:0f:00.0".parse().unwrap();
    let error = helper.perform(&Act::Unbind { device: gone }).unwrap_err();
    assert_eq!(error, HostError::NoDevice(gone));
    let bind = Act::Bind { device: device(), driver: "vfio-pci".into() };
    let error = helper.perform(&bind).unwrap_err();
    let direct = berth_host::linux::acts::perform(tree.root(), &bind).unwrap_err();
    assert_eq!(error, direct);
}

#[test]
fn a_helper_that_hangs_costs_its_deadline_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("hangs");
    let pid = dir.path().join("pid");
    // The next one, which is started while this one is waited for, ends at once.
    script(&program, &format!("set -C; echo $$ > {} || exit; exec sleep 600", pid.display()));
    let helper = Forked::new(&program, "/", Deadlines { bind_ms: 300, ..patient() });
    let begin = Instant::now();
    let error = until_started(|| helper.perform(&Act::Unbind { device: device() }));
    assert!(begin.elapsed() < Duration::from_secs(60));
    let HostError::Helper { verb, object, still_running, .. } = error else { panic!("{error}") };
    assert_eq!((verb.as_str(), object.as_str()), ("unbind", "0000:00:05.0"));
    assert!(still_running);
    end(&pid);
}

#[test]
fn a_helper_that_dies_or_is_missing_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("dies");
    script(&program, "exit 3");
    for program in [program, PathBuf::from("/nonexistent/berth-helper")] {
        let helper = Forked::new(&program, "/", patient());
        let error = until_started(|| helper.perform(&Act::OpenIommu));
        assert!(
            matches!(error, HostError::Helper { still_running: false, .. }),
            "{}: {error}",
            program.display()
        );
    }
}

#[test]
fn garbage_in_is_an_error_out() {
    for garbage in [&b"garbage"[..], b"{}", &[0; 70_000]] {
        let (ours, theirs) = pair();
        let mut child = helper_on(Stdio::from(theirs));
        rustix::net::send(&ours, garbage, SendFlags::NOSIGNAL).unwrap();
        let mut answer = [0; 4096];
        let (count, _) = rustix::net::recv(&ours, &mut answer[..], RecvFlags::empty()).unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]);
        assert!(answer.starts_with(r#"{"v":1,"answer":{"error":{"helper":"#), "{answer}");
        assert_eq!(child.wait().unwrap().code(), Some(2));
    }
}

#[test]
fn what_is_no_socket_is_refused() {
    let mut child = helper_on(Stdio::piped());
    let mut input = child.stdin.take().unwrap();
    let _ = input.write_all(br#"{"v":1,"act":{"verb":"open-iommu"}}"#);
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    // One that was never asked is no failure that anybody needs to hear of.
    let (ours, theirs) = pair();
    drop(ours);
    assert_eq!(helper_on(Stdio::from(theirs)).wait().unwrap().code(), Some(0));
}

fn pair() -> (OwnedFd, OwnedFd) {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap()
}

fn listener(path: &Path, backlog: i32) -> OwnedFd {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, backlog).unwrap();
    socket
}

fn helper_on(stdin: Stdio) -> std::process::Child {
    Command::new(HELPER)
        .args(["--sysfs-root", "/nonexistent"])
        .stdin(stdin)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn script(path: &Path, body: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The error of a call, tried again while another thread's fork still has the script open for
/// writing.
fn until_started(call: impl Fn() -> Result<ActOutcome, HostError>) -> HostError {
    loop {
        let error = call().unwrap_err();
        if !error.to_string().contains("Text file busy") {
            return error;
        }
    }
}

/// Ends the process that writes its id into a file.
fn end(pid: &Path) {
    let begin = Instant::now();
    let written = || std::fs::read_to_string(pid).ok()?.strip_suffix('\n')?.parse().ok();
    let pid: i32 = loop {
        if let Some(pid) = written() {
            break pid;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "the script never ran");
        std::thread::sleep(Duration::from_millis(10));
    };
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
