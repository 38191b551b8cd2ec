//! The privileged acts, done in the calling process.
//!
//! Callers that must not hang use a helper process. Paths are built from parsed addresses and
//! checked driver names only, never from text that somebody sent.

mod access;
pub(super) mod access_list;
pub(super) mod drivers;
mod processes;
mod reach;
mod sysfs;

use std::path::Path;

use berth_uapi::{IoctlError, Iommufd, RlimitMode};

pub use reach::{Reach, reach};

use super::{procs, tree::Root};
use crate::{
    Act, ActOutcome, HostError, Privileged,
    steps::{self, Device as _},
};
use sysfs::Device;

/// Does one act below `root`, which is `/` on a running machine.
///
/// # Errors
/// The kernel's errno with the file or call that gave it; what was written before stays.
pub fn perform(root: &Path, act: &Act) -> Result<ActOutcome, HostError> {
    prepare(root, act);
    perform_prepared(root, act)
}

/// Does what takes more than the act itself: loading the VFIO driver that it names.
pub fn prepare(root: &Path, act: &Act) {
    let driver = match act {
        Act::Bind { driver, .. } => Some(driver),
        Act::Restore { driver, .. } => driver.as_ref(),
        _ => None,
    };
    if let Some(driver) = driver {
        drivers::load_missing(&Root::new(root), driver);
    }
}

/// Does an act that [`prepare`] was called for. It opens what [`reach`] names, and starts nothing.
///
/// # Errors
/// As [`perform`].
pub fn perform_prepared(root: &Path, act: &Act) -> Result<ActOutcome, HostError> {
    let root = Root::new(root);
    match act {
        Act::Bind { device, .. }
        | Act::Unbind { device }
        | Act::Override { device, .. }
        | Act::Restore { device, .. }
        | Act::Sriov { device, .. }
        | Act::Reset { device } => steps::perform(&Device::open(&root, *device)?, act),
        Act::ReadConfig { device } => {
            Device::open(&root, *device)?.config().map(ActOutcome::Config)
        }
        Act::WhoHolds { nodes } => {
            let sought = procs::sought(&root, nodes)?;
            let me = rustix::process::getpid().as_raw_nonzero().get();
            procs::find(&root, &sought, me).map(ActOutcome::Holders)
        }
        Act::Prlimit { pid, start_time, memlock_bytes } => {
            processes::raise_memlock(&root, *pid, *start_time, *memlock_bytes)
                .map(|()| ActOutcome::Done)
        }
        Act::Kill { pid, start_time, signal } => {
            processes::kill(&root, *pid, *start_time, *signal).map(|()| ActOutcome::Done)
        }
        Act::OpenIommu => open_iommu().map(ActOutcome::Fd),
        Act::Access { node, uid, allow } => {
            access::set(&root, *node, *uid, *allow).map(|()| ActOutcome::Done)
        }
    }
}

fn open_iommu() -> Result<std::os::fd::OwnedFd, HostError> {
    let iommufd = Iommufd::open().map_err(ioctl_error)?;
    iommufd.set_rlimit_mode(RlimitMode::Process).map_err(ioctl_error)?;
    Ok(iommufd.into_fd())
}

fn ioctl_error(error: IoctlError) -> HostError {
    HostError::File {
        op: error.op,
        path: "/dev/iommu".to_owned(),
        errno: error.errno.raw_os_error(),
    }
}

/// Does acts in the calling process: for tests, tools that run as root, and the helper itself.
#[derive(Debug, Clone)]
pub struct Direct {
    root: std::path::PathBuf,
}

impl Direct {
    /// Acts on the tree at `root`.
    pub fn new(root: impl Into<std::path::PathBuf>) -> Self {
        Self { root: root.into() }
    }
}

impl Privileged for Direct {
    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError> {
        perform(&self.root, act)
    }
}

#[cfg(test)]
#[path = "acts/tests.rs"]
mod tests;
