//! `berth run` with a real `berthd` on the simulated host: what the program gets, whose it is, and
//! what is refused before anything is fetched.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic as tests do")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Alone in its group, without a driver.
const DEVICE: &str = "0000:00:06.0";

struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing is owed to a test's daemon; its directory goes with it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let berthd = PathBuf::from(env!("CARGO_BIN_EXE_berth")).with_file_name("berthd");
        assert!(berthd.exists(), "cargo build builds {}", berthd.display());
        let socket = |name: &str| format!("unix:{}", dir.path().join(name).display());
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(berthd)
            .args(["--host", "sim:small", "--state-dir"])
            .arg(dir.path().join("state"))
            .args(["--listen-grpc", &socket("berthd.sock")])
            .args(["--listen-http", &socket("http.sock")])
            .args(["--listen-handover", &socket("handover.sock")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let daemon = Self { child, dir };
        daemon.until("berthd answers", || daemon.berth(&["capabilities"]).status.success());
        daemon
    }

    fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !is_so() {
            let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(begin.elapsed() < PATIENCE, "{what}: not yet\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        let endpoint = format!("unix:{}", self.dir.path().join("berthd.sock").display());
        command.args(args).env("BERTH_ENDPOINT", endpoint).env("NO_COLOR", "1");
        command
    }

    fn berth(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn run(&self, reservation: &str, words: &[&str]) -> Output {
        self.berth(&[&["run", "--reservation", reservation, "--"], words].concat())
    }

    fn reserve(&self, more: &[&str]) -> String {
        let words = ["-o", "json", "reserve", "--holder", "vm", "--policy", "exclusive"];
        let output = self.berth(&[&words, ["--device", DEVICE].as_slice(), more].concat());
        assert!(output.status.success(), "{}", err(&output));
        let reservation: Value = serde_json::from_slice(&output.stdout).unwrap();
        reservation["id"].as_str().unwrap().to_owned()
    }

    fn show(&self, reservation: &str) -> Value {
        let output = self.berth(&["-o", "json", "reservation", "show", reservation]);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn state(&self, reservation: &str) -> String {
        self.show(reservation)["state"].as_str().unwrap_or_default().to_owned()
    }

    /// A program of that name which prints its arguments and waits for its input to end.
    fn program(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, "#!/bin/sh\necho \"$@\"\nreadlink /proc/$$/fd/*\necho end\nread line\n")
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A program that runs, and what it said so far.
struct Running {
    child: Child,
    said: Vec<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.map(Result::unwrap).take_while(|line| line != "end").collect();
        Self { child, said }
    }

    /// Its open files that the simulated kernel made.
    fn simulated(&self) -> usize {
        self.said.iter().filter(|line| line.starts_with("/memfd:sim-")).count()
    }
}

#[test]
fn the_program_is_the_holder_and_has_what_was_handed_over() {
    let daemon = Daemon::start();
    let reservation = daemon.reserve(&["--delivery", "bound"]);
    let script = "echo $0 $1; readlink /proc/$$/fd/$0 /proc/$$/fd/$1; echo $BERTH_RESERVATION; \
                  echo $BERTH_EPOCH; echo $BERTH_FDS; echo end; read line";
    let words = ["sh", "-c", script, "{device}", "{iommufd}"];
    let run = ["run", "--reservation", &reservation, "--"];
    let mut program = Running::start(daemon.command(&[&run, words.as_slice()].concat()));
    let [numbers, device, iommufd, id, epoch, fds] = program.said.as_slice() else {
        panic!("{:?}", program.said);
    };
    assert!(device.starts_with(&format!("/memfd:sim-{DEVICE}")), "{device}");
    assert!(iommufd.starts_with("/memfd:sim-iommu"), "{iommufd}");
    assert_eq!(id, &reservation);
    let record = daemon.show(&reservation);
    assert_eq!(record["epoch"].as_str(), Some(epoch.as_str()));
    let fds: Value = serde_json::from_str(fds).unwrap();
    assert_eq!(format!("{} {}", fds[0]["fd"], fds[1]["fd"]), *numbers);
    assert_eq!((&fds[0]["kind"], &fds[0]["address"]), (&"device".into(), &DEVICE.into()));
    // Attached on the way, and by the very process that runs.
    assert_eq!(record["state"], "HELD");
    assert_eq!(record["claims"][0]["processes"][0]["pid"], program.child.id());
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    daemon.until("the holder's end is seen", || daemon.state(&reservation) == "RESERVED");
}

#[test]
fn qemu_gets_cdevs_and_an_iommufd_in_its_words() {
    let daemon = Daemon::start();
    let reservation = daemon.reserve(&["--delivery", "unbound"]);
    let qemu = daemon.program("qemu-system-x86_64");
    let words = [qemu.as_str(), "-m", "1M", "-device", "vfio-pci,host=00:06.0,id=disk"];
    let run = ["run", "--reservation", &reservation, "--"];
    let mut program = Running::start(daemon.command(&[&run, words.as_slice()].concat()));
    let line = program.said[0].clone();
    assert!(line.starts_with("-m 1M -device vfio-pci,fd="), "{line}");
    assert!(line.contains(",iommufd=berth0,id=disk -object iommufd,id=berth0,fd="), "{line}");
    assert!(!line.contains("host="), "{line}");
    assert_eq!(program.simulated(), 2, "{:?}", program.said);
    assert_eq!(daemon.state(&reservation), "HANDED");
    drop(program.child.stdin.take());
    program.child.wait().unwrap();
    daemon.until("the holder's end is seen", || daemon.state(&reservation) == "RESERVED");
}

#[test]
fn paths_need_no_descriptors() {
    let daemon = Daemon::start();
    let reservation = daemon.reserve(&["--delivery", "node", "--backend", "type1"]);
    let run = ["run", "--reservation", &reservation, "--"];
    let qemu = daemon.program("kvm");
    let mut program = Running::start(daemon.command(&[&run, [qemu.as_str()].as_slice()].concat()));
    assert_eq!(program.said[0], format!("-device vfio-pci,host={DEVICE}"));
    assert_eq!(program.simulated(), 0, "{:?}", program.said);
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    daemon.until("the holder's end is seen", || daemon.state(&reservation) == "RESERVED");
    let other = daemon.program("driver");
    let words = [other.as_str(), "{group:00:06.0}", "{address}"];
    let mut program = Running::start(daemon.command(&[&run, words.as_slice()].concat()));
    assert_eq!(program.said[0], format!("/dev/vfio/3 {DEVICE}"));
    program.child.kill().unwrap();
    program.child.wait().unwrap();
}

#[test]
fn without_the_grpc_socket_the_hand_over_socket_will_do() {
    let daemon = Daemon::start();
    let reservation = daemon.reserve(&["--delivery", "unbound"]);
    let handover = daemon.dir.path().join("handover.sock");
    let other = daemon.program("driver");
    let mut command = daemon.command(&["--endpoint", "unix:/nonexistent/berthd.sock", "run"]);
    command.args(["--reservation", &reservation, "--handover"]).arg(handover);
    command.args(["--", &other, "{device}/{iommufd}"]);
    let mut program = Running::start(command);
    let (device, iommufd) = program.said[0].split_once('/').unwrap();
    assert!(device.parse::<u32>().is_ok() && iommufd.parse::<u32>().is_ok(), "{:?}", program.said);
    program.child.kill().unwrap();
    program.child.wait().unwrap();
}

#[test]
fn what_can_t_be_is_told_before_anything_is_fetched() {
    let daemon = Daemon::start();
    let bound = daemon.reserve(&["--delivery", "bound"]);
    let attached = || daemon.state(&bound) != "RESERVED";
    let qemu = daemon.run(&bound, &["qemu-system-x86_64", "-m", "1G"]);
    assert_eq!(qemu.status.code(), Some(3));
    assert!(err(&qemu).contains("--delivery unbound"), "{}", err(&qemu));
    for word in ["{nonsense}", "{device:65:00.0}", "{container}", "{node}", "{"] {
        let output = daemon.run(&bound, &["true", word]);
        assert_eq!(output.status.code(), Some(2), "{word}: {}", err(&output));
        assert!(err(&output).contains(word), "{}", err(&output));
    }
    assert_eq!(daemon.run("r-none", &["true"]).status.code(), Some(4));
    let dry = daemon.berth(&["run", "--dry-run", "--reservation", &bound, "--", "./x", "{device}"]);
    let line = format!("./x '{{device:{DEVICE}}}'\n");
    assert_eq!(String::from_utf8_lossy(&dry.stdout), line, "{}", err(&dry));
    assert!(!attached(), "something was fetched");
}

#[test]
fn refusals_of_the_hand_over_keep_their_reason_and_way_out() {
    let daemon = Daemon::start();
    let reservation = daemon.reserve(&["--delivery", "bound", "--for", "uid:60001"]);
    let output = daemon.run(&reservation, &["true"]);
    assert_eq!(output.status.code(), Some(6), "{}", err(&output));
    assert!(err(&output).contains("NOT_FOR_YOU"), "{}", err(&output));
    assert!(err(&output).contains("to resolve"), "{}", err(&output));
    assert_eq!(daemon.state(&reservation), "RESERVED", "attached for nobody");
    let old = ["run", "--epoch", "1", "--reservation", &reservation, "--", "true"];
    assert_ne!(daemon.berth(&old).status.code(), Some(0));
    let missing = PathBuf::from("/nonexistent/handover.sock");
    let path = missing.display().to_string();
    let away = ["run", "--handover", &path, "--reservation", &reservation, "--", "true"];
    let away = daemon.berth(&away);
    assert_eq!(away.status.code(), Some(5), "{}", err(&away));
    assert!(err(&away).contains("--handover"), "{}", err(&away));
}

#[test]
fn a_program_that_can_t_be_started_is_named_and_hands_all_back() {
    let daemon = Daemon::start();
    let reservation = daemon.reserve(&["--delivery", "unbound"]);
    let closed = daemon.dir.path().join("closed");
    fs::write(&closed, "").unwrap();
    for program in ["/nonexistent/qemu".to_owned(), closed.display().to_string()] {
        let output = daemon.run(&reservation, &[&program]);
        assert_eq!(output.status.code(), Some(1), "{}", err(&output));
        assert!(err(&output).contains(&program), "{}", err(&output));
        daemon.until("the end is seen", || daemon.state(&reservation) == "RESERVED");
    }
    let old = ["run", "--epoch", "1", "--reservation", &reservation, "--", "true"];
    let old = daemon.berth(&old);
    assert_eq!(old.status.code(), Some(3), "{}", err(&old));
    assert!(err(&old).contains("STALE_EPOCH"), "{}", err(&old));
}

#[test]
fn a_guest_larger_than_what_may_be_locked_is_warned_of() {
    let daemon = Daemon::start();
    let reservation = daemon.reserve(&["--delivery", "unbound"]);
    let qemu = daemon.program("qemu-system-x86_64");
    // Without capabilities: with CAP_IPC_LOCK there is no limit.
    let mut command = Command::new("sh");
    let berth = env!("CARGO_BIN_EXE_berth");
    let powerless = match rustix::process::geteuid().is_root() {
        true => "setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock ",
        false => "",
    };
    let endpoint = daemon.dir.path().join("berthd.sock");
    let line = format!(
        "ulimit -l 64; exec {powerless}{berth} run --reservation {reservation} -- {qemu} -m 4G"
    );
    command.args(["-c", &line]).env("BERTH_ENDPOINT", format!("unix:{}", endpoint.display()));
    let mut program = Running::start({
        command.stderr(Stdio::piped());
        command
    });
    drop(program.child.stdin.take());
    let mut said = String::new();
    program.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("RLIMIT_MEMLOCK") && said.contains("--memory 4294967296"), "{said}");
    program.child.wait().unwrap();
}
