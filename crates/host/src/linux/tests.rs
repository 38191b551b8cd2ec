//! Discovery on fake machines.

use super::*;
use crate::{DmaKind, GroupingCode};
use testing::{ConfigBytes, FakeDevice, FakeTree};

fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn host(tree: &FakeTree) -> LinuxHost {
    LinuxHost::new(LinuxConfig {
        root: tree.root().to_owned(),
        privileged: Arc::new(Direct::new(tree.root())),
    })
}

fn fake() -> (tempfile::TempDir, FakeTree) {
    let dir = tempfile::tempdir().unwrap();
    let tree = FakeTree::at(dir.path()).unwrap();
    (dir, tree)
}

fn root_port(acs: u16) -> ConfigBytes {
    ConfigBytes::port(0x1b36, 0x000c, 4).acs(0x1d, acs)
}

fn nic() -> ConfigBytes {
    ConfigBytes::endpoint(0x8086, 0x10c9, 0x02_00_00)
}

/// Scans, and checks that reading each device by itself gives the same.
fn scan(tree: &FakeTree) -> Inventory {
    let host = host(tree);
    let inventory = host.scan().unwrap();
    for facts in &inventory.devices {
        assert_eq!(&host.device(facts.address).unwrap(), facts);
    }
    inventory
}

fn facts(inventory: &Inventory, address: &str) -> DeviceFacts {
    let address = at(address);
    inventory.devices.iter().find(|facts| facts.address == address).unwrap().clone()
}

#[test]
fn a_device_is_read_whole() {
    let (_dir, tree) = fake();
    tree.file("usr/share/misc/pci.ids", "8086  Intel\n\t10c9  82576\nC 02  Network\n").unwrap();
    tree.add(&FakeDevice::new(at("0000:00:1c.0"), &root_port(0x1d)).group(1).driver("pcieport"))
        .unwrap();
    let mut device = FakeDevice::new(at("0000:01:00.0"), &nic().serial(0x0102)).group(2);
    device.parent = Some(at("0000:00:1c.0"));
    device.numa_node = 1;
    device.reset_method = Some("flr bus".into());
    device.driver_override = Some("vfio-pci".into());
    tree.add(&device).unwrap();
    let inventory = scan(&tree);
    let nic = facts(&inventory, "0000:01:00.0");
    assert_eq!((nic.vendor, nic.device, nic.class), (0x8086, 0x10c9, 0x02_00_00));
    assert_eq!((nic.vendor_name.as_str(), nic.device_name.as_str()), ("Intel", "82576"));
    assert_eq!(nic.class_name, "Network");
    assert_eq!((nic.group, nic.numa_node), (Some(2), 1));
    assert_eq!(nic.parent, Some(at("0000:00:1c.0")));
    assert_eq!(nic.reset_methods, ["flr", "bus"]);
    assert_eq!(nic.serial.as_deref(), Some("00-00-00-00-00-00-01-02"));
    assert_eq!(nic.driver_override.as_deref(), Some("vfio-pci"));
    assert_eq!((nic.driver, nic.dma), (None, DmaKind::None));
    assert_eq!(nic.bars[0].size_bytes, 0x1000);
    assert_eq!(nic.vfio_driver, "vfio-pci");
    assert_eq!(nic.grouping.code, GroupingCode::Alone);
    let port = facts(&inventory, "0000:00:1c.0");
    assert!(port.bridge && port.dma == DmaKind::Managed);
    let group = &inventory.groups[1];
    assert_eq!((group.number, group.iommu_type.as_str()), (2, "DMA-FQ"));
    assert_eq!(group.stable_id, stable_id(&[at("0000:01:00.0")]));
    assert_eq!(group.reserved_regions[0].kind, "msi");
}

