use rustix::io::Errno;

use super::*;
use crate::DomainHandle;

#[test]
fn a_hold_blocks_everything_else() {
    let host = ready();
    assert_eq!(host.probe_free(5), Ok(true));
    let hold = host.hold(5, None).unwrap();
    assert_eq!(hold.group(), 5);
    let state = host.ownership(5).unwrap();
    assert_eq!((state.owner_cnt, state.domain), (1, GroupDomain::Blocking));
    assert_eq!(host.probe_free(5), Ok(false));
    assert_eq!(errno(host.hold(5, None)), Errno::BUSY);
    assert_eq!(errno(iommufd(&host).open_device(pair().1)), Errno::BUSY);
    assert_eq!(host.foreign_open_group(5).unwrap_err(), Errno::BUSY);
    assert_eq!(host.foreign_bind(pair().0).unwrap_err(), Errno::BUSY);
    drop(hold);
    assert_eq!(host.probe_free(5), Ok(true));
    host.check().unwrap();
}

#[test]
fn a_hold_refuses_host_drivers() {
    let host = ready();
    assert_eq!(errno(host.hold(11, None)), Errno::PERM);
    host.host_driver_unbind(mixed().1).unwrap();
    let hold = host.hold(11, None).unwrap();
    assert_eq!(host.host_driver_bind(mixed().1, "e1000"), Err(Errno::BUSY));
    drop(hold);
    host.host_driver_bind(mixed().1, "e1000").unwrap();
    host.check().unwrap();
}

#[test]
fn a_group_without_vfio_devices_has_no_node() {
    let host = small();
    assert_eq!(errno(host.hold(2, None)), Errno::NOENT);
    assert_eq!(host.probe_free(2), Ok(true));
    assert_eq!(host.probe_free(9), Ok(false), "a host driver has it");
    assert_eq!(errno(host.probe_free(999)), Errno::NOENT);
    assert_eq!(errno(host.hold(999, None)), Errno::NOENT);
}

#[test]
fn a_device_opens_in_the_hold_s_container() {
    let host = ready();
    let context = container(&host);
    let hold = host.hold(5, Some(&*context)).unwrap();
    let mut first = context.open_device(pair().0).unwrap();
    let second = context.open_device(pair().1).unwrap();
    let state = host.ownership(5).unwrap();
    assert_eq!(state.owner_cnt, 1, "a container claims the group once");
    assert!(matches!(state.domain, GroupDomain::Paging(_)));
    first.attach(DomainHandle(0)).unwrap();
    assert_eq!(errno(first.attach(DomainHandle(0))), Errno::OPNOTSUPP);
    assert_eq!(errno(first.attach(DomainHandle(1))), Errno::NOENT);
    first.detach().unwrap();
    first.attach(DomainHandle(0)).unwrap();
    drop(hold);
    assert_eq!(host.probe_free(5), Ok(false));
    drop(first);
    assert_eq!(host.probe_free(5), Ok(false));
    drop(second);
    assert_eq!(host.probe_free(5), Ok(true));
    host.check().unwrap();
}

#[test]
fn another_container_is_refused() {
    let host = ready();
    let (mine, other) = (container(&host), container(&host));
    let _device = mine.open_device(pair().0).unwrap();
    assert_eq!(errno(other.open_device(pair().1)), Errno::BUSY);
    let context = iommufd(&host);
    assert_eq!(errno(context.open_device(pair().1)), Errno::BUSY);
    assert_eq!(errno(host.hold(2, Some(&*context))), Errno::BADFD);
}

#[test]
fn mappings_die_with_the_last_group() {
    let host = ready();
    let context = container(&host);
    let domain = context.new_domain().unwrap();
    assert_eq!(context.unmap_all(domain), Ok(0));
    assert_eq!(errno(context.address_space(domain)), Errno::INVAL);
    assert_eq!(errno(context.ranges(domain)), Errno::INVAL);
    let first = context.open_device(pair().0).unwrap();
    let space = context.address_space(domain).unwrap();
    let buffer = berth_dma::DmaBuffer::new(8192).unwrap();
    let perms = berth_dma::DmaPerms { read: true, write: true };
    space.map_buffer(berth_dma::IovaChoice::Fixed(0x1000), &buffer, perms).unwrap();
    assert!(host.reaches(&*context, domain, 0x1000));
    let other = context.open_device(single()).unwrap();
    drop(first);
    assert!(host.reaches(&*context, domain, 0x1000), "a group is left");
    drop(other);
    assert!(!host.reaches(&*context, domain, 0x1000));
    assert_eq!(errno(context.ranges(domain)), Errno::INVAL);
}

#[test]
fn unsafe_interrupts_are_refused_by_set_iommu() {
    let topology = Topology::builtin("small").unwrap();
    let host = SimHost::from_topology(topology.with_feature("interrupt_remapping", false).unwrap());
    vfio(&host, single());
    let context = container(&host);
    let hold = host.hold(2, Some(&*context)).unwrap();
    assert_eq!(errno(context.open_device(single())), Errno::PERM);
    assert_eq!(host.ownership(2).unwrap().domain, GroupDomain::Blocking);
    drop(hold);
    assert_eq!(host.probe_free(2), Ok(true));
}

#[test]
fn the_last_vfio_member_takes_the_hold_with_it() {
    let host = ready();
    let hold = host.hold(5, None).unwrap();
    host.host_driver_unbind(pair().0).unwrap();
    assert_eq!(host.ownership(5).unwrap().owner_cnt, 1);
    host.host_driver_unbind(pair().1).unwrap();
    assert_eq!(host.ownership(5).unwrap().owner_cnt, 0, "the hold is revoked");
    vfio(&host, pair().0);
    let again = host.hold(5, None).unwrap();
    drop(hold);
    assert_eq!(host.ownership(5).unwrap().owner_cnt, 1, "the old file has no say any more");
    drop(again);
    host.check().unwrap();
}

#[test]
fn a_container_forgets_its_iommu_with_the_last_group() {
    let host = ready();
    let context = container(&host);
    drop(context.open_device(pair().0).unwrap());
    let hold = host.hold(5, Some(&*context)).unwrap();
    let device = context.open_device(pair().0).unwrap();
    drop((hold, device));
    assert_eq!(host.probe_free(5), Ok(true));
}
