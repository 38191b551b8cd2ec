//! Linux VFIO and iommufd ioctls over owned file descriptors.
//!
//! One file per kind of file descriptor: [`VfioGroup`], [`VfioContainer`], [`Cdev`], [`Iommufd`],
//! and [`Device`], which is what both the group path and the cdev path end in. Every call is one
//! ioctl (a few that report variable-size data are two), every failure is an [`IoctlError`] that
//! keeps the kernel's errno, the operation and the object it was tried on.
//!
//! This crate decides nothing and remembers nothing: it states no policy, keeps no table and
//! starts no thread. All files are opened with `O_CLOEXEC`.

#[cfg(all(feature = "attach-does-nothing", not(debug_assertions)))]
compile_error!("attach-does-nothing is for tests of tests and never for a release");

/// Whether attaching is a sham in this build: what asks the kernel about an attach has no answer.
#[doc(hidden)]
pub const ATTACH_DOES_NOTHING: bool = cfg!(feature = "attach-does-nothing");

mod bytes;
mod caps;
mod cdev;
mod container;
mod device;
mod error;
mod group;
mod ids;
mod ioctl;
mod iommufd;
mod irq;
mod kcmp;
mod passed;
mod peer;
mod probe;
mod region;
mod reset;
mod sigsys;

pub use caps::{Cap, CapError, CapIter};
pub use cdev::{BindError, BoundDevice, Cdev, VfToken};
pub use container::{ContainerInfo, DmaPerms, Extension, VfioContainer};
pub use device::{Device, DeviceInfo, RegionInfo};
pub use error::{IoctlError, errno_name};
pub use group::{GroupStatus, VfioGroup};
pub use ids::{DevId, GroupNumber, HwptId, IoasId, IovaRange, IrqIndex, PtId, RegionIndex};
pub use iommufd::{
    AllowedIova, HwInfo, HwptFlags, IoasRanges, Iommufd, IommufdOp, IovaChoice, RlimitMode,
};
pub use irq::IrqInfo;
pub use kcmp::{same_file, same_file_in};
pub use passed::{PassedError, PassedFd, passed_fds};
pub use peer::{peer_groups, peer_pidfd};
pub use probe::{Answer, DevNodes, Features, probe};
pub use region::MappedRegion;
pub use reset::{HotResetDevice, HotResetInfo, HotResetOwner};
pub use rustix::io::Errno;
pub use sigsys::{answer_with_eperm, refused_calls};