#[test]
fn devices_behind_a_pci_bridge_share_its_alias() {
    let (_dir, tree) = fake();
    tree.add(&FakeDevice::new(at("0000:00:02.0"), &root_port(0x1d)).group(1)).unwrap();
    let bridge = ConfigBytes::port(0x1b36, 0x000e, 7);
    let bridge = FakeDevice::new(at("0000:01:00.0"), &bridge).below(at("0000:00:02.0"));
    tree.add(&bridge.group(8).driver("shpchp")).unwrap();
    let edu = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
    for address in ["0000:02:01.0", "0000:02:02.0"] {
        let device = FakeDevice::new(at(address), &edu).below(at("0000:01:00.0"));
        tree.add(&device.group(8)).unwrap();
    }
    let inventory = scan(&tree);
    for address in ["0000:01:00.0", "0000:02:01.0", "0000:02:02.0"] {
        let facts = facts(&inventory, address);
        assert_eq!(facts.grouping.code, GroupingCode::BridgeAlias, "{address}");
        assert_eq!(facts.grouping.cause, Some(at("0000:01:00.0")));
    }
    assert_eq!(facts(&inventory, "0000:01:00.0").dma, DmaKind::Kernel);
    assert_eq!(facts(&inventory, "0000:02:01.0").reset_set, [at("0000:02:02.0")]);
    assert_eq!(facts(&inventory, "0000:00:02.0").grouping.code, GroupingCode::Alone);
}

#[test]
fn a_port_without_acs_joins_what_is_below() {
    let (_dir, tree) = fake();
    tree.add(&FakeDevice::new(at("0000:00:02.0"), &root_port(0)).group(1)).unwrap();
    let device = FakeDevice::new(at("0000:01:00.0"), &nic()).below(at("0000:00:02.0"));
    tree.add(&device.group(1)).unwrap();
    let inventory = scan(&tree);
    for address in ["0000:00:02.0", "0000:01:00.0"] {
        let facts = facts(&inventory, address);
        assert_eq!(facts.grouping.code, GroupingCode::MissingAcs, "{address}");
        assert_eq!(facts.grouping.cause, Some(at("0000:00:02.0")));
    }
}

#[test]
fn functions_without_acs_share() {
    let (_dir, tree) = fake();
    for function in ["0000:00:1f.0", "0000:00:1f.2"] {
        let config = nic().multifunction();
        tree.add(&FakeDevice::new(at(function), &config).group(5)).unwrap();
    }
    let inventory = scan(&tree);
    let second = facts(&inventory, "0000:00:1f.2");
    assert_eq!(second.grouping.code, GroupingCode::Multifunction);
    assert_eq!(second.grouping.cause, Some(at("0000:00:1f.0")));
}

#[test]
fn what_cannot_be_read_is_not_guessed() {
    let (_dir, tree) = fake();
    let mut port = FakeDevice::new(at("0000:00:02.0"), &root_port(0)).group(1);
    port.config.truncate(64);
    tree.add(&port).unwrap();
    let mut device = FakeDevice::new(at("0000:01:00.0"), &nic()).below(at("0000:00:02.0"));
    device.config.truncate(64);
    tree.add(&device.group(1)).unwrap();
    let inventory = scan(&tree);
    let found = facts(&inventory, "0000:01:00.0");
    assert_eq!((found.vendor, found.grouping.code), (0x8086, GroupingCode::Unknown));
    assert!(found.grouping.text.contains("isn't readable"));
}

