//! Each verb does its act with what it keeps, and nothing else can be done with that.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic as tests do")]

use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use berth_helper::{confine, wire};
use berth_host::{
    Act, ActOutcome, HostError, Node, PciAddress,
    linux::{
        acts,
        testing::{ConfigBytes, FakeDevice, FakeTree},
    },
};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketType},
};

fn device() -> PciAddress {
    "0000:00:05.0".parse().unwrap()
}

/// Two machines that are alike: one for the confined act, one to compare with.
struct Machine {
    _dir: tempfile::TempDir,
    roots: [PathBuf; 2],
}

fn machine() -> Machine {
    let dir = tempfile::tempdir().unwrap();
    let roots = ["one", "other"].map(|name| dir.path().join(name));
    for root in &roots {
        let tree = FakeTree::at(root).unwrap();
        let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
        let other = "0000:00:06.0".parse().unwrap();
        tree.add(&FakeDevice::new(device(), &config).group(8).driver("e1000e").resets("flr"))
            .unwrap();
        tree.add(&FakeDevice::new(other, &config).group(9).driver("vfio-pci")).unwrap();
        for file in [
            "sys/bus/pci/drivers/vfio-pci/bind",
            "sys/bus/pci/drivers/e1000e/bind",
            "sys/bus/pci/drivers/e1000e/unbind",
            "sys/bus/pci/drivers_probe",
            "sys/devices/pci0000:00/0000:00:05.0/sriov_numvfs",
            "sys/devices/pci0000:00/0000:00:05.0/sriov_drivers_autoprobe",
        ] {
            tree.file(file, "").unwrap();
        }
        tree.file("sys/class/vfio/8/dev", "1:3\n").unwrap();
    }
    Machine { _dir: dir, roots }
}

/// Every verb, on the fake machine or on this one.
fn verbs(victims: &[Child; 2]) -> Vec<(Act, bool)> {
    let device = device();
    let [limited, killed] = victims.each_ref().map(|child| {
        let pid = i32::try_from(child.id()).unwrap();
        (pid, start_time(pid))
    });
    vec![
        (Act::Bind { device, driver: "vfio-pci".into() }, false),
        (Act::Unbind { device }, false),
        (Act::Override { device, driver: Some("vfio-pci".into()) }, false),
        (Act::Restore { device, driver: Some("vfio-pci".into()), driver_override: None }, false),
        (Act::Sriov { device, count: 2, autoprobe: false }, false),
        (Act::Reset { device }, false),
        (Act::ReadConfig { device }, false),
        (Act::WhoHolds { nodes: vec!["/dev/vfio/8".into()] }, false),
        (Act::Prlimit { pid: limited.0, start_time: limited.1, memlock_bytes: 2 << 10 }, true),
        (Act::Kill { pid: killed.0, start_time: killed.1, signal: 9 }, true),
        (Act::OpenIommu, true),
        (Act::Access { node: Node::Group(8), uid: 60001, allow: true }, false),
    ]
}

/// So that raising it needs no right.
fn lower_memlock(child: &Child) {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let limit = Rlimit { current: Some(1 << 10), ..getrlimit(Resource::Memlock) };
    prlimit(pid, Resource::Memlock, limit).unwrap();
}

fn start_time(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    rest.split_whitespace().nth(19).unwrap().parse().unwrap()
}

/// Where the child of a test finds its act and its root.
const CHILD: &str = "BERTH_TEST_CONFINED";

#[test]
fn every_verb_works_with_what_it_keeps_and_reaches_nothing_else() {
    let sleeper = || Command::new("sleep").arg("600").spawn().unwrap();
    let mut victims = [sleeper(), sleeper()];
    lower_memlock(&victims[0]);
    let mut seen = Vec::new();
    for (act, here) in verbs(&victims) {
        let Machine { _dir, roots: [one, other] } = machine();
        let root = if here { PathBuf::from("/") } else { one };
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_confined_child", "--nocapture"])
            .env(CHILD, serde_json::to_string(&(&act, &root)).unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let verb = wire::verb(&act);
        let noise = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb}: {said}{noise}");
        let told = said.lines().find_map(|line| line.split_once("outcome ")).map(|it| it.1);
        // The processes are no more what they were.
        if !here {
            let free = outcome(&acts::perform(&other, &act)).replace("other", "one");
            assert_eq!(told, Some(free.as_str()), "{verb}: {noise}");
        }
        if matches!(act, Act::Prlimit { .. } | Act::Kill { .. }) {
            assert_eq!(told, Some("Ok Done"), "{verb}: {noise}");
        }
        assert!(noise.contains("seccomp refuses the system call socket "), "{verb}: {noise}");
        let reads = matches!(act, Act::WhoHolds { .. });
        let without = said.contains("landlock 0\n");
        assert!(!without || reads || !kernel_has_landlock(), "{verb} is kept from no file");
        seen.push(verb);
    }
    assert_eq!(seen.len(), 12);
    let [limited, killed] = &mut victims;
    assert!(!killed.wait().unwrap().success(), "the one that was to be killed");
    assert!(limited.try_wait().unwrap().is_none(), "the other one lives");
    limited.kill().and_then(|()| limited.wait()).unwrap();
}

/// As a thread of its own finds it.
fn kernel_has_landlock() -> bool {
    let enter = || berth_confine::files::Allowed::nothing().enter().is_ok_and(|it| it.abi > 0);
    std::thread::spawn(enter).join().unwrap()
}

fn outcome(answer: &Result<ActOutcome, HostError>) -> String {
    match answer {
        Ok(outcome) => format!("Ok {outcome:?}"),
        Err(error) => format!("Err {error}"),
    }
}

/// Does nothing by itself.
#[test]
fn the_confined_child() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let (act, root): (Act, PathBuf) = serde_json::from_str(&text).unwrap();
    acts::prepare(&root, &act);
    let landlock = confine::enter(&root, &act);
    println!("landlock {landlock}");
    println!("outcome {}", outcome(&acts::perform_prepared(&root, &act)));
    nothing_else(&root, landlock);
}

fn nothing_else(root: &Path, landlock: i32) {
    let denied = Err(Errno::PERM);
    for family in [AddressFamily::UNIX, AddressFamily::INET, AddressFamily::NETLINK] {
        assert_eq!(rustix::net::socket(family, SocketType::DGRAM, None).map(drop), denied);
    }
    let program = Command::new("/bin/true").spawn().map(drop).unwrap_err();
    assert_eq!(program.kind(), ErrorKind::PermissionDenied, "{program}");
    let refused = |answer: std::io::Result<File>, what: &str| {
        let error = answer.map(drop).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
    };
    let of_another = root.join("sys/bus/pci/devices/0000:00:06.0/driver_override");
    refused(OpenOptions::new().write(true).create_new(true).open("/tmp/berth-made"), "a new file");
    if of_another.exists() && landlock > 0 {
        refused(OpenOptions::new().write(true).open(&of_another), "another device");
    }
    // Who looks into other processes can't be kept from files by Landlock: it only reads.
    if landlock > 0 {
        refused(File::open("/etc/shadow"), "/etc/shadow");
        refused(File::open("/etc/passwd"), "/etc/passwd");
    }
    refused(OpenOptions::new().write(true).open("/etc/shadow"), "/etc/shadow for writing");
}
