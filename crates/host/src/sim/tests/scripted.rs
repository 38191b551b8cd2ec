//! Faults, rivals, and rules that are broken on purpose.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::*;
use crate::{HostError, PrivateDomain};

#[test]
fn a_fault_hits_where_and_as_often_as_scripted() {
    let host = ready();
    host.fault(Fault::at(Site::BindIommufd).device(single()).errno(Errno::IO).skip(1).times(2));
    let context = iommufd(&host);
    assert!(context.open_device(pair().0).is_ok());
    assert!(context.open_device(single()).is_ok());
    for _ in 0..2 {
        assert_eq!(errno(context.open_device(single())), Errno::IO);
        assert_eq!(host.probe_free(2), Ok(true), "the failed bind left nothing");
    }
    assert!(context.open_device(single()).is_ok());
    host.check().unwrap();
}

#[test]
fn every_site_can_fail() {
    let host = ready();
    let fail = |site| host.fault(Fault::at(site).errno(Errno::IO));
    fail(Site::OpenContext);
    assert_eq!(errno(host.open_context(BackendKind::Iommufd)), Errno::IO);
    fail(Site::OpenGroup);
    assert_eq!(errno(host.hold(2, None)), Errno::IO);
    fail(Site::SetContainer);
    assert_eq!(errno(host.hold(2, None)), Errno::IO);
    fail(Site::ProbeFree);
    assert_eq!(errno(host.probe_free(2)), Errno::IO);
    let type1 = container(&host);
    fail(Site::SetIommu);
    assert_eq!(errno(type1.open_device(single())), Errno::IO);
    fail(Site::OpenDevice);
    assert_eq!(errno(type1.open_device(single())), Errno::IO);
    assert_eq!(host.probe_free(2), Ok(true));
    let context = iommufd(&host);
    fail(Site::NewDomain);
    assert_eq!(errno(context.new_domain()), Errno::IO);
    let domain = context.new_domain().unwrap();
    fail(Site::DeleteDomain);
    assert_eq!(errno(context.delete_domain(domain)), Errno::IO);
    let mut device = context.open_device(single()).unwrap();
    fail(Site::Attach);
    assert_eq!(errno(device.attach(domain)), Errno::IO);
    fail(Site::Detach);
    assert_eq!(errno(device.detach()), Errno::IO);
    fail(Site::DeviceReset);
    assert_eq!(errno(device.reset()), Errno::IO);
    for (site, act) in [
        (Site::Bind, Act::Bind { device: single(), driver: "vfio-pci".to_owned() }),
        (Site::Unbind, Act::Unbind { device: pair().0 }),
        (Site::Override, Act::Override { device: single(), driver: None }),
        (Site::ReadConfig, Act::ReadConfig { device: single() }),
        (Site::OpenIommu, Act::OpenIommu),
    ] {
        fail(site);
        assert_eq!(host.perform(&act).unwrap_err().errno(), Some(5), "{act:?}");
    }
    assert!(host.fault_points() > 10);
    host.check().unwrap();
}

#[test]
fn a_slow_group_delays_no_other() {
    let host = ready();
    host.fault(Fault::at(Site::Attach).device(single()).hang());
    let context = iommufd(&host);
    let domain = context.new_domain().unwrap();
    let mut device = context.open_device(single()).unwrap();
    let stuck = std::thread::spawn(move || device.attach(domain).map(|()| device));
    let other = iommufd(&host);
    let there = other.new_domain().unwrap();
    other.open_device(pair().0).unwrap().attach(there).unwrap();
    assert!(!stuck.is_finished());
    host.clear_faults();
    stuck.join().unwrap().unwrap();
}

#[test]
fn an_act_that_hangs_answers_in_time_and_goes_on_later() {
    let host =
        SimHost::from_topology(Topology::builtin("small").unwrap().with_helper_timeout_ms(50));
    host.fault(Fault::at(Site::Bind).hang());
    let act = Act::Bind { device: single(), driver: "vfio-pci".to_owned() };
    let error = host.perform(&act).unwrap_err();
    assert!(matches!(error, HostError::Helper { still_running: true, .. }), "{error}");
    assert!(host.device(single()).unwrap().driver.is_none());
    host.clear_faults();
    let begun = Instant::now();
    while host.device(single()).unwrap().driver.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the helper never went on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn rivals_hold_and_let_go() {
    let host = ready();
    let rival = host.foreign_open_group(2).unwrap();
    assert_eq!(errno(host.hold(2, None)), Errno::BUSY);
    assert_eq!(errno(iommufd(&host).open_device(single())), Errno::BUSY);
    assert_eq!(host.users_of(single()).unwrap()[0].pid, rival.pid());
    rival.close_all();
    rival.hold_group(5).unwrap();
    assert_eq!(errno(host.hold(5, None)), Errno::BUSY);
    drop(rival);
    let rival = host.foreign_bind(pair().0).unwrap();
    assert_eq!(errno(host.hold(5, None)), Errno::BUSY);
    assert_eq!(errno(iommufd(&host).open_device(pair().1)), Errno::PERM);
    drop(rival);
    host.hold(5, None).unwrap();
    host.check().unwrap();
}

#[test]
fn a_private_domain_of_a_host_driver_is_in_the_way() {
    let host = small();
    let nic = address("0000:04:00.0");
    host.host_driver_attach(nic).unwrap();
    assert_eq!(host.ownership(9).unwrap().domain, GroupDomain::Private(nic));
    let own = PrivateDomain { node: None, processes: Vec::new() };
    assert_eq!(host.device(nic).unwrap().private_domain, Some(own));
    host.host_driver_unbind(nic).unwrap();
    vfio(&host, nic);
    // Stray: nobody's, but not in the default domain.
    assert_eq!(errno(host.hold(9, None)), Errno::BUSY);
    assert_eq!(errno(iommufd(&host).open_device(nic)), Errno::BUSY);
    host.host_driver_detach(nic).unwrap();
    host.hold(9, None).unwrap();
}

#[test]
fn a_process_makes_a_host_driver_have_a_domain_of_its_own_and_is_named() {
    let host = small();
    let nic = address("0000:04:00.0");
    let seen = || host.device(nic).unwrap().private_domain;
    assert_eq!(seen(), None);
    let qemu = host.foreign("qemu");
    qemu.open_vhost(nic).unwrap();
    assert_eq!(host.foreign("other").open_vhost(nic), Err(Errno::BUSY));
    let named = format!("qemu ({})", qemu.pid());
    assert_eq!(seen().unwrap().keepers(), [named]);
    let scanned = host.scan().unwrap().devices.into_iter().find(|found| found.address == nic);
    assert_eq!(scanned.unwrap().private_domain, seen());
    assert_eq!(host.host_driver_unbind(nic), Err(Errno::BUSY), "it would wait");
    qemu.close_all();
    assert_eq!(seen(), None);
    assert_eq!(host.ownership(9).unwrap().domain, GroupDomain::Default);
    host.host_driver_unbind(nic).unwrap();
    assert_eq!(qemu.open_vhost(nic), Err(Errno::NOENT));
    host.check().unwrap();
}

#[test]
fn a_reset_under_way_makes_attach_busy() {
    let host = ready();
    let context = iommufd(&host);
    let domain = context.new_domain().unwrap();
    let mut device = context.open_device(single()).unwrap();
    host.set_recovering(2, 1).unwrap();
    assert_eq!(errno(device.attach(domain)), Errno::BUSY);
    context.delete_domain(domain).unwrap();
    host.set_recovering(2, 0).unwrap();
    let domain = context.new_domain().unwrap();
    device.attach(domain).unwrap();
}
