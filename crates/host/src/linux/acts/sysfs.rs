//! Reading and writing a device's attributes.

use std::{os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{
    HostError, PciAddress,
    api::sriov_writes,
    linux::tree::{self, Root, file_error},
};

/// A device's directory.
pub(super) struct Device<'r> {
    pub root: &'r Root,
    pub address: PciAddress,
    pub dir: OwnedFd,
}

impl<'r> Device<'r> {
    /// # Errors
    /// [`HostError::NoDevice`] when it isn't there.
    pub(super) fn open(root: &'r Root, address: PciAddress) -> Result<Self, HostError> {
        let path = root.device(address);
        match tree::open_dir(&path) {
            Ok(dir) => Ok(Self { root, address, dir }),
            Err(Errno::NOENT) => Err(HostError::NoDevice(address)),
            Err(errno) => Err(file_error("open", path, errno)),
        }
    }

    /// The driver that is bound now.
    pub(super) fn driver(&self) -> Option<String> {
        let mut link = vec![0; tree::PAGE_BYTES];
        tree::link_name_at(&self.dir, "driver", &mut link).map(str::to_owned)
    }

    /// `driver_override`, `None` when unset.
    pub(super) fn driver_override(&self) -> Option<String> {
        let text = self.text("driver_override")?;
        (!text.is_empty() && text != "(null)").then_some(text)
    }

    /// An attribute, `None` when it can't be read.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        tree::text_at(&self.dir, name)
    }

    /// Writes an attribute in one write.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), HostError> {
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, name, flags, Mode::empty())
            .and_then(|file| write_once(&file, text))
            .map_err(|errno| file_error("write", self.root.device(self.address).join(name), errno))
    }
}

/// Writes a file in one write.
pub(super) fn write(path: &Path, text: &str) -> Result<(), HostError> {
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .and_then(|file| write_once(&file, text))
        .map_err(|errno| file_error("write", path, errno))
}

fn write_once(file: &OwnedFd, text: &str) -> Result<(), Errno> {
    match rustix::io::write(file, text.as_bytes())? {
        count if count == text.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// Sets the number of virtual functions, and whether host drivers are offered them.
pub(super) fn sriov(
    root: &Root,
    address: PciAddress,
    count: u16,
    autoprobe: bool,
) -> Result<(), HostError> {
    let device = Device::open(root, address)?;
    let mut writes = sriov_writes(count, autoprobe).into_iter();
    writes.try_for_each(|(attribute, value)| device.write(attribute, &value))
}

/// The configuration space, as much of it as there is.
pub(super) fn config(root: &Root, address: PciAddress) -> Result<Vec<u8>, HostError> {
    let device = Device::open(root, address)?;
    let mut page = vec![0; tree::PAGE_BYTES];
    let count = tree::read_at(&device.dir, "config", &mut page)
        .map_err(|errno| file_error("read", root.device(address).join("config"), errno))?
        .len();
    page.truncate(count);
    Ok(page)
}