#[test]
fn virtual_functions_are_known_by_attributes_and_links() {
    let (_dir, tree) = fake();
    tree.add(&FakeDevice::new(at("0000:00:02.0"), &root_port(0x1d)).group(1)).unwrap();
    let mut physical = FakeDevice::new(at("0000:03:00.0"), &nic().sriov()).group(2);
    physical.parent = Some(at("0000:00:02.0"));
    physical.sriov_total = 7;
    tree.add(&physical).unwrap();
    for (index, address) in ["0000:03:10.0", "0000:03:10.2"].into_iter().enumerate() {
        let mut config = ConfigBytes::endpoint(0xffff, 0xffff, 0x02_00_00);
        config = config.acs(0, 0);
        let mut device = FakeDevice::new(at(address), &config).below(at("0000:00:02.0"));
        device.physical_function = Some(at("0000:03:00.0"));
        device.group = Some(10 + u32::try_from(index).unwrap());
        tree.add(&device).unwrap();
        let place = format!("sys/devices/{}", tree.place(at(address)));
        for (name, value) in [("vendor", "0x8086"), ("device", "0x10ca"), ("class", "0x020000")] {
            tree.file(&format!("{place}/{name}"), format!("{value}\n")).unwrap();
        }
        let up = format!("sys/devices/{}/virtfn{index}", tree.place(at("0000:03:00.0")));
        tree.link(&up, format!("../{address}")).unwrap();
    }
    let inventory = scan(&tree);
    let physical = facts(&inventory, "0000:03:00.0");
    assert_eq!(physical.sriov_total, 7);
    assert_eq!(physical.virtual_functions, [at("0000:03:10.0"), at("0000:03:10.2")]);
    assert_eq!(physical.reset_set, []);
    let first = facts(&inventory, "0000:03:10.0");
    assert_eq!((first.vendor, first.device), (0x8086, 0x10ca));
    assert_eq!(first.physical_function, Some(at("0000:03:00.0")));
    assert_eq!(first.reset_set, []);
}

#[test]
fn a_device_without_a_group_is_no_error() {
    let (_dir, tree) = fake();
    tree.add(&FakeDevice::new(at("0000:00:04.0"), &nic())).unwrap();
    let inventory = scan(&tree);
    assert!(inventory.groups.is_empty());
    assert_eq!(facts(&inventory, "0000:00:04.0").group, None);
}

#[test]
fn a_tree_without_config_is_read_by_attributes() {
    let (_dir, tree) = fake();
    let mut device = FakeDevice::new(at("0000:00:04.0"), &nic()).group(1);
    device.config.clear();
    tree.add(&device).unwrap();
    let place = "sys/devices/pci0000:00/0000:00:04.0";
    for (name, value) in [
        ("vendor", "0x1af4"),
        ("device", "0x1041"),
        ("class", "0x020000"),
        ("revision", "0x01"),
        ("subsystem_vendor", "0x1af4"),
        ("subsystem_device", "0x1100"),
    ] {
        tree.file(&format!("{place}/{name}"), format!("{value}\n")).unwrap();
    }
    let found = facts(&scan(&tree), "0000:00:04.0");
    assert_eq!((found.vendor, found.device, found.revision), (0x1af4, 0x1041, 1));
    assert_eq!((found.subsystem_vendor, found.subsystem_device), (0x1af4, 0x1100));
}

#[test]
fn garbage_in_a_tree_is_no_error() {
    let (_dir, tree) = fake();
    tree.file("sys/bus/pci/devices/garbage/config", "x").unwrap();
    let mut device = FakeDevice::new(at("0000:00:04.0"), &nic()).group(1);
    device.config = vec![0xa5; 300];
    tree.add(&device).unwrap();
    let place = "sys/devices/pci0000:00/0000:00:04.0";
    for name in ["resource", "numa_node", "driver_override", "reset_method"] {
        tree.file(&format!("{place}/{name}"), [0xff, 0xfe, 0x00, b'\n']).unwrap();
    }
    let inventory = host(&tree).scan().unwrap();
    assert_eq!(inventory.devices.len(), 1);
    assert_eq!(inventory.devices[0].numa_node, -1);
}

#[test]
fn a_variant_driver_is_found_by_alias() {
    let (_dir, tree) = fake();
    tree.file("proc/sys/kernel/osrelease", "6.12.0-test\n").unwrap();
    let alias = "alias vfio_pci:v00008086d000010C9sv*sd*bc*sc*i* qat_vfio_pci\n";
    tree.file("lib/modules/6.12.0-test/modules.alias", alias).unwrap();
    tree.add(&FakeDevice::new(at("0000:00:04.0"), &nic()).group(1)).unwrap();
    let host = host(&tree);
    assert_eq!(host.kernel_release(), "6.12.0-test");
    assert_eq!(host.scan().unwrap().devices[0].vfio_driver, "qat_vfio_pci");
}

