//! Asking the kernel whether anybody owns a group.

use berth_uapi::{Cdev, Errno, Iommufd};

use super::{iommufd::cdev_path, open_group};
use crate::{
    DmaKind, PciAddress, VfioError,
    linux::{
        drivers, nodes,
        tree::{self, Root},
    },
};

/// Whether nobody owns a group.
///
/// # Kernel
/// The group node opens only while nobody has it open and no cdev of the group is bound; VIABLE
/// then says that `owner_cnt` is 0. Where there are no group nodes, a bind into a throw-away
/// iommufd tells; it resets the device, so it is the last resort. Where there is no VFIO device
/// at all, only host drivers can own the group.
pub(in crate::linux) fn probe_free(root: &Root, group: u32) -> Result<bool, VfioError> {
    match open_group(group) {
        Ok(opened) => {
            let status = opened.status()?;
            Ok(status.viable && !status.container_set)
        }
        Err(error) if error.errno == Errno::BUSY.raw_os_error() => Ok(false),
        Err(error) if is_absent(&error) => without_node(root, group),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &VfioError) -> bool {
    [Errno::NOENT, Errno::NODEV, Errno::NXIO]
        .iter()
        .any(|absent| absent.raw_os_error() == error.errno)
}

fn without_node(root: &Root, group: u32) -> Result<bool, VfioError> {
    let dir = root.join("sys/kernel/iommu_groups").join(group.to_string()).join("devices");
    let names = tree::names_in(&dir)
        .map_err(|errno| VfioError::new("read members", format!("group {group}"), errno))?;
    let members: Vec<PciAddress> = names.iter().filter_map(|name| name.parse().ok()).collect();
    for member in &members {
        if host_driver(root, *member) {
            return Ok(false);
        }
    }
    match members.iter().find_map(|member| Some((*member, cdev_path(root, *member).ok()?))) {
        Some((member, path)) => bind_and_close(root, member, &path),
        None => Ok(true),
    }
}

fn host_driver(root: &Root, member: PciAddress) -> bool {
    let link = std::fs::read_link(root.device(member).join("driver")).ok();
    let driver = link.as_deref().and_then(|target| target.file_name()?.to_str());
    matches!(drivers::dma_kind(driver), DmaKind::Kernel | DmaKind::Assumed)
}

fn bind_and_close(
    root: &Root,
    member: PciAddress,
    path: &std::path::Path,
) -> Result<bool, VfioError> {
    let iommufd = Iommufd::open()?;
    match Cdev::open(path, &member.to_string())?.bind_iommufd(&iommufd, None) {
        Ok(_) => Ok(true),
        Err(failed) => match failed.error.errno {
            Errno::PERM | Errno::BUSY | Errno::INVAL => Ok(false),
            // A VF token is asked for before the group's owner is looked at.
            Errno::ACCESS => {
                let unknown = |_| VfioError::new("look at", member.to_string(), Errno::NODEV);
                nodes::in_use(root, member).map(|used| !used).map_err(unknown)
            }
            _ => Err(failed.error.into()),
        },
    }
}
