//! Memory of this process that stays where it is while devices may use it.
#![expect(unsafe_code, reason = "maps and unmaps memory")]

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use berth_uapi::{DmaPerms, Errno};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// The size of this machine's pages.
///
/// # Units
///
/// Bytes.
#[inline]
pub fn page_bytes() -> u64 {
    as_u64(rustix::param::page_size())
}

/// Whether something is a multiple of the size of pages, which is a power of two: without a division.
#[inline]
pub(crate) fn is_whole_pages(value: u64) -> bool {
    value & (page_bytes() - 1) == 0
}

/// A length or address of this process as the `u64` of the ioctl side.
#[inline]
pub(crate) fn as_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// A memory mapping that this crate made. No reference to its bytes is ever formed.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared `Mapping` only tells where it lies.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private, zeroed memory.
    pub(crate) fn anonymous(length: usize) -> Result<Self, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
        let base =
            unsafe { mmap_anonymous(std::ptr::null_mut(), length, prot, MapFlags::PRIVATE) }?;
        Self::new(base, length)
    }

    /// Part of a file, shared with everyone else who maps it.
    pub(crate) fn of_file(
        file: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        perms: DmaPerms,
    ) -> Result<Self, Errno> {
        let mut prot = ProtFlags::READ;
        prot.set(ProtFlags::WRITE, perms.write);
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
        let base =
            unsafe { mmap(std::ptr::null_mut(), length, prot, MapFlags::SHARED, file, offset) }?;
        Self::new(base, length)
    }

    fn new(base: *mut c_void, length: usize) -> Result<Self, Errno> {
        Ok(Self { base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?, length })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that was made; a mapping that a device may still use is kept
        // alive (or leaked) by the address space it is mapped in.
        // It can only fail for arguments that mmap would not have returned.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}
