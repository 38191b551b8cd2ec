use std::time::Duration;

use rustix::io::Errno;

use super::*;
use crate::{HostError, HostUse, ResetOutcome};

fn disk() -> PciAddress {
    address("0000:03:00.0")
}

fn unbind(device: PciAddress) -> Act {
    Act::Unbind { device }
}

#[test]
fn a_device_goes_and_comes_back() {
    let host = small();
    assert_eq!(host.uses(disk()).unwrap()[0].detail, "/srv/data");
    assert_eq!(host.device(disk()).unwrap().driver.as_deref(), Some("nvme"));
    vfio(&host, disk());
    let taken = host.device(disk()).unwrap();
    assert_eq!(taken.driver_override.as_deref(), Some("vfio-pci"));
    assert_eq!(taken.dma, crate::DmaKind::Managed);
    assert!(taken.cdev.unwrap().starts_with("/dev/vfio/devices/vfio"));
    assert!(host.uses(disk()).unwrap().is_empty());
    let back =
        Act::Restore { device: disk(), driver: Some("nvme".to_owned()), driver_override: None };
    host.perform(&back).unwrap();
    let back = host.device(disk()).unwrap();
    assert_eq!((back.driver.as_deref(), back.driver_override), (Some("nvme"), None));
    host.check().unwrap();
}

#[test]
fn restoring_to_vfio_without_an_override_works() {
    let host = small();
    vfio(&host, single());
    host.perform(&unbind(single())).unwrap();
    let act = Act::Restore {
        device: single(),
        driver: Some("vfio-pci".to_owned()),
        driver_override: None,
    };
    host.perform(&act).unwrap();
    let facts = host.device(single()).unwrap();
    assert_eq!((facts.driver.as_deref(), facts.driver_override), (Some("vfio-pci"), None));
}

#[test]
fn drivers_that_can_not_have_a_device() {
    let host = ready();
    let bind = |device, driver: &str| {
        let answer = host.perform(&Act::Bind { device, driver: driver.to_owned() });
        answer.unwrap_err().errno().map(Errno::from_raw_os_error)
    };
    assert_eq!(bind(single(), "no-such-driver"), Some(Errno::NOENT));
    assert_eq!(bind(single(), "nvme"), Some(Errno::NODEV));
    assert_eq!(bind(address("0000:01:00.0"), "vfio-pci"), Some(Errno::INVAL));
    assert!(matches!(host.perform(&unbind(address("0000:77:00.0"))), Err(HostError::NoDevice(_))));
    host.host_driver_unbind(mixed().1).unwrap();
    let _hold = host.hold(11, None).unwrap();
    assert_eq!(bind(mixed().1, "e1000"), Some(Errno::BUSY));
}

#[test]
fn an_unbind_waits_for_the_last_close() {
    let topology = Topology::builtin("small").unwrap().with_helper_timeout_ms(50);
    let host = SimHost::from_topology(topology);
    vfio(&host, single());
    let context = iommufd(&host);
    let device = context.open_device(single()).unwrap();
    let error = host.perform(&unbind(single())).unwrap_err();
    assert!(matches!(error, HostError::Helper { still_running: true, .. }), "{error}");
    assert_eq!(host.device(single()).unwrap().driver.as_deref(), Some("vfio-pci"));
    drop(device);
    let begun = std::time::Instant::now();
    while host.device(single()).unwrap().driver.is_some() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the helper never went on");
        std::thread::sleep(Duration::from_millis(5));
    }
    host.check().unwrap();
}

