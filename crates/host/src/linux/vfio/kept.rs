//! Descriptors that outlived the process that opened them: each is what it is said to be, or is
//! refused.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use berth_uapi::Errno;

use crate::{
    Node, PciAddress, VfioError,
    linux::{nodes, tree::Root},
};

/// What the kernel calls the file of a device that was opened through its group.
const DEVICE_OF_GROUP: &str = "anon_inode:[vfio-device]";
/// The line of `fdinfo` that names the device of a descriptor (Linux 6.18).
const SYSPATH: &str = "vfio-device-syspath:";

fn other(object: String) -> VfioError {
    VfioError::new("adopt", object, Errno::BADFD)
}

/// Whether a descriptor is an open file of a node.
pub(in crate::linux) fn check_node(root: &Root, node: Node, fd: &OwnedFd) -> Result<(), VfioError> {
    let name = node.to_string();
    let place = nodes::find(root, node).map_err(|_| other(name.clone()))?;
    let stat = rustix::fs::fstat(fd).map_err(|errno| VfioError::new("fstat", &*name, errno))?;
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let char_device = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device();
    if char_device && number == place.number { Ok(()) } else { Err(other(name)) }
}

/// Whether a descriptor is of a device that was opened through its group; of that very device where
/// the kernel tells.
pub(super) fn check_group_device(device: PciAddress, fd: &OwnedFd) -> Result<(), VfioError> {
    let number = fd.as_raw_fd();
    let link = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
    if link.as_os_str() != DEVICE_OF_GROUP {
        return Err(other(device.to_string()));
    }
    check_syspath(device, fd)
}

/// Whether `fdinfo` names another device; older kernels name none.
pub(super) fn check_syspath(device: PciAddress, fd: impl AsFd) -> Result<(), VfioError> {
    let number = fd.as_fd().as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let named = info.lines().find_map(|line| line.strip_prefix(SYSPATH)).map(str::trim);
    match named.and_then(|path| path.rsplit('/').next()) {
        Some(name) if name != device.to_string() => Err(other(device.to_string())),
        Some(_) | None => Ok(()),
    }
}
