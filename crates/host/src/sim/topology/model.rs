//! A checked topology: what the simulated kernel starts from.

use sha2::{Digest, Sha256};

use super::spec::{DeviceSpec, ResetSpec, VfSpec};
use crate::{DeviceFacts, DmaKind, Grouping, GroupingCode, Health, HostUse, IovaRange, PciAddress};

/// A device, with what discovery shows of it and what it will do.
#[derive(Debug, Clone)]
pub(crate) struct DeviceModel {
    pub(crate) facts: DeviceFacts,
    /// Host drivers that match; the first is the one a probe picks.
    pub(crate) host_drivers: Vec<String>,
    pub(crate) uses: Vec<HostUse>,
    pub(crate) reset: ResetKind,
    pub(crate) coherent: bool,
    pub(crate) firmware_1to1: bool,
    pub(crate) vf: Option<VfModel>,
    /// Virtual functions at boot.
    pub(crate) sriov_vfs: u16,
    pub(crate) health: Health,
}

/// How a reset of the device goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResetKind {
    Verified,
    NotPossible,
    Failed,
}

/// The virtual functions of a physical one.
pub(crate) type VfModel = VfSpec;

/// A group apart from its members.
#[derive(Debug, Clone)]
pub(crate) struct GroupModel {
    pub(crate) number: u32,
    pub(crate) iommu_type: String,
    pub(crate) reserved: Vec<IovaRange>,
}

impl GroupModel {
    /// A group as a fresh x86 kernel makes it.
    pub(crate) fn new(number: u32) -> Self {
        let msi = IovaRange { first: 0xfee0_0000, last: 0xfeef_ffff, kind: "msi".to_owned() };
        Self { number, iommu_type: "DMA-FQ".to_owned(), reserved: vec![msi] }
    }
}

impl DeviceModel {
    /// Fills the defaults of a merged spec.
    pub(crate) fn new(address: PciAddress, spec: DeviceSpec, unknown: &[String]) -> Self {
        let dma = dma_kind(spec.driver.as_deref(), unknown);
        let vendor = spec.vendor.unwrap_or(0x1b36);
        let device = spec.device.unwrap_or(0x0005);
        let facts = DeviceFacts {
            address,
            instance: None,
            group: spec.group,
            vendor,
            device,
            subsystem_vendor: spec.subsystem_vendor.unwrap_or(vendor),
            subsystem_device: spec.subsystem_device.unwrap_or(device),
            class: spec.class.unwrap_or(0x00ff_0000),
            revision: spec.revision.unwrap_or(0),
            serial: spec.serial,
            vendor_name: spec.vendor_name.unwrap_or_default(),
            device_name: spec.device_name.unwrap_or_default(),
            class_name: spec.class_name.unwrap_or_default(),
            numa_node: spec.numa_node.unwrap_or(-1),
            bars: spec.bars.unwrap_or_default(),
            reset_methods: spec.reset_methods.unwrap_or_default(),
            driver: spec.driver,
            dma,
            driver_override: spec.driver_override,
            vfio_driver: spec.vfio_driver.unwrap_or_else(|| "vfio-pci".to_owned()),
            bridge: spec.bridge.unwrap_or(false),
            physical_function: spec.physical_function,
            virtual_functions: Vec::new(),
            sriov_total: spec.sriov_total.unwrap_or(0),
            sriov_autoprobe: true,
            parent: spec.parent,
            grouping: spec.grouping.unwrap_or_else(alone),
            isolation: spec.isolation,
            cdev: None,
            reset_set: spec.reset_set.unwrap_or_default(),
            private_domain: None,
        };
        Self {
            reset: reset_kind(spec.reset.unwrap_or_default(), &facts.reset_methods),
            facts,
            host_drivers: spec.drivers.unwrap_or_default(),
            uses: spec.uses.unwrap_or_default(),
            coherent: spec.coherent.unwrap_or(true),
            firmware_1to1: spec.firmware_1to1.unwrap_or(false),
            vf: spec.vf,
            sriov_vfs: spec.sriov_vfs.unwrap_or(0),
            health: spec.health.unwrap_or_else(awake),
        }
    }
}

/// A device without a reset method can't be reset, whatever else the file says.
fn reset_kind(spec: ResetSpec, methods: &[String]) -> ResetKind {
    match spec {
        _ if methods.is_empty() => ResetKind::NotPossible,
        ResetSpec::Verified => ResetKind::Verified,
        ResetSpec::NotPossible => ResetKind::NotPossible,
        ResetSpec::Failed => ResetKind::Failed,
    }
}

/// One that works and has nothing to tell.
fn awake() -> Health {
    Health {
        power_state: "D0".to_owned(),
        runtime_status: "active".to_owned(),
        answers: Some(true),
        ..Health::default()
    }
}

fn alone() -> Grouping {
    Grouping {
        code: GroupingCode::Alone,
        cause: None,
        text: "every port on its way to the root isolates it".to_owned(),
    }
}

/// What a driver does with the kernel's DMA API.
///
/// # Kernel
/// `driver_managed_dma` of the driver's structure; sysfs doesn't show it.
pub(crate) fn dma_kind(driver: Option<&str>, unknown: &[String]) -> DmaKind {
    match driver {
        None => DmaKind::None,
        Some("pci-stub" | "pcieport") => DmaKind::Managed,
        Some(name) if is_vfio(name) => DmaKind::Managed,
        Some(name) if unknown.iter().any(|known| known == name) => DmaKind::Assumed,
        Some(_) => DmaKind::Kernel,
    }
}

/// Whether a driver registers its devices with VFIO: `vfio-pci` and its variants.
pub(crate) fn is_vfio(driver: &str) -> bool {
    driver == "vfio-pci" || driver.ends_with("-vfio-pci") || driver.ends_with("_vfio_pci")
}

/// `g-` and 12 hex digits of a hash of the sorted member addresses.
pub(crate) fn stable_id(members: &[PciAddress]) -> String {
    let lines: Vec<String> = members.iter().map(ToString::to_string).collect();
    let hash = Sha256::digest(lines.join("\n").as_bytes());
    let hex: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("g-{hex}")
}
