//! A function's health, read from fake machines.

use super::*;
use crate::{AerCounters, Health, LinkRate, LinkState};
use testing::{ConfigBytes, FakeDevice, FakeTree};

const PORT: &str = "0000:00:1c.0";
const NIC: &str = "0000:01:00.0";
const WIDE: LinkRate = LinkRate { width: 16, speed: 16_000 };

fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// A device below a port.
fn fake() -> (tempfile::TempDir, FakeTree, LinuxHost) {
    let dir = tempfile::tempdir().unwrap();
    let tree = FakeTree::at(dir.path()).unwrap();
    let port = ConfigBytes::port(0x1b36, 0x000c, 1);
    tree.add(&FakeDevice::new(at(PORT), &port)).unwrap();
    let nic = ConfigBytes::endpoint(0x8086, 0x10c9, 0x02_00_00);
    tree.add(&FakeDevice::new(at(NIC), &nic).below(at(PORT)).group(2)).unwrap();
    let privileged = Arc::new(Direct::new(tree.root()));
    let host = LinuxHost::new(LinuxConfig { root: tree.root().to_owned(), privileged });
    (dir, tree, host)
}

fn health(host: &LinuxHost) -> Health {
    host.health(at(NIC)).unwrap()
}

#[test]
fn a_function_that_tells_nothing_but_answers() {
    let (_dir, _tree, host) = fake();
    assert_eq!(health(&host), Health { answers: Some(true), ..Health::default() });
    let missing = host.health(at("0000:7f:00.0"));
    assert_eq!(missing, Err(HostError::NoDevice(at("0000:7f:00.0"))));
}

#[test]
fn counters_link_and_power_are_read() {
    let (_dir, tree, host) = fake();
    let now = LinkRate { width: 4, speed: 2_500 };
    let counted = AerCounters { correctable: 7, nonfatal: 3, fatal: 1 };
    tree.power(at(NIC), "D0", "active").unwrap();
    tree.aer(at(NIC), counted).unwrap();
    tree.link_rate(at(NIC), WIDE, Some(now)).unwrap();
    let mut link = LinkState { current: now, device: WIDE, port: None };
    assert_eq!(
        health(&host),
        Health {
            power_state: "D0".to_owned(),
            runtime_status: "active".to_owned(),
            aer: Some(counted),
            answers: Some(true),
            link: Some(link),
        }
    );
    // The slot has less than the card.
    let narrow = LinkRate { width: 8, speed: 8_000 };
    tree.link_rate(at(PORT), narrow, Some(now)).unwrap();
    link.port = Some(narrow);
    assert_eq!(health(&host).link, Some(link));
    assert_eq!(link.reachable(), narrow);
}

#[test]
fn what_ends_no_link_has_none() {
    let (_dir, tree, host) = fake();
    let none = LinkRate { width: 0, speed: 0 };
    tree.link_rate(at(NIC), none, Some(none)).unwrap();
    assert_eq!(health(&host).link, None);
    let unknown = LinkRate { width: u8::MAX, speed: 0 };
    tree.link_rate(at(NIC), unknown, Some(unknown)).unwrap();
    assert_eq!(health(&host).link, None);
}

/// A fifo blocks whoever opens it, as long as nobody writes: so does a read that wakes a device.
#[test]
fn a_device_that_sleeps_is_not_touched() {
    let (_dir, tree, host) = fake();
    let host = Arc::new(host);
    tree.link_rate(at(NIC), WIDE, Some(WIDE)).unwrap();
    let counted = AerCounters { correctable: 1, nonfatal: 0, fatal: 0 };
    tree.aer(at(NIC), counted).unwrap();
    let files = ["config", "current_link_width", "current_link_speed", "max_link_width"];
    for file in files {
        let path = tree.root().join(format!("sys/devices/{}/{file}", tree.place(at(NIC))));
        std::fs::remove_file(&path).unwrap();
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, 0o644.into(), 0).unwrap();
    }
    for (state, runtime) in [("D3hot", "suspended"), ("D3cold", "suspended"), ("D3hot", "active")] {
        tree.power(at(NIC), state, runtime).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let looks = Arc::clone(&host);
        // One that blocks is left behind.
        std::thread::spawn(move || sender.send(health(&looks)));
        let found = receiver.recv_timeout(std::time::Duration::from_secs(10));
        let found = found.expect("it read what wakes the device");
        assert_eq!((found.answers, found.link, found.aer), (None, None, Some(counted)));
    }
}

#[test]
fn a_function_that_is_gone_answers_with_all_ones() {
    let (_dir, tree, host) = fake();
    tree.link_rate(at(NIC), WIDE, Some(WIDE)).unwrap();
    let config = format!("sys/devices/{}/config", tree.place(at(NIC)));
    tree.file(&config, [0xff; 64]).unwrap();
    let found = health(&host);
    assert_eq!((found.answers, found.link), (Some(false), None));
    // A virtual function has no ids there, and answers.
    let mut bytes = [0xff_u8; 64];
    bytes[4..8].copy_from_slice(&[0x06, 0x04, 0x10, 0x00]);
    tree.file(&config, bytes).unwrap();
    assert_eq!(health(&host).answers, Some(true));
    // Nothing can be said of what can't be read.
    tree.file(&config, []).unwrap();
    assert_eq!(health(&host).answers, None);
}
