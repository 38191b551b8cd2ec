//! Descriptors that left keep what they stand for alive.

use std::process::{Command, Stdio};

use super::*;

#[test]
fn a_descriptor_elsewhere_keeps_the_device() {
    let host = ready();
    let context = iommufd(&host);
    let device = context.open_device(single()).unwrap();
    let sent = device.fd().unwrap();
    let again = device.fd().unwrap();
    drop(device);
    assert_eq!(host.probe_free(2), Ok(false));
    drop(sent);
    assert_eq!(host.probe_free(2), Ok(false));
    drop(again);
    assert_eq!(host.probe_free(2), Ok(true));
    host.check().unwrap();
}

#[test]
fn a_device_keeps_its_context() {
    let host = ready();
    let context = iommufd(&host);
    let domain = context.new_domain().unwrap();
    let mut device = context.open_device(single()).unwrap();
    drop(context);
    device.attach(domain).unwrap();
    assert!(matches!(host.ownership(2).unwrap().domain, GroupDomain::Paging(_)));
    drop(device);
    assert_eq!(host.probe_free(2), Ok(true));
}

#[test]
fn a_context_comes_back_by_its_descriptor() {
    let host = ready();
    for backend in [BackendKind::Iommufd, BackendKind::Type1] {
        let context = host.open_context(backend).unwrap();
        let domain = context.new_domain().unwrap();
        let fd = context.fd().unwrap();
        drop(context);
        let context = host.adopt_context(backend, fd).unwrap();
        let mut device = context.open_device(single()).unwrap();
        device.attach(domain).unwrap();
        let stray = std::fs::File::open("/dev/null").unwrap().into();
        assert!(host.adopt_context(backend, stray).is_err());
    }
    assert_eq!(host.probe_free(2), Ok(true));
    let ActOutcome::Fd(fd) = host.perform(&Act::OpenIommu).unwrap() else { panic!("no fd") };
    let context = host.adopt_context(BackendKind::Iommufd, fd).unwrap();
    context.new_domain().unwrap();
}

#[test]
fn a_real_process_is_seen_while_it_has_the_descriptor() {
    let host = ready();
    let context = iommufd(&host);
    let device = context.open_device(single()).unwrap();
    assert!(host.users_of(single()).unwrap().is_empty());
    let sent = device.fd().unwrap();
    assert!(host.users_of(single()).unwrap().is_empty(), "this process is left out");
    let mut child = Command::new("sleep").arg("600").stdin(Stdio::from(sent)).spawn().unwrap();
    let users = host.users_of(single()).unwrap();
    assert_eq!(users.len(), 1, "{users:?}");
    assert_eq!(u32::try_from(users[0].pid).unwrap(), child.id());
    assert!(users[0].what.starts_with("/dev/vfio/devices/vfio"), "{users:?}");
    let nodes = vec![users[0].what.clone()];
    match host.perform(&Act::WhoHolds { nodes }).unwrap() {
        ActOutcome::Holders(found) => assert_eq!(found, users),
        other => panic!("{other:?}"),
    }
    drop(device);
    assert_eq!(host.probe_free(2), Ok(false));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(host.probe_free(2), Ok(true));
    assert!(host.users_of(single()).unwrap().is_empty());
}

#[test]
fn a_scripted_holder_keeps_it_until_it_is_killed() {
    let host = ready();
    let context = container(&host);
    let device = context.open_device(single()).unwrap();
    let vmm = host.foreign("vmm");
    vmm.receive(device.fd().unwrap()).unwrap();
    drop(device);
    assert_eq!(host.probe_free(2), Ok(false));
    let users = host.users_of(single()).unwrap();
    assert_eq!((users[0].pid, users[0].name.as_str()), (vmm.pid(), "vmm"));
    let limit =
        Act::Prlimit { pid: vmm.pid(), start_time: vmm.start_time(), memlock_bytes: 1 << 30 };
    host.perform(&limit).unwrap();
    assert_eq!(vmm.memlock_bytes(), Some(1 << 30));
    let signal = |signal| {
        let act = Act::Kill { pid: vmm.pid(), start_time: vmm.start_time(), signal };
        host.perform(&act).map(drop)
    };
    signal(19).unwrap();
    assert!(vmm.stopped() && vmm.running());
    assert!(signal(12).is_err());
    signal(9).unwrap();
    assert!(!vmm.running());
    assert_eq!(host.probe_free(2), Ok(true));
    assert!(signal(9).is_err());
    host.check().unwrap();
}
