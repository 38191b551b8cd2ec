//! The rules of the simulated kernel through the host's interface, both back ends.

mod acts;
mod lifetimes;
mod scripted;
mod type1;
mod uevents;

use super::*;
use crate::{Act, ActOutcome, BackendKind, Context, Host, PciAddress, VfioError};

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// Alone in group 2.
fn single() -> PciAddress {
    address("0000:00:05.0")
}

/// Group 5 has a bridge and these two.
fn pair() -> (PciAddress, PciAddress) {
    (address("0000:02:01.0"), address("0000:02:02.0"))
}

/// Group 11: the first without a driver, the second on e1000.
fn mixed() -> (PciAddress, PciAddress) {
    (address("0000:05:00.0"), address("0000:05:00.1"))
}

fn small() -> SimHost {
    SimHost::builtin("small").unwrap()
}

fn vfio(host: &SimHost, device: PciAddress) {
    let act = Act::Bind { device, driver: "vfio-pci".to_owned() };
    match host.perform(&act).unwrap() {
        ActOutcome::Driver(Some(driver)) => assert_eq!(driver, "vfio-pci"),
        other => panic!("{other:?}"),
    }
}

fn ready() -> SimHost {
    let host = small();
    for device in [single(), pair().0, pair().1, mixed().0] {
        vfio(&host, device);
    }
    host
}

fn errno<T>(answer: Result<T, VfioError>) -> rustix::io::Errno {
    match answer {
        Ok(_) => panic!("it worked"),
        Err(error) => rustix::io::Errno::from_raw_os_error(error.errno),
    }
}

fn iommufd(host: &SimHost) -> Box<dyn Context> {
    host.open_context(BackendKind::Iommufd).unwrap()
}

fn container(host: &SimHost) -> Box<dyn Context> {
    host.open_context(BackendKind::Type1).unwrap()
}

mod by_iommufd {
    use super::*;
    use crate::DomainHandle;
    use rustix::io::Errno;

    #[test]
    fn a_device_has_its_life() {
        let host = ready();
        let context = iommufd(&host);
        let domain = context.new_domain().unwrap();
        let mut device = context.open_device(single()).unwrap();
        assert!(device.bound().unwrap());
        let state = host.ownership(2).unwrap();
        assert_eq!((state.owner_cnt, state.domain), (1, GroupDomain::Blocking));
        device.attach(domain).unwrap();
        assert!(matches!(host.ownership(2).unwrap().domain, GroupDomain::Paging(_)));
        assert_eq!(errno(context.delete_domain(domain)), Errno::BUSY);
        assert_eq!(host.probe_free(2), Ok(false));
        device.detach().unwrap();
        device.detach().unwrap();
        assert_eq!(host.ownership(2).unwrap().domain, GroupDomain::Blocking);
        drop(device);
        assert_eq!(host.ownership(2).unwrap().domain, GroupDomain::Default);
        assert_eq!(host.probe_free(2), Ok(true));
        context.delete_domain(domain).unwrap();
        assert_eq!(errno(context.delete_domain(domain)), Errno::NOENT);
        host.check().unwrap();
    }

    #[test]
    fn siblings_join_one_domain() {
        let host = ready();
        let context = iommufd(&host);
        let (a, b) = (context.new_domain().unwrap(), context.new_domain().unwrap());
        let mut first = context.open_device(pair().0).unwrap();
        let mut second = context.open_device(pair().1).unwrap();
        assert_eq!(host.ownership(5).unwrap().owner_cnt, 2);
        first.attach(a).unwrap();
        let domain = host.ownership(5).unwrap().domain;
        assert_eq!(errno(second.attach(b)), Errno::INVAL);
        assert_eq!(errno(second.attach(DomainHandle(99))), Errno::NOENT);
        assert_eq!(errno(second.attach(DomainHandle(first.device_id()))), Errno::INVAL);
        second.attach(a).unwrap();
        assert_eq!(host.ownership(5).unwrap().domain, domain);
        // Replacing moves the whole group, also for the sibling.
        first.attach(b).unwrap();
        assert_ne!(host.ownership(5).unwrap().domain, domain);
        context.delete_domain(a).unwrap();
        assert_eq!(errno(context.delete_domain(b)), Errno::BUSY);
        first.detach().unwrap();
        assert!(matches!(host.ownership(5).unwrap().domain, GroupDomain::Paging(_)));
        drop(first);
        assert!(matches!(host.ownership(5).unwrap().domain, GroupDomain::Paging(_)));
        drop(second);
        assert_eq!(host.ownership(5).unwrap().owner_cnt, 0);
        host.check().unwrap();
    }

