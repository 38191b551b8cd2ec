//! The same memory in two domains.
#![expect(unsafe_code, reason = "copies mappings, whose memory outlives them")]

use berth_uapi::{DmaPerms, IovaChoice};

use super::AddressSpace;
use super::map::check;
use crate::error::DmaError;
use crate::mirror::{New, Source};

impl AddressSpace {
    /// Maps what is mapped here a second time in `target`, another IOAS of the same iommufd (or this
    /// one), and returns at which IOVA. Its pages are pinned and counted once.
    ///
    /// The range may be part of a mapping. The copy is a mapping of its own: it stays when the
    /// original is unmapped, and keeps a buffer's memory alive as that did.
    ///
    /// # Errors
    ///
    /// `Cannot`: on type1, or the target is of another iommufd. `NotMapped`: the range isn't within
    /// one mapping made through this value. `EPERM`: writing was asked for memory that was mapped
    /// for reading. Else as [`AddressSpace::map`].
    ///
    /// # Kernel
    ///
    /// `IOMMU_IOAS_COPY`, 6.2.
    pub fn copy(
        &self,
        iova: u64,
        length: u64,
        target: &Self,
        place: IovaChoice,
        perms: DmaPerms,
    ) -> Result<u64, DmaError> {
        check(IovaChoice::Fixed(iova), length, perms)?;
        check(place, length, perms)?;
        self.backend.copies_to(&target.backend)?;
        let (ticket, region, keep) = self.mirror.begin_copy(iova, length)?;
        let into = iova - region.iova;
        let source = match region.source {
            Source::Memory { address } => Source::Memory { address: address + into },
            Source::File { offset } => Source::File { offset: offset + into },
        };
        let mut new = New { length, perms, source, keep };
        let answer = target.map_with(place, &mut new, |to| {
            // SAFETY: whoever mapped the original promised for its copies too, and what is kept for
            // it is kept for this one.
            unsafe { self.backend.copy(iova, &target.backend, to, length, perms) }
        });
        self.mirror.commit(&ticket);
        answer
    }
}
