//! A device's registers, mapped into this process.
#![expect(unsafe_code, reason = "maps device memory and reads and writes it volatile")]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::bytes::len_u64;
use crate::{IoctlError, IovaRange, RegionInfo};

/// A mapped region of a device: registers, read and written one word at a time.
///
/// The mapping keeps the device open, and with it claimed, until it is dropped.
///
/// # Kernel
///
/// While the device's memory space is switched off or it is being reset, touching the mapping
/// raises `SIGBUS`.
#[derive(Debug)]
pub struct MappedRegion {
    base: NonNull<u8>,
    length: usize,
    first_offset: u64,
    writable: bool,
    name: Box<str>,
}

// SAFETY: the mapping belongs to the process, not to a thread; every access is one volatile load
// or store of an aligned word, and no reference to its memory is ever formed.
unsafe impl Send for MappedRegion {}
// SAFETY: as above; concurrent volatile accesses reach the device in some order, as they would
// from two processes.
unsafe impl Sync for MappedRegion {}

impl MappedRegion {
    pub(crate) fn new(
        device: BorrowedFd<'_>,
        info: &RegionInfo,
        area: IovaRange,
        name: String,
    ) -> Result<Self, IoctlError> {
        let failed = |errno| IoctlError::new("mmap", name.as_str(), errno);
        let bytes = area.last.checked_sub(area.start).and_then(|span| span.checked_add(1));
        let length = bytes
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| failed(Errno::OVERFLOW))?;
        let offset =
            info.file_offset.checked_add(area.start).ok_or_else(|| failed(Errno::OVERFLOW))?;
        let mut prot = ProtFlags::empty();
        prot.set(ProtFlags::READ, info.readable);
        prot.set(ProtFlags::WRITE, info.writable);
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
        let base =
            unsafe { mmap(std::ptr::null_mut(), length, prot, MapFlags::SHARED, device, offset) }
                .map_err(failed)?;
        let base = NonNull::new(base.cast()).ok_or_else(|| failed(Errno::NOMEM))?;
        let writable = info.writable;
        Ok(Self { base, length, first_offset: area.start, writable, name: name.into() })
    }

    /// The part of the region that is mapped, as offsets in the region.
    pub fn range(&self) -> IovaRange {
        let last = self.first_offset.saturating_add(len_u64(self.length)).saturating_sub(1);
        IovaRange { start: self.first_offset, last }
    }

    /// Reads the 32-bit register at `offset` of the region.
    ///
    /// # Errors
    ///
    /// `EINVAL`: not mapped there, or not aligned.
    pub fn read_u32(&self, offset: u64) -> Result<u32, IoctlError> {
        let at = self.place::<u32>(offset, "read")?;
        // SAFETY: `place` found an aligned word inside the mapping, which lives as long as self.
        Ok(u32::from_le(unsafe { at.read_volatile() }))
    }

    /// Writes the 32-bit register at `offset` of the region.
    ///
    /// # Errors
    ///
    /// `EINVAL`: not mapped there, not aligned, or the region is read-only.
    pub fn write_u32(&self, offset: u64, value: u32) -> Result<(), IoctlError> {
        let at = self.writable_place::<u32>(offset)?;
        // SAFETY: `place` found an aligned word inside the mapping, which lives as long as self.
        unsafe { at.write_volatile(value.to_le()) };
        Ok(())
    }

    /// Reads the 64-bit register at `offset` of the region.
    ///
    /// # Errors
    ///
    /// `EINVAL`: not mapped there, or not aligned.
    pub fn read_u64(&self, offset: u64) -> Result<u64, IoctlError> {
        let at = self.place::<u64>(offset, "read")?;
        // SAFETY: `place` found an aligned word inside the mapping, which lives as long as self.
        Ok(u64::from_le(unsafe { at.read_volatile() }))
    }

    /// Writes the 64-bit register at `offset` of the region.
    ///
    /// # Errors
    ///
    /// `EINVAL`: not mapped there, not aligned, or the region is read-only.
    pub fn write_u64(&self, offset: u64, value: u64) -> Result<(), IoctlError> {
        let at = self.writable_place::<u64>(offset)?;
        // SAFETY: `place` found an aligned word inside the mapping, which lives as long as self.
        unsafe { at.write_volatile(value.to_le()) };
        Ok(())
    }

    fn writable_place<T>(&self, offset: u64) -> Result<NonNull<T>, IoctlError> {
        if !self.writable {
            return Err(self.outside(offset, "write"));
        }
        self.place(offset, "write")
    }

    fn place<T>(&self, offset: u64, op: &'static str) -> Result<NonNull<T>, IoctlError> {
        offset
            .checked_sub(self.first_offset)
            .and_then(|inside| usize::try_from(inside).ok())
            .filter(|inside| inside.is_multiple_of(size_of::<T>()))
            .filter(|inside| {
                inside.checked_add(size_of::<T>()).is_some_and(|end| end <= self.length)
            })
            // SAFETY: `inside` was just found to lie within the mapping. It is aligned, since the
            // mapping starts at a page.
            .map(|inside| unsafe { self.base.add(inside) }.cast())
            .ok_or_else(|| self.outside(offset, op))
    }

    fn outside(&self, offset: u64, op: &'static str) -> IoctlError {
        IoctlError::new(op, format!("{} at {offset:#x}", self.name), Errno::INVAL)
    }
}

impl Drop for MappedRegion {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made; nothing refers to it any more.
        // It can only fail for arguments that mmap would not have returned.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn mapped(writable: bool) -> MappedRegion {
        let file = memfd_create("region", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, 0x3000).expect("a size");
        let info = RegionInfo { readable: true, writable, ..RegionInfo::default() };
        let area = IovaRange { start: 0x1000, last: 0x1fff };
        MappedRegion::new(file.as_fd(), &info, area, "region 0 of test".to_owned()).expect("mmap")
    }

    #[test]
    fn words_come_back() {
        let region = mapped(true);
        region.write_u64(0x1008, 0x1122_3344_5566_7788).expect("inside");
        assert_eq!(region.read_u32(0x1008), Ok(0x5566_7788));
        assert_eq!(region.read_u64(0x1008), Ok(0x1122_3344_5566_7788));
        region.write_u32(0x1ffc, 5).expect("the last word");
        assert_eq!(region.read_u32(0x1ffc), Ok(5));
        assert_eq!(region.range(), IovaRange { start: 0x1000, last: 0x1fff });
    }

    #[test]
    fn nothing_outside_can_be_touched() {
        let region = mapped(true);
        for offset in [0, 0xffc, 0x1002, 0x1ffe, 0x2000, u64::MAX] {
            assert!(region.read_u32(offset).is_err(), "{offset:#x}");
            assert!(region.write_u32(offset, 1).is_err(), "{offset:#x}");
        }
        assert!(region.read_u64(0x1ffc).is_err());
        assert!(mapped(false).write_u32(0x1000, 1).is_err());
    }
}