#[test]
fn resets_go_as_the_device_can() {
    let host = small();
    let reset = |device| match host.perform(&Act::Reset { device }).unwrap() {
        ActOutcome::Reset(outcome) => outcome,
        other => panic!("{other:?}"),
    };
    let config = |device| match host.perform(&Act::ReadConfig { device }).unwrap() {
        ActOutcome::Config(bytes) => bytes,
        other => panic!("{other:?}"),
    };
    assert_eq!(reset(disk()), ResetOutcome::Verified { method: "flr".to_owned() });
    assert!(matches!(reset(single()), ResetOutcome::NotPossible { .. }));
    assert_eq!(config(disk())[..4], [0x36, 0x1b, 0x10, 0x00]);
    let failed = ResetOutcome::Failed { note: String::new() };
    host.set_reset(disk(), &failed).unwrap();
    assert!(matches!(reset(disk()), ResetOutcome::Failed { .. }));
    assert!(config(disk()).iter().all(|byte| *byte == 0xff));
}

#[test]
fn virtual_functions_come_and_go() {
    let host = SimHost::builtin("sriov-nic").unwrap();
    let nic = address("0000:3b:00.0");
    let set = |count| {
        let answer = host.perform(&Act::Sriov { device: nic, count, autoprobe: false });
        answer.map(drop).map_err(|error| error.errno().map(Errno::from_raw_os_error))
    };
    let facts = host.device(nic).unwrap();
    assert_eq!(facts.virtual_functions.len(), 8);
    let first = host.device(facts.virtual_functions[0]).unwrap();
    assert_eq!(first.address, address("0000:3b:01.0"));
    assert_eq!((first.physical_function, first.device), (Some(nic), 0x1889));
    assert_eq!(set(4), Err(Some(Errno::BUSY)));
    assert_eq!(set(65), Err(Some(Errno::RANGE)));
    set(0).unwrap();
    assert!(matches!(host.device(first.address), Err(HostError::NoDevice(_))));
    set(2).unwrap();
    let facts = host.device(nic).unwrap();
    assert_eq!((facts.virtual_functions.len(), facts.sriov_autoprobe), (2, false));
    assert!(host.device(facts.virtual_functions[1]).unwrap().driver.is_none());
    set(0).unwrap();
    host.perform(&Act::Sriov { device: nic, count: 1, autoprobe: true }).unwrap();
    let facts = host.device(nic).unwrap();
    let taken = host.device(facts.virtual_functions[0]).unwrap();
    assert_eq!((facts.sriov_autoprobe, taken.driver.as_deref()), (true, Some("iavf")));
    set(0).unwrap();
    // Without `enable_sriov`, the kernel's default, vfio-pci makes none.
    host.perform(&Act::Bind { device: nic, driver: "vfio-pci".to_owned() }).unwrap();
    assert_eq!(set(1), Err(Some(Errno::NOENT)));
    host.check().unwrap();
}

#[test]
fn devices_come_and_go() {
    let host = ready();
    let new = address("0000:06:00.0");
    let group = host.plug(new, single()).unwrap();
    assert_eq!(host.plug(new, single()), Err(Errno::EXIST));
    vfio(&host, new);
    let device = container(&host).open_device(new).unwrap();
    assert_eq!(host.unplug(new), Err(Errno::BUSY));
    drop(device);
    host.unplug(new).unwrap();
    assert!(!host.scan().unwrap().groups.iter().any(|found| found.number == group));
    host.set_uses(disk(), vec![HostUse::new("swap", "x")]).unwrap();
    assert_eq!(host.uses(disk()).unwrap()[0].kind, "swap");
}

#[test]
fn the_display_lasts_without_a_driver() {
    let host = ready();
    let uses = ["boot-display", "swap"].map(|kind| HostUse::new(kind, "x"));
    host.set_uses(disk(), uses.to_vec()).unwrap();
    let kinds = || host.uses(disk()).unwrap().into_iter().map(|it| it.kind).collect::<Vec<_>>();
    assert_eq!(kinds(), ["boot-display", "swap"]);
    host.host_driver_unbind(disk()).unwrap();
    assert_eq!(kinds(), ["boot-display"]);
    vfio(&host, disk());
    assert!(kinds().is_empty());
}
