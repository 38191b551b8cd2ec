//! What a topology file says, before it is checked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::{Bar, Grouping, Health, HostUse, IovaRange, Isolation, PciAddress, sim::fault::Fault};

/// The whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TopologySpec {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) description: String,
    #[serde(default = "default_release")]
    pub(crate) kernel_release: String,
    /// How long an act waits for a device that is in use before the helper gives up.
    #[serde(default = "default_helper_timeout")]
    pub(crate) helper_timeout_ms: u64,
    /// The boot, where daemons that come one after the other are to find the same one; else each
    /// finds one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) boot_id: Option<String>,
    /// How much memory the machine has; unknown where it isn't said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<u64>,
    #[serde(default)]
    pub(crate) features: FeatureSpec,
    /// Drivers whose use of kernel DMA isn't known: counted as users.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unknown_drivers: Vec<String>,
    /// Devices that others take their missing fields from, by `like`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) template: BTreeMap<String, DeviceSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) group: Vec<GroupSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) device: Vec<Spanned<DeviceSpec>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) fault: Vec<Fault>,
}

/// What the simulated kernel can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own in the file")]
pub(crate) struct FeatureSpec {
    pub(crate) iommu: bool,
    pub(crate) interrupt_remapping: bool,
    pub(crate) iommufd: bool,
    pub(crate) cdev: bool,
    pub(crate) type1: bool,
    pub(crate) map_file: bool,
    /// The kernel tells what happens to devices.
    pub(crate) uevents: bool,
    /// The module parameter of vfio_iommu_type1 and iommufd.
    pub(crate) allow_unsafe_interrupts: bool,
}

impl Default for FeatureSpec {
    fn default() -> Self {
        Self {
            iommu: true,
            interrupt_remapping: true,
            iommufd: true,
            cdev: true,
            type1: true,
            map_file: true,
            uevents: true,
            allow_unsafe_interrupts: false,
        }
    }
}

impl FeatureSpec {
    /// Sets one by its name; whether there is one of that name.
    pub(crate) fn set(&mut self, name: &str, on: bool) -> bool {
        let slot = match name {
            "iommu" => &mut self.iommu,
            "interrupt_remapping" => &mut self.interrupt_remapping,
            "iommufd" => &mut self.iommufd,
            "cdev" => &mut self.cdev,
            "type1" => &mut self.type1,
            "map_file" => &mut self.map_file,
            "uevents" => &mut self.uevents,
            "allow_unsafe_interrupts" => &mut self.allow_unsafe_interrupts,
            _ => return false,
        };
        *slot = on;
        true
    }
}

/// A group, where more than its members is to be said.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupSpec {
    pub(crate) number: u32,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub(crate) iommu_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reserved: Option<Vec<IovaRange>>,
}

/// How giving a device back goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ResetSpec {
    /// By the first of `reset_methods`.
    #[default]
    Verified,
    NotPossible,
    Failed,
}

/// The virtual functions a physical one makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VfSpec {
    pub(crate) device: u16,
    /// Routing id of the first one, counted from the physical function's.
    pub(crate) offset: u16,
    pub(crate) stride: u16,
    #[serde(default)]
    pub(crate) device_name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) drivers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vfio_driver: Option<String>,
}

macro_rules! device_spec {
    ($($(#[$meta:meta])* $field:ident: $kind:ty,)*) => {
        /// A device, or a template of devices: what is absent comes from `like`, then from the
        /// defaults.
        #[derive(Debug, Clone, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct DeviceSpec {
            $(
                $(#[$meta])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub(crate) $field: Option<$kind>,
            )*
        }

        impl DeviceSpec {
            /// Fills what is absent from `template`.
            pub(crate) fn or(mut self, template: &Self) -> Self {
                $(
                    if self.$field.is_none() {
                        self.$field.clone_from(&template.$field);
                    }
                )*
                self
            }
        }
    };
}

device_spec! {
    address: PciAddress,
    like: String,
    /// Absent: the device has no group.
    group: u32,
    vendor: u16,
    device: u16,
    subsystem_vendor: u16,
    subsystem_device: u16,
    class: u32,
    revision: u8,
    serial: String,
    vendor_name: String,
    device_name: String,
    class_name: String,
    numa_node: i32,
    reset_methods: Vec<String>,
    reset: ResetSpec,
    /// Bound at boot.
    driver: String,
    driver_override: String,
    /// Host drivers that match the device.
    drivers: Vec<String>,
    vfio_driver: String,
    bridge: bool,
    physical_function: PciAddress,
    sriov_total: u16,
    /// Virtual functions at boot.
    sriov_vfs: u16,
    parent: PciAddress,
    /// DMA of the device is cache coherent.
    coherent: bool,
    /// Firmware asks for a 1:1 mapping (RMRR).
    firmware_1to1: bool,
    reset_set: Vec<PciAddress>,
    grouping: Grouping,
    /// Absent: it isn't known.
    isolation: Isolation,
    vf: VfSpec,
    bars: Vec<Bar>,
    uses: Vec<HostUse>,
    /// What it shows of its health at boot.
    health: Health,
}

fn default_release() -> String {
    "6.12.0-sim".to_owned()
}

fn default_helper_timeout() -> u64 {
    10_000
}
