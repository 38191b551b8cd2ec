//! Memory for DMA that needs no unsafe code of its user.
#![expect(unsafe_code, reason = "copies to and from memory that a device may change")]

use std::num::NonZero;
use std::sync::Arc;

use berth_uapi::Errno;

use crate::error::DmaError;
use crate::memory::{Mapping, as_u64, is_whole_pages};

/// Page-aligned, zeroed memory of this process that can be mapped for devices.
///
/// Its bytes are copied in and out and never borrowed, because a device may change them at any
/// time. While it is mapped in an [`AddressSpace`](crate::AddressSpace), that keeps the memory
/// alive, whatever becomes of the buffer.
#[derive(Debug)]
pub struct DmaBuffer {
    memory: Arc<Mapping>,
}

impl DmaBuffer {
    /// Allocates at least `length_bytes`, rounded up to whole pages.
    ///
    /// # Errors
    ///
    /// Invalid for 0 bytes; no memory.
    pub fn new(length_bytes: usize) -> Result<Self, DmaError> {
        let page = rustix::param::page_size();
        let length = match length_bytes.checked_next_multiple_of(page) {
            Some(0) | None => return Err(DmaError::Empty),
            Some(length) => length,
        };
        let memory = Mapping::anonymous(length).map_err(|errno| DmaError::Memory {
            op: "mmap",
            length: as_u64(length),
            errno,
        })?;
        Ok(Self { memory: Arc::new(memory) })
    }

    /// How many bytes there are: whole pages.
    #[expect(clippy::len_without_is_empty, reason = "a buffer is never empty")]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Makes all pages present before they are mapped, with several threads: a device then waits for
    /// no page to be zeroed, and neither does the map.
    ///
    /// # Errors
    ///
    /// `NoMemory`. `Invalid`: the kernel is older than 5.14.
    pub fn populate(&self, threads: NonZero<usize>) -> Result<(), DmaError> {
        // SAFETY: the memory is this buffer's as long as it lives.
        unsafe { crate::populate::populate(self.memory.base(), self.len(), threads) }
    }

    /// Asks for transparent large pages. It does nothing for pages that are there already.
    ///
    /// # Errors
    ///
    /// `Invalid`: the kernel has none.
    pub fn advise_large_pages(&self) -> Result<(), DmaError> {
        // SAFETY: the memory is this buffer's as long as it lives.
        unsafe { crate::populate::advise_large_pages(self.memory.base(), self.len()) }
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    ///
    /// Outside the buffer.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), DmaError> {
        self.check(offset, bytes.len())?;
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: `check` found offset + index inside the mapping.
            let at = unsafe { self.memory.base().add(offset + index) };
            // SAFETY: `at` is inside a live, writable mapping that nothing borrows. Volatile,
            // since a device may access the byte meanwhile.
            unsafe { at.write_volatile(*byte) };
        }
        // What was written must be in memory before the caller tells a device of it.
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// Copies from `offset` into `bytes`.
    ///
    /// # Errors
    ///
    /// Outside the buffer.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), DmaError> {
        self.check(offset, bytes.len())?;
        // What the device announced as written must not be read from before the announcement.
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: `check` found offset + index inside the mapping.
            let at = unsafe { self.memory.base().add(offset + index) };
            // SAFETY: `at` is inside a live, readable mapping; volatile, since a device may change
            // the byte meanwhile.
            *byte = unsafe { at.read_volatile() };
        }
        Ok(())
    }

    /// Sets every byte.
    pub fn fill(&mut self, byte: u8) {
        let page = vec![byte; rustix::param::page_size()];
        for offset in (0..self.len()).step_by(page.len()) {
            // Whole pages of a buffer of whole pages are inside.
            let _ = self.write(offset, &page);
        }
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        // All of the buffer is inside.
        let _ = self.read(0, &mut bytes);
        bytes
    }

    /// Another handle on the same memory, for who writes to another part of it.
    pub(crate) fn share(&self) -> Self {
        Self { memory: Arc::clone(&self.memory) }
    }

    pub(crate) fn memory(&self) -> &Arc<Mapping> {
        &self.memory
    }

    fn check(&self, offset: usize, length: usize) -> Result<(), DmaError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(DmaError::OutsideBuffer {
                offset: as_u64(offset),
                length: as_u64(length),
                buffer: as_u64(self.len()),
                errno: Errno::FAULT,
            }),
        }
    }
}

/// Whether a length is a whole, non-zero number of pages.
pub(crate) fn whole_pages(length: u64) -> bool {
    length != 0 && is_whole_pages(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        let mut buffer = DmaBuffer::new(5000).expect("memory");
        assert!(whole_pages(as_u64(buffer.len())));
        assert!(buffer.to_vec().iter().all(|byte| *byte == 0));
        buffer.write(4090, b"across a page").expect("inside");
        let mut back = [0; 13];
        buffer.read(4090, &mut back).expect("inside");
        assert_eq!(&back, b"across a page");
        buffer.fill(0xa5);
        assert!(buffer.to_vec().iter().all(|byte| *byte == 0xa5));
    }

    #[test]
    fn nothing_outside_is_touched() {
        let mut buffer = DmaBuffer::new(1).expect("memory");
        let end = buffer.len();
        assert!(buffer.write(end, &[1]).is_err());
        assert!(buffer.write(end - 1, &[1, 2]).is_err());
        assert!(buffer.read(usize::MAX, &mut [0; 2]).is_err());
        assert!(buffer.write(end, &[]).is_ok());
        assert!(DmaBuffer::new(0).is_err());
        assert!(DmaBuffer::new(usize::MAX).is_err());
    }
}
