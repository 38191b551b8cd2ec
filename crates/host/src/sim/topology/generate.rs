//! Machines of any size, for load.

use toml::Spanned;

use super::{
    Topology,
    spec::{DeviceSpec, TopologySpec},
};
use crate::PciAddress;

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
