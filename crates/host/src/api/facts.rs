//! What discovery finds.

use serde::{Deserialize, Serialize};

use super::{Isolation, PciAddress, ResetOutcome};

/// Everything found in one pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Groups by the kernel's number.
    pub groups: Vec<GroupFacts>,
    /// All PCI functions, those without a group too.
    pub devices: Vec<DeviceFacts>,
}

/// Settings of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether `allow_unsafe_interrupts` is on, of the modules that have it and are loaded.
    pub unsafe_interrupts: Vec<(String, bool)>,
    /// Whether the driver `vfio-pci` is registered; `None` where that can't be told.
    pub vfio_pci: Option<bool>,
    /// Whether `vfio-pci` makes virtual functions: its parameter `enable_sriov`.
    pub vfio_sriov: bool,
}

/// One IOMMU group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupFacts {
    /// The kernel's number now.
    pub number: u32,
    /// Stable over boots: `g-` and 12 hex digits of a hash of the sorted member addresses.
    pub stable_id: String,
    /// Members, sorted.
    pub members: Vec<PciAddress>,
    /// `DMA`, `DMA-FQ`, `identity`, `blocked`, `unmanaged` or empty when unreadable.
    pub iommu_type: String,
    /// From `reserved_regions`.
    pub reserved_regions: Vec<IovaRange>,
}

/// A range of I/O addresses, both ends included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IovaRange {
    /// First address.
    pub first: u64,
    /// Last address, included.
    pub last: u64,
    /// `direct`, `direct-relaxable`, `reserved`, `msi`; empty for a permitted range.
    pub kind: String,
}

/// What a driver does with the kernel's DMA API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DmaKind {
    /// No driver.
    None,
    /// `driver_managed_dma`: vfio-pci and its variants, pci-stub, pcieport.
    Managed,
    /// A known host driver: claims the default domain.
    Kernel,
    /// An unknown driver, counted as one that claims the default domain.
    Assumed,
}

/// One base address register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    /// 0 to 5.
    pub index: u32,
    /// Bytes.
    pub size_bytes: u64,
    /// A port range.
    pub io: bool,
    /// Above 4 GiB possible.
    pub memory64: bool,
    /// Prefetchable memory.
    pub prefetchable: bool,
}

/// Why a device is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupingCode {
    /// It is isolated.
    Alone,
    /// A bridge gives all behind it one requester id.
    BridgeAlias,
    /// A port on the way to the root lacks ACS.
    MissingAcs,
    /// A function of a device without ACS between its functions.
    Multifunction,
    /// Discovery couldn't tell.
    Unknown,
}

/// Why a device is in its group, with the port or bridge that causes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grouping {
    /// The rule.
    pub code: GroupingCode,
    /// The bridge, port or sibling that causes it.
    pub cause: Option<PciAddress>,
    /// One sentence for people.
    pub text: String,
}

/// One PCI function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// Its address.
    pub address: PciAddress,
    /// The number that the kernel gave this device as it appeared: one that comes later to the same
    /// address has another, on the same boot. `None` where that can't be told.
    #[serde(default)]
    pub instance: Option<u64>,
    /// Number of its group; `None` while it has none (virtio-iommu before a probe, no IOMMU).
    pub group: Option<u32>,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem device id.
    pub subsystem_device: u16,
    /// Base class, sub class, programming interface: 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// A serial number where the device shows one (PCIe DSN, nvme), for identity.
    pub serial: Option<String>,
    /// From pci.ids; empty when it isn't installed or has no entry.
    pub vendor_name: String,
    /// From pci.ids.
    pub device_name: String,
    /// From pci.ids.
    pub class_name: String,
    /// -1 is unknown.
    pub numa_node: i32,
    /// BARs that exist.
    pub bars: Vec<Bar>,
    /// From `reset_method`; empty when there is none.
    pub reset_methods: Vec<String>,
    /// Bound driver.
    pub driver: Option<String>,
    /// What that driver does with kernel DMA.
    pub dma: DmaKind,
    /// `driver_override`, `None` when unset.
    pub driver_override: Option<String>,
    /// The variant driver that a `vfio_pci:` modalias names, else `vfio-pci`.
    pub vfio_driver: String,
    /// Header type 1: a bridge or port, never given away.
    pub bridge: bool,
    /// Its physical function, for a virtual one.
    pub physical_function: Option<PciAddress>,
    /// Its virtual functions.
    pub virtual_functions: Vec<PciAddress>,
    /// `sriov_totalvfs`.
    pub sriov_total: u16,
    /// `sriov_drivers_autoprobe`: whether host drivers are offered its virtual functions. Where it
    /// has none, and where it can't be read, as the kernel has it at first: true.
    #[serde(default = "offered")]
    pub sriov_autoprobe: bool,
    /// The port or bridge above.
    pub parent: Option<PciAddress>,
    /// Why it is in its group.
    pub grouping: Grouping,
    /// What it shows of isolation; `None` where its configuration space can't be read so far.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// `/dev/vfio/devices/vfioN` while a VFIO driver is bound and the kernel has cdevs.
    pub cdev: Option<String>,
    /// Devices that a bus or slot reset of this one hits too (its reset set), itself left out.
    pub reset_set: Vec<PciAddress>,
    /// The domain of its own that its host driver has attached for somebody.
    #[serde(default)]
    pub private_domain: Option<PrivateDomain>,
}