#[test]
fn a_device_that_is_gone_is_said_to_be() {
    let (_dir, tree) = fake();
    let gone = at("0000:09:00.0");
    assert_eq!(host(&tree).device(gone), Err(HostError::NoDevice(gone)));
}

#[test]
fn vfio_is_not_tried_on_another_tree() {
    let (_dir, tree) = fake();
    let host = host(&tree);
    let unsupported = Errno::OPNOTSUPP.raw_os_error();
    assert_eq!(host.probe_free(1).unwrap_err().errno, unsupported);
    assert_eq!(host.hold(1, None).unwrap_err().errno, unsupported);
    assert_eq!(host.open_context(BackendKind::Type1).unwrap_err().errno, unsupported);
    assert!(host.backends().is_empty() && !host.kernel_hold());
}

#[test]
fn a_tree_shows_the_identity_of_each_device_as_sysfs_does() {
    let (_dir, tree) = fake();
    tree.add(&FakeDevice::new(at("0000:00:04.0"), &nic()).group(1).driver("igb")).unwrap();
    let dir = tree.root().join("sys/bus/pci/devices/0000:00:04.0");
    for (name, value) in [
        ("vendor", "0x8086\n"),
        ("device", "0x10c9\n"),
        ("subsystem_vendor", "0x8086\n"),
        ("subsystem_device", "0x0001\n"),
        ("class", "0x020000\n"),
        ("revision", "0x00\n"),
        ("modalias", "pci:v00008086d000010C9sv00008086sd00000001bc02sc00i00\n"),
        ("irq", "0\n"),
        ("enable", "1\n"),
    ] {
        assert_eq!(std::fs::read_to_string(dir.join(name)).unwrap(), value, "{name}");
    }
    assert!(dir.join("subsystem/devices").is_dir(), "the link leads to the bus");
    let without = FakeDevice { config: Vec::new(), ..FakeDevice::new(at("0000:00:05.0"), &nic()) };
    tree.add(&without).unwrap();
    assert!(!tree.root().join("sys/bus/pci/devices/0000:00:05.0/vendor").exists());
}

#[test]
fn a_large_tree_is_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    let tree = testing::build_large(dir.path(), 600).unwrap();
    let inventory = host(&tree).scan().unwrap();
    assert_eq!((inventory.devices.len(), inventory.groups.len()), (600, 600));
    let ids: BTreeSet<_> = inventory.groups.iter().map(|group| &group.stable_id).collect();
    assert_eq!(ids.len(), 600);
}

#[test]
fn users_are_asked_of_the_helper() {
    let (_dir, tree) = fake();
    tree.add(&FakeDevice::new(at("0000:00:04.0"), &nic()).group(4).driver("vfio-pci")).unwrap();
    tree.file("sys/devices/pci0000:00/0000:00:04.0/vfio-dev/vfio0/dev", "1:1\n").unwrap();
    tree.file("proc/77/comm", "qemu\n").unwrap();
    tree.file("proc/77/stat", testing::process_stat(77, "qemu", 4_200)).unwrap();
    tree.link("proc/77/fd/9", "/dev/vfio/devices/vfio0").unwrap();
    let found = host(&tree).users_of(at("0000:00:04.0")).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].pid, found[0].name.as_str()), (77, "qemu"));
    assert_eq!(found[0].start_time, 4_200);
}

#[test]
fn one_look_tells_which_of_many_devices_are_open() {
    let (_dir, tree) = fake();
    let all: Vec<PciAddress> = (4..8).map(|slot| at(&format!("0000:00:{slot:02x}.0"))).collect();
    for (number, device) in (4..).zip(&all) {
        let fake = FakeDevice::new(*device, &nic()).group(number).driver("vfio-pci");
        tree.add(&fake).unwrap();
    }
    let among = || host(&tree).used_among(&all).unwrap().into_iter().collect::<Vec<_>>();
    assert!(among().is_empty());
    tree.file("proc/77/comm", "qemu\n").unwrap();
    tree.file("proc/77/stat", testing::process_stat(77, "qemu", 4_200)).unwrap();
    tree.link("proc/77/fd/9", "/dev/vfio/5").unwrap();
    tree.link("proc/77/fd/10", "/dev/vfio/7").unwrap();
    assert_eq!(among(), [all[1], all[3]]);
    let gone = at("0000:00:1f.0");
    assert!(host(&tree).used_among(&[gone]).unwrap().is_empty());
    // Whose it is isn't told: it may be any one's.
    tree.link("proc/77/fd/11", "anon_inode:[vfio-device]").unwrap();
    assert_eq!(among(), all);
    tree.file("proc/78/fd", "").unwrap();
    assert!(host(&tree).used_among(&all).is_err(), "a process that can't be looked at");
}

