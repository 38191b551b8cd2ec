//! What a host is, for those who use one.

mod act;
mod address;
mod attribute;
mod error;
mod facts;
mod health;
mod isolation;
mod uevent;
mod vfio;

pub use act::{Act, ActOutcome, Node, Privileged, ResetOutcome, sriov_writes};
pub use address::{ParseAddressError, PciAddress};
pub use attribute::{Attribute, SysfsWrite, Undo};
pub use error::{HostError, VfioError};
pub use facts::{
    Answer, Bar, DeviceFacts, DmaKind, Feature, GroupFacts, Grouping, GroupingCode, HostUse,
    Inventory, IovaRange, PrivateDomain, ProcessUse, Settings,
};
pub use health::{AerCounters, Health, LinkRate, LinkState};
pub use isolation::{Acs, Isolation, PortType};
pub use uevent::{News, Uevent, Uevents};
pub use vfio::{AttachedDevice, BackendKind, Context, DomainHandle, GroupHold};

use std::{collections::BTreeSet, fmt::Debug};

/// A machine with IOMMU groups.
///
/// Reads (`scan`, `device`, `uses`, `users_of`, `used_among`) have no effect on the machine.
pub trait Host: Send + Sync + Debug {
    /// True for the simulated host. Every surface says so.
    fn simulated(&self) -> bool;

    /// Name of the simulated topology; `None` on a real machine.
    fn topology(&self) -> Option<String>;

    /// `uname -r`, or what the topology file says.
    fn kernel_release(&self) -> String;

    /// `/proc/sys/kernel/random/boot_id`; fixed per instance on the simulated host.
    fn boot_id(&self) -> String;

    /// How much memory the machine has; `None` where that is unknown.
    fn memory_bytes(&self) -> Option<u64>;

    /// What this machine can do, found by asking.
    fn features(&self) -> Vec<Feature>;

    /// Settings of the kernel that decide what is allowed here, read anew.
    fn settings(&self) -> Settings;

    /// True when an empty container can hold a group in the kernel.
    fn kernel_hold(&self) -> bool;

    /// The back ends that work here, best first.
    fn backends(&self) -> Vec<BackendKind>;

    /// Reads every device and group.
    fn scan(&self) -> Result<Inventory, HostError>;

    /// Reads one device again.
    ///
    /// # Errors
    /// [`HostError::NoDevice`] when it is gone.
    fn device(&self, address: PciAddress) -> Result<DeviceFacts, HostError>;

    /// Subscribes to what the kernel tells of devices.
    ///
    /// # Errors
    /// The errno, where the machine has no such messages or doesn't let this process have them: then
    /// only looking again tells.
    fn uevents(&self) -> Result<Box<dyn Uevents>, HostError>;

    /// What the host does with a device now: mounts, volumes, routes, bonds, boot display.
    fn uses(&self, address: PciAddress) -> Result<Vec<HostUse>, HostError>;

    /// What a device shows of its health. A device that sleeps isn't woken: of it only that is told
    /// which the kernel knows without asking it.
    ///
    /// # Errors
    /// [`HostError::NoDevice`] when it is gone.
    fn health(&self, address: PciAddress) -> Result<Health, HostError>;

    /// Processes that have the device's or its group's VFIO nodes open, this process left out.
    fn users_of(&self, address: PciAddress) -> Result<Vec<ProcessUse>, HostError>;

    /// Which of some devices other processes may have open, found by one look: [`Self::users_of`] tells
    /// who. A host that can't tell them apart answers all.
    ///
    /// # Errors
    /// As [`Self::users_of`]; one that is gone is left out.
    fn used_among(&self, devices: &[PciAddress]) -> Result<BTreeSet<PciAddress>, HostError> {
        Ok(devices.iter().copied().collect())
    }

    /// Does one privileged act, in a helper where the act can hang.
    ///
    /// # Errors
    /// The kernel's errno with the file or ioctl that gave it.
    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError>;

    /// Opens a context: a fresh iommufd, or an empty container.
    fn open_context(&self, backend: BackendKind) -> Result<Box<dyn Context>, VfioError>;

    /// Takes the kernel's hold on a group: its node opened and set into `context`'s container
    /// (type1), or into an empty container of its own (`None`), without `VFIO_SET_IOMMU`.
    ///
    /// # Errors
    /// EBUSY when the group node or a cdev of the group is in use; EPERM when a host driver or
    /// another owner holds the group's DMA.
    fn hold(
        &self,
        group: u32,
        context: Option<&dyn Context>,
    ) -> Result<Box<dyn GroupHold>, VfioError>;

    /// Opens the cdev of a device afresh, and does no more with it: for somebody else to bind.
    ///
    /// # Errors
    /// ENOENT when it has none; EOPNOTSUPP where the kernel has no cdevs.
    fn open_cdev(&self, device: PciAddress) -> Result<std::os::fd::OwnedFd, VfioError>;

    /// Whether the kernel asks who binds this device by its cdev for a VF token, where its physical
    /// function is on a VFIO driver. Has no effect. Who opens one by its group is always asked.
    ///
    /// # Errors
    /// EBUSY while the node of its group is open; ENOENT when it has no cdev.
    fn bind_takes_vf_token(&self, device: PciAddress) -> Result<bool, VfioError>;

    /// The name under which a driver is registered, as acts look for it. One of VFIO's that isn't
    /// there counts where its module would be loaded.
    ///
    /// # Errors
    /// ENOENT: it isn't.
    fn registered(&self, driver: &str) -> Result<String, HostError>;

    /// The path of a node.
    ///
    /// # Errors
    /// ENOENT when it isn't there.
    fn node(&self, node: Node) -> Result<String, HostError>;

    /// Whether VFIO has a device open for somebody, by its group or bound by its cdev. Has no effect.
    ///
    /// # Errors
    /// [`HostError::NoDevice`] when it is gone.
    fn in_use(&self, device: PciAddress) -> Result<bool, HostError>;

    /// Whether a driver is being unbound from a device, and waits for whoever has it open.
    ///
    /// # Errors
    /// [`HostError::NoDevice`] when it is gone.
    fn unbind_waits(&self, device: PciAddress) -> Result<bool, HostError>;

    /// Asks the kernel whether anybody owns the group, without taking it: opens the group node,
    /// or answers by `GROUP_GET_STATUS`. `Ok(true)` means free.
    fn probe_free(&self, group: u32) -> Result<bool, VfioError>;

    /// Takes a hold over by the descriptors that [`GroupHold::fds`] gave.
    ///
    /// # Errors
    /// EBADFD when they are others; EINVAL when the group is in no container any more.
    fn adopt_hold(
        &self,
        group: u32,
        context: Option<&dyn Context>,
        fds: Vec<std::os::fd::OwnedFd>,
    ) -> Result<Box<dyn GroupHold>, VfioError>;

    /// Takes a context over by its descriptor (fd store, a holder).
    ///
    /// # Errors
    /// EBADFD when it is no descriptor of that back end.
    fn adopt_context(
        &self,
        backend: BackendKind,
        fd: std::os::fd::OwnedFd,
    ) -> Result<Box<dyn Context>, VfioError>;
}
