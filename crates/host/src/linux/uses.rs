//! What the host does with a device: mounts, volumes, routes, bonds, the boot display.

mod blocks;
pub(super) mod mounts;
mod nets;
pub(super) mod routes;

use std::path::PathBuf;

use rustix::io::Errno;

use super::tree::{self, Root, file_error};
use crate::{DmaKind, HostError, HostUse, PciAddress};

/// Finds all uses of a device.
pub(super) fn find(root: &Root, address: PciAddress) -> Result<Vec<HostUse>, HostError> {
    let dir = root.device(address);
    let opened = tree::open_dir(&dir).map_err(|_| HostError::NoDevice(address))?;
    let mut uses = Vec::new();
    let mut link = vec![0; tree::PAGE_BYTES];
    let driver = tree::link_name_at(&opened, "driver", &mut link);
    let managed = super::drivers::dma_kind(driver) == DmaKind::Managed;
    if !managed && tree::text_at(&opened, "boot_vga").as_deref() == Some("1") {
        uses.push(HostUse::new("boot-display", "the console's display"));
    }
    if driver.is_some() && !managed {
        uses.extend(blocks::find(root, address)?);
        uses.extend(nets::find(root, address)?);
    }
    Ok(uses)
}

/// A file's text; empty when it can't be read.
fn text(path: PathBuf) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// A table's text; empty where there is none, or it is none of ours to read. What fails otherwise must
/// not pass for a device that nobody uses.
fn table(path: PathBuf) -> Result<String, HostError> {
    match std::fs::read(&path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            if is_nothing(errno) { Ok(String::new()) } else { Err(file_error("read", path, errno)) }
        }
    }
}

/// The names in a directory; none where there is none, as with [`table`].
fn names(path: PathBuf) -> Result<Vec<String>, HostError> {
    match tree::names_in(&path) {
        Err(errno) if is_nothing(errno) => Ok(Vec::new()),
        names => names.map_err(|errno| file_error("read", path, errno)),
    }
}

fn is_nothing(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::NXIO | Errno::ACCESS)
}

#[cfg(test)]
#[path = "uses/tests.rs"]
mod tests;
