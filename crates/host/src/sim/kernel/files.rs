//! Open files and when they close: the last reference releases.

use rustix::io::Errno;

use super::Kernel;
use crate::PciAddress;

/// An open file of the simulated kernel: a `struct file`.
pub(crate) type FileId = u64;

/// An open `/dev/vfio/N`. Device files opened through it hold it open.
#[derive(Debug)]
pub(crate) struct GroupFile {
    pub(crate) number: u32,
    /// Which life of the node it was opened in.
    pub(crate) incarnation: u64,
    pub(crate) references: u32,
}

/// How a device file came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    /// `GET_DEVICE_FD`.
    Group { file: FileId },
    /// The cdev; `bound` after `BIND`.
    Cdev { bound: Option<Bound> },
}

/// What `BIND` left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) iommufd: FileId,
    pub(crate) device_id: u32,
    pub(crate) group: u32,
    pub(crate) attached: bool,
}

/// An open device.
#[derive(Debug)]
pub(crate) struct DeviceFile {
    pub(crate) address: PciAddress,
    pub(crate) via: Via,
}

impl DeviceFile {
    pub(crate) fn bound(&self) -> Option<Bound> {
        match self.via {
            Via::Cdev { bound } => bound,
            Via::Group { .. } => None,
        }
    }

    pub(crate) fn is_bound_in(&self, group: u32) -> bool {
        self.bound().is_some_and(|bound| bound.group == group)
    }
}

impl Kernel {
    /// Closes a device file. The last close disables the device and ends its claim.
    pub(crate) fn close_device_file(&mut self, id: FileId) {
        let Some(file) = self.device_files.get(&id) else { return };
        let (address, via) = (file.address, file.via);
        if let Via::Cdev { bound: Some(_) } = via {
            self.unbind_iommufd(id);
        }
        self.device_files.remove(&id);
        if let Some(vfio) = self.devices.get_mut(&address).and_then(|d| d.vfio.as_mut()) {
            vfio.files = vfio.files.saturating_sub(1);
            if matches!(via, Via::Group { .. }) {
                vfio.open_count = vfio.open_count.saturating_sub(1);
            }
        }
        if let Via::Group { file } = via {
            self.put_group_file(file);
        }
    }

    /// Drops one reference of a group file.
    pub(crate) fn put_group_file(&mut self, id: FileId) {
        let Some(file) = self.group_files.get_mut(&id) else { return };
        file.references = file.references.saturating_sub(1);
        if file.references == 0 {
            self.release_group_file(id);
        }
    }

    /// Closes the user's reference of a container.
    pub(crate) fn close_container(&mut self, id: FileId) {
        if let Some(container) = self.containers.get_mut(&id) {
            container.open = false;
            self.reap_container(id);
        }
    }

    /// Closes the user's reference of an iommufd.
    pub(crate) fn close_iommufd(&mut self, id: FileId) {
        if let Some(iommufd) = self.iommufds.get_mut(&id) {
            iommufd.open = false;
            self.reap_iommufd(id);
        }
    }

    /// The device file, or EBADF.
    pub(crate) fn device_file(&self, id: FileId) -> Result<&DeviceFile, Errno> {
        self.device_files.get(&id).ok_or(Errno::BADF)
    }

    /// Whether a driver unbind would wait.
    pub(crate) fn in_use(&self, address: PciAddress) -> bool {
        self.devices
            .get(&address)
            .and_then(|device| device.vfio.as_ref())
            .is_some_and(|vfio| vfio.files > 0)
            || self.vhost_files.values().any(|device| *device == address)
    }
}
