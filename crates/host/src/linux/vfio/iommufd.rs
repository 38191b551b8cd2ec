//! A context on an iommufd; devices by their cdevs.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_dma::AddressSpace;
use berth_uapi::{BoundDevice, Cdev, DevId, Errno, IoasId, Iommufd, PtId, VfToken};

use super::{
    check_node, duplicate,
    kept::check_syspath,
    retry::{when_given, while_transient},
};
use crate::{
    AttachedDevice, BackendKind, Context, DomainHandle, IovaRange, Node, PciAddress, VfioError,
    linux::tree::Root,
};

/// One iommufd.
#[derive(Debug)]
pub(in crate::linux) struct IommufdContext {
    root: Root,
    iommufd: Arc<Iommufd>,
}

impl IommufdContext {
    /// Takes over an iommufd.
    pub(in crate::linux) fn new(root: Root, fd: OwnedFd) -> Self {
        Self { root, iommufd: Arc::new(Iommufd::from(fd)) }
    }

    /// Whether a bind of this device takes a VF token.
    pub(in crate::linux) fn takes_vf_token(&self, device: PciAddress) -> Result<bool, VfioError> {
        let cdev = Cdev::open(&cdev_path(&self.root, device)?, &device.to_string())?;
        Ok(cdev.takes_vf_token(&self.iommufd)?)
    }

    fn bind(
        &self,
        device: PciAddress,
        token: Option<&VfToken>,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        let path = cdev_path(&self.root, device)?;
        let name = device.to_string();
        // The cdev is opened for each try: one that the kernel refused is of no further use.
        // EAGAIN: the reset at the first open couldn't take a lock.
        let bound = while_transient(Errno::AGAIN, || {
            let cdev = when_given(|| Cdev::open(&path, &name))?;
            Ok(cdev.bind_iommufd(&self.iommufd, token)?)
        })?;
        Ok(Box::new(CdevDevice { address: device, bound, iommufd: Arc::clone(&self.iommufd) }))
    }
}

impl Context for IommufdContext {
    fn backend(&self) -> BackendKind {
        BackendKind::Iommufd
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn new_domain(&self) -> Result<DomainHandle, VfioError> {
        Ok(DomainHandle(self.iommufd.ioas_alloc()?.0))
    }

    fn delete_domain(&self, domain: DomainHandle) -> Result<(), VfioError> {
        Ok(self.iommufd.destroy(PtId::Ioas(IoasId(domain.0)))?)
    }

    fn open_device(&self, device: PciAddress) -> Result<Box<dyn AttachedDevice>, VfioError> {
        self.bind(device, None)
    }

    fn open_by_token(
        &self,
        device: PciAddress,
        token: &VfToken,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        self.bind(device, Some(token))
    }

    fn adopt_device(
        &self,
        device: PciAddress,
        device_id: u32,
        _domain: Option<DomainHandle>,
        fd: OwnedFd,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        check_node(&self.root, Node::Cdev(device), &fd)?;
        check_syspath(device, &fd)?;
        let bound = BoundDevice::from_fd(fd, DevId(device_id), &device.to_string());
        // An unbound cdev has no answer to this, and an id of no device none to the other.
        bound.device().get_info()?;
        match self.iommufd.get_hw_info(bound.dev_id()) {
            Err(error) if error.errno != Errno::OPNOTSUPP => return Err(error.into()),
            _ => {}
        }
        Ok(Box::new(CdevDevice { address: device, bound, iommufd: Arc::clone(&self.iommufd) }))
    }

    fn fd(&self) -> Result<OwnedFd, VfioError> {
        duplicate(&*self.iommufd, "iommufd")
    }

    fn address_space(&self, domain: DomainHandle) -> Result<AddressSpace, VfioError> {
        Ok(AddressSpace::iommufd(self.iommufd.try_clone()?, IoasId(domain.0)))
    }

    fn ranges(&self, domain: DomainHandle) -> Result<Vec<IovaRange>, VfioError> {
        let found = self.iommufd.iova_ranges(IoasId(domain.0))?;
        Ok(found.ranges.into_iter().map(super::range).collect())
    }

    fn unmap_all(&self, domain: DomainHandle) -> Result<u64, VfioError> {
        Ok(self.iommufd.unmap_all(IoasId(domain.0))?)
    }

    fn bound_devices(&self, most: usize) -> Result<usize, VfioError> {
        let mut bound = 0;
        for id in IDS {
            if bound == most {
                break;
            }
            match self.iommufd.get_hw_info(DevId(id)) {
                Err(error) if error.errno == Errno::NOENT => {}
                Err(error) if error.errno == Errno::OPNOTSUPP => bound += 1,
                Err(error) => return Err(error.into()),
                Ok(_) => bound += 1,
            }
        }
        Ok(bound)
    }

    fn unmap_everything(&self) -> Result<u64, VfioError> {
        let mut bytes = 0;
        for id in IDS {
            match self.iommufd.unmap_all(IoasId(id)) {
                Err(error) if error.errno == Errno::NOENT => {}
                found => bytes += found?,
            }
        }
        Ok(bytes)
    }
}

/// Ids of objects that others made in a context: the kernel gives out the lowest that is free. Who
/// makes more objects than this to hide one is told of too few, or is cut off by its end alone.
const IDS: std::ops::RangeInclusive<u32> = 1..=4096;

/// Opens the cdev of a device, unbound.
pub(in crate::linux) fn open_cdev(root: &Root, device: PciAddress) -> Result<OwnedFd, VfioError> {
    Ok(Cdev::open(&cdev_path(root, device)?, &device.to_string())?.into_fd())
}

/// The cdev of a device, from sysfs: its number is another after each bind.
pub(super) fn cdev_path(root: &Root, device: PciAddress) -> Result<PathBuf, VfioError> {
    let dir = root.device(device).join("vfio-dev");
    let name = std::fs::read_dir(&dir)
        .ok()
        .and_then(|mut entries| entries.next())
        .and_then(Result::ok)
        .map(|entry| entry.file_name());
    let name = name.ok_or_else(|| VfioError::new("find cdev", device.to_string(), Errno::NOENT))?;
    Ok(Path::new("/dev/vfio/devices").join(name))
}

/// A bound cdev.
#[derive(Debug)]
struct CdevDevice {
    address: PciAddress,
    bound: BoundDevice,
    iommufd: Arc<Iommufd>,
}

impl AttachedDevice for CdevDevice {
    fn address(&self) -> PciAddress {
        self.address
    }

    fn device_id(&self) -> u32 {
        self.bound.dev_id().0
    }

    fn attach(&mut self, domain: DomainHandle) -> Result<(), VfioError> {
        // EBUSY: a device of the group is being reset (7.x); it passes.
        let ioas = PtId::Ioas(IoasId(domain.0));
        while_transient(Errno::BUSY, || self.bound.attach_pt(ioas))?;
        Ok(())
    }

    fn detach(&mut self) -> Result<(), VfioError> {
        Ok(self.bound.detach()?)
    }

    fn reset(&mut self) -> Result<(), VfioError> {
        Ok(while_transient(Errno::AGAIN, || self.bound.device().reset())?)
    }

    fn set_vf_token(&mut self, token: &VfToken) -> Result<(), VfioError> {
        Ok(self.bound.device().set_vf_token(token)?)
    }

    fn fd(&self) -> Result<OwnedFd, VfioError> {
        duplicate(&self.bound, &self.address.to_string())
    }

    fn bound(&self) -> Result<bool, VfioError> {
        match self.iommufd.get_hw_info(self.bound.dev_id()) {
            Ok(_) => Ok(true),
            Err(error) if error.errno == Errno::NOENT => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
