//! Independent probes: what the kernel answers to somebody who isn't Berth.

use std::{fs, path::PathBuf};

use berth_uapi::{
    BoundDevice, Cdev, DevNodes, Errno, GroupNumber, Iommufd, VfioContainer, VfioGroup,
};

use super::sysfs;

/// A device bound by a probe, with the context that now owns its group; dropping it gives it up.
#[derive(Debug)]
pub struct Probed {
    /// The device.
    pub device: BoundDevice,
    /// The context.
    pub context: Iommufd,
}

pub(super) fn knows_map_file() -> bool {
    berth_uapi::probe(&DevNodes::default()).map_file.is_yes()
}

pub(super) fn has_type1() -> bool {
    berth_uapi::probe(&DevNodes::default()).type1v2.is_yes()
}

/// The cdev node of a device that is on a VFIO driver.
///
/// # Kernel
/// `vfio-dev/vfioN` is in sysfs also where the kernel makes no cdevs: the node decides.
#[must_use]
pub fn cdev_path(address: &str) -> Option<PathBuf> {
    let dir = sysfs::device_dir(address).join("vfio-dev");
    let entry = fs::read_dir(dir).ok()?.flatten().next()?;
    let node = PathBuf::from("/dev/vfio/devices").join(entry.file_name());
    node.exists().then_some(node)
}

/// Opens the node of a device's group, as a foreign process would.
///
/// # Errors
/// The kernel's: EBUSY when the group is held or a member is bound through its cdev, ENOENT when no
/// member is on a VFIO driver.
pub fn open_group(address: &str) -> Result<VfioGroup, Errno> {
    let number = sysfs::group(address).and_then(|n| n.parse().ok()).ok_or(Errno::NODEV)?;
    VfioGroup::open(GroupNumber(number)).map_err(|error| error.errno())
}

/// Binds a device's cdev to a fresh iommufd, as a foreign process would.
///
/// # Errors
/// The kernel's: EBUSY when the group node is open, EPERM when another context or a host driver
/// has the group, EINVAL when the device is bound already; ENOENT when it has no cdev.
pub fn bind_cdev(address: &str) -> Result<Probed, Errno> {
    let path = cdev_path(address).ok_or(Errno::NOENT)?;
    let context = Iommufd::open().map_err(|error| error.errno())?;
    let cdev = Cdev::open(&path, address).map_err(|error| error.errno())?;
    let device = cdev.bind_iommufd(&context, None).map_err(|failed| failed.error.errno())?;
    Ok(Probed { device, context })
}

/// What a stranger is told when he tries to get a device that is on vfio-pci.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranger {
    /// Opening the group's node.
    pub open_group: Result<(), Errno>,
    /// Binding the cdev; `None` where the kernel has no cdevs.
    pub bind_cdev: Option<Result<(), Errno>>,
}

impl Stranger {
    /// Whether the kernel lets nobody in.
    #[must_use]
    pub fn is_kept_out(&self) -> bool {
        self.open_group.is_err() && self.bind_cdev.is_none_or(|answer| answer.is_err())
    }
}

/// Tries both ways into a device, and gives it up again at once.
#[must_use]
pub fn stranger(address: &str) -> Stranger {
    let open_group = open_group(address).map(drop);
    let bind_cdev = cdev_path(address).map(|_| bind_cdev(address).map(drop));
    Stranger { open_group, bind_cdev }
}

/// Whether the kernel counts the interrupts of a device on vfio-pci as isolated; `None` when it
/// could not be found out.
pub(super) fn interrupts_are_isolated(address: &str) -> Option<bool> {
    let by_cdev = cdev_path(address).map(|_| bind_cdev(address).map(drop));
    let answer = by_cdev.unwrap_or_else(|| type1_attach(address));
    match answer {
        Ok(()) => Some(true),
        Err(Errno::PERM) => Some(false),
        Err(errno) => {
            eprintln!("whether interrupts are isolated is unknown: {address} answers {errno}");
            None
        }
    }
}

fn type1_attach(address: &str) -> Result<(), Errno> {
    let group = open_group(address)?;
    let container = VfioContainer::open().map_err(|error| error.errno())?;
    group.set_container(&container).map_err(|error| error.errno())?;
    container.set_iommu_type1v2().map_err(|error| error.errno())
}