    #[test]
    fn an_automatic_hwpt_can_be_named() {
        let host = ready();
        let context = iommufd(&host);
        let domain = context.new_domain().unwrap();
        let mut first = context.open_device(pair().0).unwrap();
        let mut second = context.open_device(pair().1).unwrap();
        first.attach(domain).unwrap();
        // Ids are the lowest that are free: domain, first, second, then the HWPT.
        let hwpt = DomainHandle(second.device_id() + 1);
        assert_eq!(errno(context.delete_domain(hwpt)), Errno::BUSY);
        second.attach(hwpt).unwrap();
        assert_eq!(errno(context.delete_domain(DomainHandle(first.device_id()))), Errno::BUSY);
        drop((first, second));
        assert_eq!(errno(context.delete_domain(hwpt)), Errno::NOENT);
    }

    #[test]
    fn another_context_is_refused() {
        let host = ready();
        let (mine, other) = (iommufd(&host), iommufd(&host));
        let _first = mine.open_device(pair().0).unwrap();
        assert_eq!(errno(other.open_device(pair().0)), Errno::INVAL);
        assert_eq!(errno(other.open_device(pair().1)), Errno::PERM);
        assert_eq!(errno(host.hold(5, None)), Errno::BUSY);
        assert_eq!(host.host_driver_bind(mixed().0, "e1000"), Err(Errno::NODEV));
    }

    #[test]
    fn a_sibling_on_a_host_driver_is_in_the_way() {
        let host = ready();
        let context = iommufd(&host);
        assert_eq!(errno(context.open_device(mixed().0)), Errno::PERM);
        assert_eq!(host.probe_free(11), Ok(false));
        host.host_driver_unbind(mixed().1).unwrap();
        let _device = context.open_device(mixed().0).unwrap();
        assert_eq!(host.host_driver_bind(mixed().1, "e1000"), Err(Errno::BUSY));
        host.check().unwrap();
    }

    #[test]
    fn reserved_ranges_are_kept_free() {
        let host = ready();
        let context = iommufd(&host);
        let domain = context.new_domain().unwrap();
        let space = context.address_space(domain).unwrap();
        let buffer = berth_dma::DmaBuffer::new(4096).unwrap();
        let perms = berth_dma::DmaPerms { read: true, write: true };
        let msi = berth_dma::IovaChoice::Fixed(0xfee0_0000);
        space.map_buffer(msi, &buffer, perms).unwrap();
        let mut device = context.open_device(single()).unwrap();
        assert_eq!(errno(device.attach(domain)), Errno::ADDRINUSE);
        assert_eq!(host.ownership(2).unwrap().domain, GroupDomain::Blocking);
        space.unmap(0xfee0_0000, 4096).unwrap();
        device.attach(domain).unwrap();
        assert!(space.map_buffer(msi, &buffer, perms).is_err());
        assert_eq!(context.ranges(domain).unwrap().len(), 2);
        space.map_buffer(berth_dma::IovaChoice::Fixed(0x1000), &buffer, perms).unwrap();
        assert!(host.reaches(&*context, domain, 0x1fff));
        assert!(!host.reaches(&*context, domain, 0x2000));
    }

    #[test]
    fn the_machine_can_be_unfit() {
        for (feature, on, expected) in
            [("interrupt_remapping", false, Errno::PERM), ("cdev", false, Errno::NOENT)]
        {
            let topology = Topology::builtin("small").unwrap().with_feature(feature, on).unwrap();
            let host = SimHost::from_topology(topology);
            vfio(&host, single());
            assert_eq!(errno(iommufd(&host).open_device(single())), expected, "{feature}");
        }
    }
}
