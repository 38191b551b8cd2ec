//! Machines of any size, for load.

use toml::Spanned;

use super::{
    Topology,
    spec::{DeviceSpec, TopologySpec},
};
use crate::{Grouping, GroupingCode, HostError, PciAddress};

/// What a generated machine is made of, in turn: class, vendor, device, drivers.
const KINDS: &[(u32, u16, u16, &str, &str)] = &[
    (0x03_02_00, 0x10de, 0x2330, "3D controller", "nvidia"),
    (0x02_00_00, 0x15b3, 0x1021, "Ethernet controller", "mlx5_core"),
    (0x01_08_02, 0x144d, 0xa80a, "Non-Volatile memory controller", "nvme"),
    (0x02_00_00, 0x8086, 0x1889, "Ethernet controller", "iavf"),
];

impl Topology {
    /// A machine of `count` devices, each in a group of its own, without a driver.
    #[must_use]
    pub fn generated(count: u32) -> Self {
        let device = (0..count).filter_map(generated_device).collect();
        let spec = TopologySpec {
            name: format!("generated-{count}"),
            description: "every device in a group of its own".to_owned(),
            kernel_release: "6.12.0-sim".to_owned(),
            helper_timeout_ms: 10_000,
            device,
            ..TopologySpec::default()
        };
        match Self::from_spec(spec.clone()) {
            Ok(topology) => topology,
            // Generated words are right by construction; the empty machine is the safe answer.
            Err(_) => Self { spec, devices: Vec::new(), groups: Vec::new() },
        }
    }
}

/// Functions of the large machine.
const LARGE: u32 = 2_000;
/// Functions behind one root port.
const PER_PORT: u32 = 16;
/// Root ports of one root complex.
const PER_ROOT: u32 = 5;
/// Root complexes of one PCI domain.
const PER_SEGMENT: u32 = 5;
/// Functions of a group where a port doesn't isolate.
const TOGETHER: u32 = 4;

impl Topology {
    /// Two thousand functions behind 125 root ports, over four NUMA nodes. A quarter of the ports
    /// doesn't isolate, so that there are groups of several; the disks are the host's.
    pub(super) fn large() -> Result<Self, HostError> {
        let ports = LARGE / PER_PORT;
        let mut device: Vec<_> = (0..ports).filter_map(large_port).collect();
        device.extend((0..LARGE).filter_map(large_function));
        let spec = TopologySpec {
            name: "large".to_owned(),
            description: "two thousand functions behind 125 root ports".to_owned(),
            kernel_release: "6.12.0-sim".to_owned(),
            helper_timeout_ms: 10_000,
            device,
            ..TopologySpec::default()
        };
        Self::from_spec(spec)
            .map_err(|(_, message)| HostError::Topology { path: "large".to_owned(), message })
    }
}

/// The root port `port`, and the bus below it.
fn large_place(port: u32) -> Option<(PciAddress, u8)> {
    let (segment, within) = (port / (PER_ROOT * PER_SEGMENT), port % (PER_ROOT * PER_SEGMENT));
    let root_bus = u8::try_from((within / PER_ROOT) * 0x20).ok()?;
    let at = u8::try_from(within % PER_ROOT).ok()?;
    Some((PciAddress::new(segment, root_bus, at + 1, 0)?, root_bus + 1 + at))
}

fn numa_of(port: u32) -> Option<i32> {
    i32::try_from((port / PER_ROOT) % 4).ok()
}

fn large_port(port: u32) -> Option<Spanned<DeviceSpec>> {
    let (address, _) = large_place(port)?;
    let spec = DeviceSpec {
        address: Some(address),
        group: Some(port),
        vendor: Some(0x8086),
        device: Some(0x352a),
        class: Some(0x06_04_00),
        class_name: Some("PCI bridge".to_owned()),
        vendor_name: Some("Intel Corporation".to_owned()),
        device_name: Some("PCI Express Root Port".to_owned()),
        numa_node: numa_of(port),
        bridge: Some(true),
        driver: Some("pcieport".to_owned()),
        drivers: Some(vec!["pcieport".to_owned()]),
        ..DeviceSpec::default()
    };
    Some(Spanned::new(0..0, spec))
}

fn large_function(index: u32) -> Option<Spanned<DeviceSpec>> {
    let (port, slot) = (index / PER_PORT, index % PER_PORT);
    let (parent, bus) = large_place(port)?;
    let isolates = port % 4 != 3;
    let kind = if isolates { index } else { index / TOGETHER };
    let (class, vendor, device, class_name, driver) =
        KINDS.get(usize::try_from(kind).ok()? % KINDS.len())?;
    let grouping = Grouping {
        code: GroupingCode::MissingAcs,
        cause: Some(parent),
        text: format!("port {parent} doesn't isolate what is behind it"),
    };
    let spec = DeviceSpec {
        address: Some(PciAddress::new(parent.domain(), bus, u8::try_from(slot).ok()?, 0)?),
        group: Some(LARGE / PER_PORT + if isolates { index } else { index - slot % TOGETHER }),
        vendor: Some(*vendor),
        device: Some(*device),
        class: Some(*class),
        class_name: Some((*class_name).to_owned()),
        numa_node: numa_of(port),
        parent: Some(parent),
        driver: (*driver == "nvme").then(|| (*driver).to_owned()),
        drivers: Some(vec![(*driver).to_owned()]),
        reset_methods: Some(vec!["flr".to_owned()]),
        grouping: (!isolates).then_some(grouping),
        ..DeviceSpec::default()
    };
    Some(Spanned::new(0..0, spec))
}

fn generated_device(index: u32) -> Option<Spanned<DeviceSpec>> {
    const PER_DOMAIN: u32 = 255 * 32;
    let domain = index / PER_DOMAIN;
    let slot = index % PER_DOMAIN;
    let bus = u8::try_from(slot / 32 + 1).ok()?;
    let address = PciAddress::new(domain, bus, u8::try_from(slot % 32).ok()?, 0)?;
    let kind = usize::try_from(index).ok()? % KINDS.len();
    let (class, vendor, device, class_name, driver) = KINDS.get(kind)?;
    let spec = DeviceSpec {
        address: Some(address),
        group: Some(index),
        vendor: Some(*vendor),
        device: Some(*device),
        class: Some(*class),
        class_name: Some((*class_name).to_owned()),
        numa_node: i32::try_from(index % 2).ok(),
        drivers: Some(vec![(*driver).to_owned()]),
        reset_methods: Some(vec!["flr".to_owned()]),
        ..DeviceSpec::default()
    };
    Some(Spanned::new(0..0, spec))
}
