//! Where the nodes of VFIO and iommufd are, as sysfs tells.

use rustix::io::Errno;

use super::tree::{self, Root, file_error};
use crate::{HostError, Node, PciAddress};

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Its path on the running machine.
    pub(super) path: String,
    /// Major and minor number.
    pub(super) number: (u32, u32),
}

/// Finds a node.
///
/// # Errors
/// ENOENT when there is none, [`HostError::NoDevice`] when its device is gone.
pub(super) fn find(root: &Root, node: Node) -> Result<Place, HostError> {
    let (path, below) = match node {
        Node::Cdev(device) => {
            let name = cdev_of(root, device)?;
            let below = format!("sys/bus/pci/devices/{device}/vfio-dev/{name}/dev");
            (format!("/dev/vfio/devices/{name}"), below)
        }
        Node::Group(group) => (format!("/dev/vfio/{group}"), format!("sys/class/vfio/{group}/dev")),
        Node::Iommu => ("/dev/iommu".to_owned(), "sys/class/misc/iommu/dev".to_owned()),
        Node::Container => ("/dev/vfio/vfio".to_owned(), "sys/class/misc/vfio/dev".to_owned()),
    };
    let file = root.join(&below);
    let text = std::fs::read_to_string(&file)
        .map_err(|error| file_error("read", &file, errno_of(&error)))?;
    let number = number(&text).ok_or_else(|| file_error("read", &file, Errno::INVAL))?;
    Ok(Place { path, number })
}

/// The name of a device's cdev: another one after each bind.
fn cdev_of(root: &Root, device: PciAddress) -> Result<String, HostError> {
    let dir = root.device(device);
    let names = match tree::names_in(&dir.join("vfio-dev")) {
        Err(Errno::NOENT) if !dir.exists() => return Err(HostError::NoDevice(device)),
        found => found.map_err(|errno| file_error("find", dir.join("vfio-dev"), errno))?,
    };
    let missing = || file_error("find", dir.join("vfio-dev"), Errno::NOENT);
    names.into_iter().next().ok_or_else(missing)
}

/// Whether VFIO has a device open.
///
/// # Kernel
/// VFIO enables a device at its first open and disables it at the last close; the driver alone
/// leaves it disabled.
pub(super) fn in_use(root: &Root, device: PciAddress) -> Result<bool, HostError> {
    let file = root.device(device).join("enable");
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok(text.trim() != "0"),
        Err(_) if !root.device(device).exists() => Err(HostError::NoDevice(device)),
        Err(error) => Err(file_error("read", &file, errno_of(&error))),
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// `MAJOR:MINOR`.
fn number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
