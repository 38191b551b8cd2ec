//! VFIO and iommufd as the daemon uses them: holds, contexts, domains, attached devices.

use std::{any::Any, fmt::Debug, os::fd::OwnedFd};

use berth_dma::AddressSpace;
use berth_uapi::VfToken;

use super::{IovaRange, PciAddress, VfioError};

/// Which kernel interface carries a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// `/dev/iommu` and the VFIO cdev.
    Iommufd,
    /// `/dev/vfio/vfio` and the VFIO group.
    Type1,
}

/// A domain inside a context: the IOAS id; on type1 always 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct DomainHandle(pub u32);

/// The kernel's hold on a group. Dropping it gives the hold back.
pub trait GroupHold: Send + Debug {
    /// The group's number.
    fn group(&self) -> u32;

    /// Asks the kernel whether a device of the group is open by anybody: also through a descriptor
    /// that is in no process's table, as one that was sent over a socket and not received yet.
    ///
    /// # Errors
    /// EBUSY while one is; the hold stands as before. Others: somebody was faster in the instant
    /// for which a hold has to be given back to ask this, and the hold is gone.
    ///
    /// # Kernel
    /// On type1 `UNSET_CONTAINER` is EBUSY while devices are open. A hold in an empty container has
    /// the answer in itself: no device opens through it, and no cdev binds beside it.
    fn prove_unused(&self) -> Result<(), VfioError>;

    /// Duplicates of what keeps the hold beside its context: for [`Host::adopt_hold`](crate::Host).
    fn fds(&self) -> Result<Vec<OwnedFd>, VfioError>;
}

/// One iommufd, or one container.
pub trait Context: Send + Sync + Debug {
    /// Which interface.
    fn backend(&self) -> BackendKind;

    /// Makes a domain: `IOMMU_IOAS_ALLOC`. On type1 the container's only one, each time.
    fn new_domain(&self) -> Result<DomainHandle, VfioError>;

    /// Destroys a domain that nothing is attached to.
    ///
    /// # Errors
    /// EBUSY while a device is attached; ENOENT when there is none.
    fn delete_domain(&self, domain: DomainHandle) -> Result<(), VfioError>;

    /// Opens a device and makes this context its owner: cdev open and `BIND`, or `SET_CONTAINER`
    /// (when the group isn't in it yet), `SET_IOMMU` and `GET_DEVICE_FD`. The device isn't
    /// attached yet on iommufd; on type1 it is.
    fn open_device(&self, device: PciAddress) -> Result<Box<dyn AttachedDevice>, VfioError>;

    /// Like [`Context::open_device`], and shows the secret that the kernel asks for where the
    /// physical function is on a VFIO driver: of a virtual function, and of the physical one while
    /// virtual ones are open.
    ///
    /// # Errors
    /// EACCES: it is another one. EINVAL: the kernel asks for none.
    fn open_by_token(
        &self,
        device: PciAddress,
        token: &VfToken,
    ) -> Result<Box<dyn AttachedDevice>, VfioError>;

    /// Takes over a device that this context owns already, by a duplicate of its descriptor: what
    /// [`AttachedDevice::device_id`] said of it, and what it is attached to. On type1 its group's
    /// hold is taken over before.
    ///
    /// # Errors
    /// EBADFD when the descriptor is not that device's; ENOENT when the context doesn't own it.
    fn adopt_device(
        &self,
        device: PciAddress,
        device_id: u32,
        domain: Option<DomainHandle>,
        fd: OwnedFd,
    ) -> Result<Box<dyn AttachedDevice>, VfioError>;

    /// A duplicate of the context's descriptor, for the hand-over and for comparing files.
    fn fd(&self) -> Result<OwnedFd, VfioError>;

    /// The fast path's view of a domain, in this process.
    fn address_space(&self, domain: DomainHandle) -> Result<AddressSpace, VfioError>;

    /// The ranges that a domain permits now.
    fn ranges(&self, domain: DomainHandle) -> Result<Vec<IovaRange>, VfioError>;

    /// Removes every mapping of a domain.
    fn unmap_all(&self, domain: DomainHandle) -> Result<u64, VfioError>;

    /// How many devices are bound to the context, whoever bound them; at most `most` are counted.
    /// Has no effect.
    ///
    /// # Errors
    /// EOPNOTSUPP on type1.
    ///
    /// # Kernel
    /// `IOMMU_GET_HW_INFO` is ENOENT for an id that is no bound device's.
    fn bound_devices(&self, most: usize) -> Result<usize, VfioError>;

    /// Removes every mapping of every address space in the context, those too that were made by
    /// whoever the context was handed to. Answers how many bytes that were.
    ///
    /// # Errors
    /// EBUSY while a mapping is being made or removed; what came before is gone.
    fn unmap_everything(&self) -> Result<u64, VfioError>;

    /// The context itself, for the host that made it.
    fn as_any(&self) -> &dyn Any;
}

/// A device that a context owns. Dropping it closes the descriptor: the last close unbinds.
pub trait AttachedDevice: Send + Debug {
    /// Its address.
    fn address(&self) -> PciAddress;

    /// The iommufd's id of the device; 0 on type1.
    fn device_id(&self) -> u32;

    /// Attaches to a domain: a first attach, or a replace of the whole group's domain.
    ///
    /// # Errors
    /// EINVAL when a sibling is attached to another domain; EOPNOTSUPP for a replace on type1.
    fn attach(&mut self, domain: DomainHandle) -> Result<(), VfioError>;

    /// Detaches: DMA is blocked when the group's last member leaves. On type1: unmaps all.
    fn detach(&mut self) -> Result<(), VfioError>;

    /// `VFIO_DEVICE_RESET`.
    fn reset(&mut self) -> Result<(), VfioError>;

    /// Sets the secret that whoever opens a virtual function of this physical one has to show. It
    /// stays until the physical function leaves its driver.
    ///
    /// # Errors
    /// ENOTTY: it is no physical function.
    fn set_vf_token(&mut self, token: &VfToken) -> Result<(), VfioError>;

    /// A duplicate of the device's descriptor, for the hand-over.
    fn fd(&self) -> Result<OwnedFd, VfioError>;

    /// Whether the descriptor's device is still bound: `IOMMU_GET_HW_INFO` answers on the context.
    fn bound(&self) -> Result<bool, VfioError>;
}
