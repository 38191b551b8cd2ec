//! What is told of devices that come, go and change drivers.

use std::time::Duration;

use crate::{Host as _, News, PciAddress, Uevents, sim::SimHost};

const DEVICE: &str = "0000:04:00.0";

fn told(uevents: &mut dyn Uevents) -> Vec<(String, PciAddress)> {
    match uevents.next(Duration::ZERO).unwrap() {
        News::Uevents(all) => all.into_iter().map(|one| (one.action, one.device)).collect(),
        News::Dropped => panic!("dropped"),
    }
}

#[test]
fn drivers_and_devices_are_told_in_their_order() {
    let host = SimHost::builtin("small").unwrap();
    let device: PciAddress = DEVICE.parse().unwrap();
    let driver = host.device(device).unwrap().driver.unwrap();
    let mut uevents = host.uevents().unwrap();
    assert_eq!(told(&mut *uevents), []);
    host.host_driver_unbind(device).unwrap();
    host.host_driver_bind(device, &driver).unwrap();
    host.exchange(device).unwrap();
    let words = ["unbind", "bind", "unbind", "remove", "add"];
    assert_eq!(told(&mut *uevents), words.map(|word| (word.to_owned(), device)));
    assert_eq!(told(&mut *uevents), []);
}

#[test]
fn another_device_at_the_address_has_another_number() {
    let host = SimHost::builtin("small").unwrap();
    let device: PciAddress = DEVICE.parse().unwrap();
    let instance = || host.device(device).unwrap().instance.unwrap();
    let first = instance();
    host.host_driver_unbind(device).unwrap();
    assert_eq!(instance(), first);
    host.exchange(device).unwrap();
    assert_ne!(instance(), first);
}

#[test]
fn who_never_reads_is_told_that_some_are_lost() {
    let host = SimHost::builtin("small").unwrap();
    let device: PciAddress = DEVICE.parse().unwrap();
    let mut uevents = host.uevents().unwrap();
    for _ in 0..5000 {
        host.exchange(device).unwrap();
    }
    assert_eq!(uevents.next(Duration::ZERO).unwrap(), News::Dropped);
    host.exchange(device).unwrap();
    assert!(matches!(uevents.next(Duration::ZERO).unwrap(), News::Uevents(all) if !all.is_empty()));
}
