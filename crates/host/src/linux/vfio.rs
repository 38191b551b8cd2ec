//! VFIO on the real kernel: holds, contexts on both back ends, and asking who owns a group.

mod iommufd;
mod kept;
mod probe;
mod retry;
mod type1;

pub(super) use iommufd::{IommufdContext, open_cdev};
pub(super) use kept::check_node;
pub(super) use probe::probe_free;
pub(super) use type1::{OwnHold, Type1Context};

use berth_uapi::{Errno, GroupNumber, VfioGroup};

use crate::VfioError;

/// Opens the node of a group that a device of it was just bound in.
fn open_new_group(number: u32) -> Result<VfioGroup, VfioError> {
    Ok(retry::when_given(|| VfioGroup::open(GroupNumber(number)))?)
}

/// Opens the node of a group.
fn open_group(number: u32) -> Result<VfioGroup, VfioError> {
    Ok(VfioGroup::open(GroupNumber(number))?)
}

/// A duplicate of a descriptor, close-on-exec.
fn duplicate(fd: impl std::os::fd::AsFd, object: &str) -> Result<std::os::fd::OwnedFd, VfioError> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(|errno| VfioError::new("dup", object, errno))
}

/// The range in this crate's words.
fn range(range: berth_uapi::IovaRange) -> crate::IovaRange {
    crate::IovaRange { first: range.start, last: range.last, kind: String::new() }
}

/// Locks, also after a panic elsewhere: what is in there stays consistent at every step.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The error for a domain that a context doesn't have.
fn no_domain(op: &str, domain: crate::DomainHandle) -> VfioError {
    VfioError::new(op, format!("domain {}", domain.0), Errno::NOENT)
}
