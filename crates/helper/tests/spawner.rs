//! Helpers that another process starts, for one that can't.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic as tests do")]

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use berth_helper::{Deadlines, Spawned, spawner};
use berth_host::{
    Act, ActOutcome, HostError, PciAddress, Privileged as _,
    linux::testing::{ConfigBytes, FakeDevice, FakeTree},
};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};

const HELPER: &str = env!("CARGO_BIN_EXE_berth-helper");

/// A spawner, which is a thread here, and who asks it.
fn spawned(program: &Path, root: &Path) -> (Spawned, JoinHandle<Result<(), Errno>>) {
    let (ours, theirs): (OwnedFd, OwnedFd) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let (program, root) = (program.to_owned(), root.to_owned());
    let spawner = std::thread::spawn(move || spawner::run(theirs, &program, &root));
    (Spawned::with(ours, Deadlines::default()), spawner)
}

#[test]
fn acts_are_done_by_helpers_that_another_process_starts() {
    let device: PciAddress = "0000:00:05.0".parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tree = FakeTree::at(dir.path()).unwrap();
    let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
    tree.add(&FakeDevice::new(device, &config).group(8)).unwrap();
    let (helper, spawner) = spawned(Path::new(HELPER), tree.root());
    for driver in ["vfio-pci", "nvme", "vfio-pci"] {
        let set = Act::Override { device, driver: Some(driver.to_owned()) };
        assert!(matches!(helper.perform(&set), Ok(ActOutcome::Done)));
        let place = tree.root().join("sys/bus/pci/devices/0000:00:05.0/driver_override");
        assert_eq!(std::fs::read_to_string(place).unwrap(), driver);
    }
    // With the last one who could ask it ends.
    assert!(!spawner.is_finished());
    drop(helper);
    assert_eq!(spawner.join().unwrap(), Ok(()));
}

#[test]
fn a_program_that_can_not_be_started_is_named() {
    let program = PathBuf::from("/nonexistent/berth-helper");
    let (helper, _spawner) = spawned(&program, Path::new("/"));
    // The one that waits for the second act has failed by then.
    for _ in 0..2 {
        let error = helper.perform(&Act::OpenIommu).unwrap_err();
        assert!(matches!(error, HostError::Helper { still_running: false, .. }), "{error}");
        assert!(error.to_string().contains("/nonexistent/berth-helper"), "{error}");
    }
}

#[test]
fn a_spawner_that_has_ended_is_an_error_with_the_way_out() {
    let (helper, spawner) = spawned(Path::new(HELPER), Path::new("/"));
    let (ours, theirs): (OwnedFd, OwnedFd) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    drop(theirs);
    let error = Spawned::with(ours, Deadlines::default()).perform(&Act::OpenIommu).unwrap_err();
    assert!(error.to_string().contains("restart berthd"), "{error}");
    drop(helper);
    spawner.join().unwrap().unwrap();
}
