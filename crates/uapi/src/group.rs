//! `/dev/vfio/N`: one IOMMU group, opened by one process at a time.
#![expect(unsafe_code, reason = "passes structures and strings to ioctl")]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio as v;

use crate::bytes::len_u32;
use crate::{Device, GroupNumber, IoctlError, ioctl};

/// An open VFIO group.
///
/// # Kernel
///
/// Only one file of a group can be open system-wide; while it is, members cannot be bound through
/// their cdevs. An open group in a container owns the DMA of all its members.
#[derive(Debug)]
pub struct VfioGroup {
    fd: OwnedFd,
    name: Box<str>,
}

/// What the kernel says of an open group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Nobody but VFIO uses DMA in the group.
    ///
    /// # Kernel
    ///
    /// Since 5.19 that means its `owner_cnt` is 0 or that it is in a container, not that every
    /// member is on vfio-pci.
    pub viable: bool,
    /// The group is in a container.
    pub container_set: bool,
}

impl VfioGroup {
    /// Opens `/dev/vfio/N`.
    ///
    /// # Errors
    ///
    /// `EBUSY`: the group is open elsewhere, or a member is bound through its cdev. `ENOENT`: no
    /// member is on a VFIO driver. `ENODEV`: the last one has just left.
    pub fn open(number: GroupNumber) -> Result<Self, IoctlError> {
        Self::open_path(Path::new(&format!("/dev/vfio/{}", number.0)))
    }

    /// Opens a group by the path of its node.
    ///
    /// # Errors
    ///
    /// As [`VfioGroup::open`]; the path is the error's object.
    pub fn open_path(path: &Path) -> Result<Self, IoctlError> {
        let name = path.display().to_string();
        let fd = crate::device::open_node(path)?;
        Ok(Self { fd, name: name.into() })
    }

    /// Takes over an open group that came from elsewhere; `name` is what errors call it.
    pub fn from_fd(fd: OwnedFd, name: &str) -> Self {
        Self { fd, name: name.into() }
    }

    /// Gives up the wrapper and keeps the file open.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Asks for the group's state.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the group is gone.
    pub fn status(&self) -> Result<GroupStatus, IoctlError> {
        let size = len_u32(size_of::<v::vfio_group_status>());
        let mut status = v::vfio_group_status { argsz: size, flags: 0 };
        let op = ioctl::GROUP_GET_STATUS;
        // SAFETY: the structure of this ioctl, argsz its size, no addresses in it.
        unsafe { ioctl::with_struct(self.as_fd(), op, &mut status) }
            .map_err(|errno| self.error(op, errno))?;
        Ok(GroupStatus {
            viable: status.flags & v::VFIO_GROUP_FLAGS_VIABLE != 0,
            container_set: status.flags & v::VFIO_GROUP_FLAGS_CONTAINER_SET != 0,
        })
    }

    /// Puts the group into a container (or an iommufd): from here on the group's DMA is owned,
    /// and with an empty container blocked.
    ///
    /// # Errors
    ///
    /// `EPERM`: a member is on a host driver, or another owner has the group. `EINVAL`: already
    /// in a container, or its domains are incompatible with the container's. `EBADFD`: neither a
    /// container nor an iommufd.
    pub fn set_container(&self, container: impl AsFd) -> Result<(), IoctlError> {
        let op = ioctl::GROUP_SET_CONTAINER;
        let mut number = container.as_fd().as_raw_fd();
        // SAFETY: the kernel reads one 32-bit file descriptor number, which is open meanwhile.
        unsafe { ioctl::with_struct(self.as_fd(), op, &mut number) }
            .map_err(|errno| self.error(op, errno))?;
        Ok(())
    }

    /// Takes the group out of its container.
    ///
    /// # Errors
    ///
    /// `EBUSY`: devices of the group are open. `EINVAL`: it is in none.
    pub fn unset_container(&self) -> Result<(), IoctlError> {
        let op = ioctl::GROUP_UNSET_CONTAINER;
        ioctl::with_value(self.as_fd(), op, 0).map_err(|errno| self.error(op, errno))?;
        Ok(())
    }

    /// Opens a member by its address (`0000:65:00.0`), with the VF token where one is needed.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the group is in no container, the container has no IOMMU set, or a token was
    /// given that isn't used. `ENODEV`: no such member on a VFIO driver. `EACCES`: the VF token
    /// is missing or wrong.
    pub fn get_device_fd(
        &self,
        address: &str,
        vf_token: Option<&str>,
    ) -> Result<Device, IoctlError> {
        let op = ioctl::GROUP_GET_DEVICE_FD;
        let object = || format!("{address} in {}", self.name);
        let wanted = match vf_token {
            Some(token) => format!("{address} vf_token={token}"),
            None => address.to_owned(),
        };
        let mut wanted = CString::new(wanted)
            .map_err(|_| IoctlError::new(op.name, object(), Errno::INVAL))?
            .into_bytes_with_nul();
        // SAFETY: the kernel reads a string up to its NUL, which is there.
        let number = unsafe { ioctl::with_bytes(self.as_fd(), op, &mut wanted) }
            .map_err(|errno| IoctlError::new(op.name, object(), errno))?;
        // SAFETY: the ioctl's result is a new file descriptor that nothing else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Device::from_fd(fd, address))
    }

    fn error(&self, op: ioctl::Op, errno: Errno) -> IoctlError {
        IoctlError::new(op.name, &*self.name, errno)
    }
}

impl AsFd for VfioGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for VfioGroup {
    fn from(fd: OwnedFd) -> Self {
        Self::from_fd(fd, "vfio group")
    }
}

impl From<VfioGroup> for OwnedFd {
    fn from(group: VfioGroup) -> Self {
        group.fd
    }
}