#[test]
fn a_vdpa_parent_has_a_domain_of_its_own_while_the_vhost_node_is_open() {
    let (_dir, tree) = fake();
    let device = "sys/devices/pci0000:00/0000:00:04.0";
    tree.add(&FakeDevice::new(at("0000:00:04.0"), &nic()).group(4).driver("vp-vdpa")).unwrap();
    tree.add(&FakeDevice::new(at("0000:00:05.0"), &nic()).group(5).driver("vp-vdpa")).unwrap();
    let seen = || facts(&host(&tree).scan().unwrap(), "0000:00:04.0").private_domain;
    assert_eq!(seen(), None, "no vDPA device was made of it");
    tree.link(&format!("{device}/net0/driver"), "../../../../bus/vdpa/drivers/virtio_vdpa")
        .unwrap();
    tree.file(&format!("{device}/net0/vhost-vdpa-2/dev"), "1:1\n").unwrap();
    tree.file("proc/77/comm", "qemu\n").unwrap();
    tree.file("proc/77/stat", testing::process_stat(77, "qemu", 4_200)).unwrap();
    tree.link("proc/77/fd/9", "/dev/vhost-vdpa-2").unwrap();
    assert_eq!(seen(), None, "its virtio driver uses the default domain");
    std::fs::remove_file(tree.root().join(device).join("net0/driver")).unwrap();
    tree.link(&format!("{device}/net0/driver"), "../../../../bus/vdpa/drivers/vhost_vdpa").unwrap();
    let private = seen().unwrap();
    assert_eq!(private.node.as_deref(), Some("/dev/vhost-vdpa-2"));
    assert_eq!(private.processes, ["qemu (77)"]);
    assert_eq!(host(&tree).device(at("0000:00:04.0")).unwrap().private_domain, Some(private));
    assert_eq!(facts(&scan(&tree), "0000:00:05.0").private_domain, None, "the other one");
    std::fs::remove_dir_all(tree.root().join("proc/77/fd")).unwrap();
    assert_eq!(seen(), None, "closed");
    tree.file("proc/78/fd", "").unwrap();
    let unseen = seen().unwrap();
    assert_eq!(unseen.processes, [""; 0], "where nobody can be looked at, somebody may have it");
}

#[test]
fn a_vdpa_device_below_an_auxiliary_one_is_found_too() {
    let (_dir, tree) = fake();
    let between = "sys/devices/pci0000:00/0000:00:04.0/pds_core.vDPA.7";
    tree.add(&FakeDevice::new(at("0000:00:04.0"), &nic()).group(4).driver("pds_core")).unwrap();
    tree.link(&format!("{between}/net0/driver"), "../../../../../bus/vdpa/drivers/vhost_vdpa")
        .unwrap();
    tree.file(&format!("{between}/net0/vhost-vdpa-1/dev"), "1:1\n").unwrap();
    tree.file("proc/77/comm", "qemu\n").unwrap();
    tree.file("proc/77/stat", testing::process_stat(77, "qemu", 4_200)).unwrap();
    tree.link("proc/77/fd/9", "/dev/vhost-vdpa-1").unwrap();
    let private = facts(&host(&tree).scan().unwrap(), "0000:00:04.0").private_domain.unwrap();
    assert_eq!(private.node.as_deref(), Some("/dev/vhost-vdpa-1"));
    assert_eq!(private.processes, ["qemu (77)"]);
}
