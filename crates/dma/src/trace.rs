//! What is told of each call with the feature `tracing`. Without it these are empty and nothing is left of
//! them.
#![cfg_attr(not(feature = "tracing"), allow(unused_variables, reason = "nothing is told"))]

use berth_uapi::{DmaPerms, Errno};

/// The kernel mapped this.
#[inline]
pub(crate) fn mapped(iova: u64, length: u64, perms: DmaPerms) {
    #[cfg(feature = "tracing")]
    tracing::trace!(iova, length, read = perms.read, write = perms.write, "map");
}

/// The kernel unmapped so many mappings with one ioctl.
#[inline]
pub(crate) fn unmapped(iova: u64, length: u64, mappings: usize) {
    #[cfg(feature = "tracing")]
    tracing::trace!(iova, length, mappings, "unmap");
}

/// The kernel refused.
#[inline]
pub(crate) fn refused(op: &'static str, iova: u64, length: u64, errno: Errno) {
    #[cfg(feature = "tracing")]
    tracing::debug!(iova, length, errno = errno.raw_os_error(), "{op} refused");
}
