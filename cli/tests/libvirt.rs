//! libvirt's qemu hook with a real `berthd` on the simulated host, fed with what libvirt passes.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic as tests do")]

mod daemon;

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use daemon::Daemon;
use serde_json::Value;

const GPU: &str = include_str!("libvirt/gpu.xml");
const PLAIN: &str = include_str!("libvirt/plain.xml");
const NAME: &str = "gpu vm";
/// What QEMU's label in the XML says.
const QEMU: u32 = 60001;

/// Who the tests run as, which is whom the hook runs as.
fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whom QEMU runs as: only root's libvirt has another user for it.
fn qemu_uid() -> u32 {
    if me() == 0 { QEMU } else { me() }
}

/// With a rule that makes that user an operator at the hand-over socket.
fn start(operator: u32) -> Daemon {
    Daemon::start(|dir| {
        fs::create_dir(dir.join("run")).unwrap();
        format!(
            "[[listen]]\nserve = \"handover\"\npath = {:?}\nmode = \"0666\"\nrole = \"operator\"\n\
             others = \"holder\"\n[[listen.rule]]\nuid = {operator}\nrole = \"operator\"\n",
            dir.join("handover.sock"),
        )
    })
}

impl Daemon {
    /// What libvirt does: the installed script, with the domain's XML on standard input.
    fn hook(&self, name: &str, operation: &str, suboperation: &str, xml: &str) -> Output {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/libvirt/berth");
        let mut command = Command::new(script);
        command.args([name, operation, suboperation, "-"]);
        command.env("BERTH", env!("CARGO_BIN_EXE_berth")).env("BERTH_ENDPOINT", self.endpoint());
        command.env("BERTH_LIBVIRT_RUN_DIR", self.dir.path().join("run"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A hook that has nothing to do doesn't read.
        drop(child.stdin.take().unwrap().write_all(xml.as_bytes()));
        let output = child.wait_with_output().unwrap();
        // libvirt would take it for the domain's new XML.
        assert!(output.stdout.is_empty(), "{output:?}");
        output
    }

    fn done(&self, operation: &str, suboperation: &str) {
        let output = self.hook(NAME, operation, suboperation, GPU);
        assert!(output.status.success(), "{operation}: {}", err(&output));
        assert_eq!(err(&output), "", "{operation}");
    }

    fn reservations(&self) -> Vec<Value> {
        let output = self.berth(&["-o", "json", "reservation", "list"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let list = list["reservations"].as_array().cloned().unwrap_or_default();
        list.into_iter().filter(|it| it["state"] != "RELEASED").collect()
    }

    fn only(&self) -> Value {
        let list = self.reservations();
        assert_eq!(list.len(), 1, "{list:?}");
        list.into_iter().next().unwrap()
    }

    /// The pid of the process that has the devices.
    fn holder(&self) -> i64 {
        self.only()["claims"][0]["processes"][0]["pid"].as_i64().unwrap_or_default()
    }

    /// A process in QEMU's place, with its pid where libvirt puts it.
    fn qemu(&self) -> Qemu {
        let mut command = Command::new("sleep");
        command.arg("1000");
        if me() == 0 {
            command.uid(QEMU).gid(QEMU);
        }
        let child = command.spawn().unwrap();
        let pid_file = self.dir.path().join("run").join(format!("{NAME}.pid"));
        fs::write(pid_file, format!("{}\n", child.id())).unwrap();
        Qemu(child)
    }
}

struct Qemu(Child);

impl Qemu {
    fn kill(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_alive(pid: i64) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended: who started it is gone, too, or hasn't looked.
    !state.is_empty() && !state.contains(") Z ")
}

#[test]
fn a_domain_has_its_devices_from_prepare_to_release() {
    let daemon = start(me());
    daemon.done("prepare", "begin");
    let prepared = daemon.only();
    assert_eq!(prepared["holder"]["name"], "libvirt/gpu_vm");
    assert_eq!(prepared["holder"]["forIdentity"], format!("uid:{}", qemu_uid()));
    assert_eq!(prepared["label"], "libvirt/0f2cf0a8-5d3a-4b8e-9f0f-0d0e5a8f7a11");
    assert_eq!(prepared["memoryBytes"], (4_u64 << 30).to_string());
    let words = [&prepared["policy"], &prepared["delivery"], &prepared["backend"]];
    assert_eq!(words, ["GROUP", "NODE", "TYPE1"]);
    // The nodes are open to QEMU's user, and the kernel's hold is out of its way.
    assert_eq!(prepared["state"], "HANDED");
    let stand_in = daemon.holder();
    assert!(is_alive(stand_in));
    daemon.done("start", "begin");
    let mut qemu = daemon.qemu();
    daemon.done("started", "begin");
    assert_eq!(daemon.holder(), i64::from(qemu.0.id()));
    daemon.until("the stand-in ends", || !is_alive(stand_in));
    assert_eq!(daemon.only()["id"], prepared["id"], "the stand-in's end ended it");
    daemon.done("reconnect", "begin");
    assert_eq!(daemon.holder(), i64::from(qemu.0.id()));
    qemu.kill();
    daemon.done("stopped", "end");
    daemon.done("release", "end");
    assert_eq!(daemon.reservations(), Vec::<Value>::new());
}

#[test]
fn what_would_be_written_is_told_and_not_done() {
    let daemon = start(me());
    let tried = |operation: &str, suboperation: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(["-o", "json", "libvirt-hook", NAME, operation, suboperation, "--dry-run"]);
        command.env("BERTH_ENDPOINT", daemon.endpoint());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(GPU.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let writes = told["writes"].as_array().unwrap().clone();
        assert!(
            writes.iter().any(|one| one["path"].as_str().unwrap().ends_with("driver_override"))
        );
    };
    tried("prepare", "begin");
    assert!(daemon.reservations().is_empty());
    daemon.done("prepare", "begin");
    let there = daemon.only();
    tried("prepare", "begin");
    tried("release", "end");
    assert_eq!(daemon.only(), there);
    daemon.done("release", "end");
    assert!(daemon.reservations().is_empty());
}

#[test]
fn a_domain_that_did_not_start_keeps_nothing() {
    let daemon = start(me());
    daemon.done("prepare", "begin");
    let stand_in = daemon.holder();
    daemon.done("release", "end");
    assert_eq!(daemon.reservations(), Vec::<Value>::new());
    daemon.until("the stand-in ends", || !is_alive(stand_in));
    // And what libvirt didn't live to release is no obstacle to the next start.
    daemon.done("prepare", "begin");
    let first = daemon.only();
    daemon.done("prepare", "begin");
    assert_ne!(daemon.only()["id"], first["id"]);
    daemon.done("release", "end");
}

#[test]
fn a_device_that_is_taken_keeps_the_domain_from_starting_and_names_its_owner() {
    let daemon = start(me());
    let reserve = ["reserve", "--holder", "pod-7", "--device", "00:06.0", "--policy", "exclusive"];
    assert!(daemon.berth(&reserve).status.success());
    let output = daemon.hook(NAME, "prepare", "begin", GPU);
    assert_eq!(output.status.code(), Some(3), "{}", err(&output));
    let said = err(&output);
    assert!(said.contains("0000:00:06.0") || said.contains("g-"), "{said}");
    assert!(said.contains("pod-7") && said.contains("to resolve"), "{said}");
    assert_eq!(daemon.only()["holder"]["name"], "pod-7");
}

#[test]
fn domains_without_devices_need_no_daemon() {
    let daemon = start(me());
    for (operation, sub) in [("prepare", "begin"), ("started", "begin"), ("release", "end")] {
        let mut command = daemon.command(&["--endpoint", "unix:/nonexistent/berthd.sock"]);
        command.args(["libvirt-hook", "--", "plain", operation, sub, "-"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(PLAIN.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{operation}");
    }
    // With devices a host whose berthd is down starts no domain, and says why.
    let mut command = daemon.command(&["--endpoint", "unix:/nonexistent/berthd.sock"]);
    command.args(["libvirt-hook", "--", NAME, "prepare", "begin", "-"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(GPU.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", err(&output));
}

#[test]
fn what_makes_no_sense_is_refused_with_what_it_is() {
    let daemon = start(me());
    for (name, xml, said) in [
        (NAME, "", "the XML of domain \"gpu vm\": not XML"),
        ("other", GPU, "the XML on standard input is of \"gpu vm\""),
    ] {
        let output = daemon.hook(name, "prepare", "begin", xml);
        assert_eq!(output.status.code(), Some(2), "{}", err(&output));
        assert!(err(&output).contains(said), "{}", err(&output));
    }
    let output = daemon.hook(NAME, "started", "begin", GPU);
    assert!(err(&output).contains("was it prepared?"), "{}", err(&output));
    daemon.done("prepare", "begin");
    let output = daemon.hook(NAME, "started", "begin", GPU);
    assert!(err(&output).contains("gpu vm.pid"), "{}", err(&output));
    daemon.done("release", "end");
    // A domain that was started before the hook was there.
    let output = daemon.hook(NAME, "reconnect", "begin", GPU);
    assert!(output.status.success());
    assert!(err(&output).contains("berth adopt"), "{}", err(&output));
}

#[test]
fn only_who_may_hand_over_for_others_may_be_the_hook() {
    if me() != 0 {
        // Without root libvirt's QEMU is of the same user, who may.
        return;
    }
    let daemon = start(77);
    let output = daemon.hook(NAME, "prepare", "begin", GPU);
    assert_eq!(output.status.code(), Some(6), "{}", err(&output));
    assert!(err(&output).contains("uid:0"), "{}", err(&output));
    // And nothing stays reserved.
    assert_eq!(daemon.reservations(), Vec::<Value>::new());
}
