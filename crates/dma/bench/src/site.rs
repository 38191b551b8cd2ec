//! A device of the kernel, and the one descriptor that both sides map through.

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use berth_dma::AddressSpace;
pub(crate) use berth_measure::Backend;
use berth_uapi::{
    BoundDevice, Cdev, Device, GroupNumber, IoasId, Iommufd, PtId, VfioContainer, VfioGroup,
};

use crate::{Places, raw::Raw};

/// A device on vfio-pci.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// How it is opened.
    pub(crate) backend: Backend,
    /// Its address.
    pub(crate) device: String,
}

impl Kernel {
    /// A case's name, with where that is.
    pub(crate) fn case(&self, text: &str) -> String {
        format!("{text}, {}", self.place())
    }

    /// A note, with where that is.
    pub(crate) fn note(&self, text: &str) -> String {
        format!("{}: {text}", self.place())
    }

    fn place(&self) -> String {
        let name = rustix::system::uname();
        format!("{}, Linux {}", self.backend.word(), name.release().to_string_lossy())
    }
}

/// What keeps the device attached; fields are dropped in this order.
#[derive(Debug)]
enum Open {
    Cdev { _device: BoundDevice, iommufd: Iommufd, ioas: IoasId },
    Group { _device: Device, container: VfioContainer, _group: VfioGroup },
}

/// An opened device, attached to an address space.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) kernel: Kernel,
    open: Open,
}

fn sysfs(device: &str) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(device)
}

fn cdev(device: &str) -> Result<PathBuf> {
    let dir = sysfs(device).join("vfio-dev");
    let mut entries = fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
    let entry = entries.next().context("the device has no cdev")??;
    Ok(Path::new("/dev/vfio/devices").join(entry.file_name()))
}

fn group(device: &str) -> Result<GroupNumber> {
    let link = fs::read_link(sysfs(device).join("iommu_group")).context("read its group")?;
    let number = link.file_name().and_then(|name| name.to_str()?.parse().ok());
    Ok(GroupNumber(number.context("a group without a number")?))
}

impl Site {
    /// Opens the device that the benches were given.
    ///
    /// # Errors
    /// There is none; the kernel's.
    pub(crate) fn open(places: &Places) -> Result<Self> {
        let Some(kernel) = places.kernel.clone() else {
            bail!("this needs a real device: --backend and --device")
        };
        let open = match kernel.backend {
            Backend::Iommufd => {
                let iommufd = Iommufd::open()?;
                let cdev = Cdev::open(&cdev(&kernel.device)?, &kernel.device)?;
                let device = cdev.bind_iommufd(&iommufd, None).map_err(|failed| failed.error)?;
                let ioas = iommufd.ioas_alloc()?;
                device.attach_pt(PtId::Ioas(ioas))?;
                Open::Cdev { _device: device, iommufd, ioas }
            }
            Backend::Type1 => {
                let group = VfioGroup::open(group(&kernel.device)?)?;
                let container = VfioContainer::open()?;
                group.set_container(&container)?;
                container.set_iommu_type1v2()?;
                let device = group.get_device_fd(&kernel.device, None)?;
                Open::Group { _device: device, container, _group: group }
            }
        };
        Ok(Self { kernel, open })
    }

    /// What C maps through.
    pub(crate) fn raw(&self) -> Raw {
        match &self.open {
            Open::Cdev { iommufd, ioas, .. } => Raw::iommufd(iommufd.as_fd(), ioas.0),
            Open::Group { container, .. } => Raw::type1(container.as_fd()),
        }
    }

    /// An address space on the same file.
    ///
    /// # Errors
    /// Too many files are open.
    pub(crate) fn space(&self) -> Result<AddressSpace> {
        Ok(match &self.open {
            Open::Cdev { iommufd, ioas, .. } => AddressSpace::iommufd(iommufd.try_clone()?, *ioas),
            Open::Group { container, .. } => {
                let fd = container.as_fd().try_clone_to_owned()?;
                AddressSpace::type1(VfioContainer::from_fd(fd, "container"))
            }
        })
    }

    /// The iommufd and its address space, where it is one.
    pub(crate) fn iommufd(&self) -> Option<(&Iommufd, IoasId)> {
        match &self.open {
            Open::Cdev { iommufd, ioas, .. } => Some((iommufd, *ioas)),
            Open::Group { .. } => None,
        }
    }
}
