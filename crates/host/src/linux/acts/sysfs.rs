//! Reading and writing a device's attributes.

use std::{os::fd::OwnedFd, path::PathBuf};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::drivers;
use crate::{
    Attribute, HostError, PciAddress,
    linux::tree::{self, Root, file_error},
    steps,
};

/// A device's directory.
pub(super) struct Device<'r> {
    root: &'r Root,
    address: PciAddress,
    dir: OwnedFd,
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

    /// Where an attribute is in the tree.
    fn path(&self, attribute: &Attribute) -> PathBuf {
        self.root.join(attribute.path(self.address).trim_start_matches('/'))
    }
}

impl steps::Device for Device<'_> {
    fn address(&self) -> PciAddress {
        self.address
    }

    fn driver(&self) -> Option<String> {
        let mut link = vec![0; tree::PAGE_BYTES];
        tree::link_name_at(&self.dir, "driver", &mut link).map(str::to_owned)
    }

    fn read(&self, attribute: &Attribute) -> Option<String> {
        tree::text_at(&self.dir, attribute.below_device()?)
    }

    fn write(&self, attribute: &Attribute, text: &str) -> Result<(), HostError> {
        let written = match attribute.below_device() {
            Some(name) => rustix::fs::openat(&self.dir, name, FLAGS, Mode::empty()),
            None => rustix::fs::open(self.path(attribute), FLAGS, Mode::empty()),
        };
        written
            .and_then(|file| write_once(&file, text))
            .map_err(|errno| file_error("write", self.path(attribute), errno))
    }

    fn registered(&self, driver: &str) -> Result<String, HostError> {
        drivers::registered(self.root, driver)
    }

    fn reset_method(&self) -> Option<String> {
        let methods = tree::text_at(&self.dir, "reset_method")?;
        methods.split_ascii_whitespace().next().map(str::to_owned)
    }

    fn config(&self) -> Result<Vec<u8>, HostError> {
        let mut page = vec![0; tree::PAGE_BYTES];
        let path = || self.root.device(self.address).join("config");
        let count = tree::read_at(&self.dir, "config", &mut page)
            .map_err(|errno| file_error("read", path(), errno))?
            .len();
        page.truncate(count);
        Ok(page)
    }
}

const FLAGS: OFlags = OFlags::WRONLY.union(OFlags::TRUNC).union(OFlags::CLOEXEC);

fn write_once(file: &OwnedFd, text: &str) -> Result<(), Errno> {
    match rustix::io::write(file, text.as_bytes())? {
        count if count == text.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}