fn offered() -> bool {
    true
}

impl DeviceFacts {
    /// Whether no reset hits this device alone, so that the others of its reset set are hit too.
    ///
    /// # Kernel
    /// `bus` and `cxl_bus` reset all below a port, the other methods of `reset_method` one function.
    /// Where a function can't be reset alone, `vfio_pci_core_disable` resets the bus or slot once
    /// nobody has a device of it open, and `VFIO_DEVICE_PCI_HOT_RESET` does so for the owner of all.
    #[must_use]
    pub fn resets_peers(&self) -> bool {
        let all_below_the_port = |method: &String| method == "bus" || method == "cxl_bus";
        !self.bridge
            && !self.reset_set.is_empty()
            && self.reset_methods.iter().all(all_below_the_port)
    }
}

/// A domain that a host driver attached in place of the default one, as `iommu_attach_device` does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateDomain {
    /// The node through which it was made and is filled; none where the driver did so by itself.
    pub node: Option<String>,
    /// The processes that have the node open, `qemu (1234)`; none where they can't be looked at.
    pub processes: Vec<String>,
}

impl PrivateDomain {
    /// Who keeps it, in words, also where nobody can be looked at. Without a node nobody does.
    #[must_use]
    pub fn keepers(&self) -> Vec<String> {
        if self.node.is_some() && self.processes.is_empty() {
            return vec!["a process that berthd can't see".to_owned()];
        }
        self.processes.clone()
    }
}

/// What the host does with a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostUse {
    /// `mount`, `swap`, `md`, `dm`, `lvm`, `route`, `bond`, `bridge`, `boot-display`.
    pub kind: String,
    /// The mount point, volume, interface, and what it is on.
    pub detail: String,
    /// What a command that ends it names, where that isn't the detail: mount point, node of an array.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    target: String,
}

impl HostUse {
    /// A use.
    pub fn new(kind: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind: kind.into(), detail: detail.into(), target: String::new() }
    }

    /// The same, which a command that ends it names so.
    #[must_use]
    pub fn with_target(self, target: impl Into<String>) -> Self {
        Self { target: target.into(), ..self }
    }

    /// What a command that ends it names.
    #[must_use]
    pub fn target(&self) -> &str {
        if self.target.is_empty() { &self.detail } else { &self.target }
    }
}

/// A process and what it has open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessUse {
    /// Its pid.
    pub pid: i32,
    /// Its start time, field 22 of `/proc/PID/stat`, read while it was looked at: a later process
    /// with its pid has another one.
    pub start_time: u64,
    /// Its parent's pid, field 4 of the same; 0 where it isn't told.
    #[serde(default)]
    pub parent: i32,
    /// `/proc/PID/comm`.
    pub name: String,
    /// The node.
    pub what: String,
    /// The reservation that `berth run` started it with, or what it came of: `BERTH_RESERVATION` of
    /// its environment. It may say what it likes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reservation: String,
    /// Its real user id; none where it isn't told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The service manager's unit that it is in; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
}

impl ProcessUse {
    /// What a process shows for a VFIO device whose descriptor doesn't tell which one it is.
    ///
    /// # Kernel
    /// Descriptors that came from a group's node tell it in fdinfo only since 6.18.
    pub const SOME_DEVICE: &str = "anon_inode:[vfio-device]";

    /// Whether it is known that the process has the very device open that was asked about, and not
    /// just some device.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.what != Self::SOME_DEVICE
    }
}

/// Yes, no, or could not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It works.
    Yes,
    /// The expected refusal of a kernel without it.
    No,
    /// Anything else.
    CouldNotTell,
}

/// One thing that a host can or can't do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// `iommu`, `iommufd`, `cdev`, `type1`, `map-file`, `interrupt-remapping`, `kernel-hold`,
    /// `uevents`.
    pub name: String,
    /// Whether it is there.
    pub answer: Answer,
    /// How that is known, or what is missing.
    pub note: String,
}

impl ResetOutcome {
    /// The word used in records and output.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Verified { .. } => "verified",
            Self::NotPossible { .. } => "not_possible",
            Self::Failed { .. } => "failed",
        }
    }
}
