//! Taking an address space over from a process that left everything mapped, and leaving it so.

use berth_uapi::{DmaPerms, Errno, IovaChoice};

use super::AddressSpace;
use super::map::check;
use crate::error::DmaError;
use crate::memory::page_bytes;
use crate::mirror::{New, Source};

impl AddressSpace {
    /// Takes over a mapping that another process made before, so that it can be unmapped here. What
    /// it shows is that process's, or stays pinned without one.
    ///
    /// # Errors
    ///
    /// `Overlap` with one that is known already; `Empty`, `Overflow`, `Misaligned`.
    pub fn adopt(&self, iova: u64, length: u64, perms: DmaPerms) -> Result<(), DmaError> {
        let place = IovaChoice::Fixed(iova);
        check(place, length, perms)?;
        let mut new = New { length, perms, source: Source::File { offset: 0 }, keep: None };
        let ticket = self.reserve(place, &mut new)?;
        self.mirror.commit(&ticket);
        Ok(())
    }

    /// Unmaps whatever is mapped beside what this value knows of, and returns how many bytes that
    /// were. For an address space that was taken over and that nobody else maps into.
    ///
    /// # Errors
    ///
    /// The kernel's. Some mappings may be gone by then.
    pub fn unmap_unknown(&self) -> Result<u64, DmaError> {
        let known = self.regions();
        if known.is_empty() {
            return self.unmap_all();
        }
        let mut removed = 0;
        let mut start = 0;
        for region in &known {
            if region.iova > start {
                removed += self.unmap_gap(start, region.iova - start)?;
            }
            match region.iova.checked_add(region.length) {
                Some(end) => start = end,
                None => return Ok(removed),
            }
        }
        // What ends at the last address of all can't be told by a length from 0.
        removed += self.unmap_gap(start, (u64::MAX - start + 1) & !(page_bytes() - 1))?;
        Ok(removed)
    }

    fn unmap_gap(&self, iova: u64, length: u64) -> Result<u64, DmaError> {
        match self.backend.unmap(iova, length) {
            Err(error) if error.errno == Errno::NOENT => Ok(0),
            answer => Ok(answer?),
        }
    }

    /// Leaves everything mapped, and knows of none of it any more: for a process that ends while its
    /// file is kept open elsewhere. Memory that is mapped stays in this process for good.
    pub fn leave_mapped(&self) {
        self.mirror.leak();
        self.mirror.forget(&self.mirror.mapped());
    }
}
