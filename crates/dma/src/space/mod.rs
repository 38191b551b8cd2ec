//! The address space: map, unmap, and know what is mapped.

mod adopt;
mod batch;
mod copy;
mod map;
mod plan;
mod unmap;

use std::ptr::NonNull;

use berth_uapi::{IoasId, Iommufd, IovaRange, VfioContainer};

use crate::backend::{Backend, BackendKind, Parts, Room};
use crate::error::DmaError;
use crate::memory::as_u64;
use crate::mirror::{Mirror, Region};
use crate::sim::SimIoas;

pub use self::batch::{Batch, BatchBuffer};

/// An I/O address space, and what was mapped in it through this value.
///
/// All calls take `&self`; maps and unmaps of different ranges run in parallel, no lock is held
/// over the kernel's work. Dropping it unmaps what it mapped; other users of the same IOAS or
/// container keep their mappings.
///
/// Where the IOVA is left open ([`IovaChoice::Any`](crate::IovaChoice::Any)) it is found here, on
/// every back end, in constant time: the last such place of its length that was given back, or else as
/// low as its size allows, and placed in large pages as the memory is, so that the IOMMU can use them.
/// Whoever chooses places as well keeps the others out of there by [`AddressSpace::allow`]. Once as much has been mapped as ever will be, mapping
/// and unmapping allocate nothing and enter the kernel once.
#[derive(Debug)]
pub struct AddressSpace {
    backend: Backend,
    mirror: Mirror,
}

/// How much an address space has mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Mappings made through this value, those on their way included.
    pub mappings: usize,
    /// Their bytes. What is mapped twice counts twice here, whatever the kernel has pinned.
    pub bytes: u64,
}

impl AddressSpace {
    /// Works on an IOAS of an iommufd.
    pub fn iommufd(iommufd: Iommufd, ioas: IoasId) -> Self {
        Self::new(Parts::Iommufd(iommufd, ioas))
    }

    /// Works on a type1 container, whose IOMMU must be set.
    pub fn type1(container: VfioContainer) -> Self {
        Self::new(Parts::Type1(container))
    }

    /// Works on a simulated address space.
    pub fn simulated(sim: SimIoas) -> Self {
        Self::new(Parts::Simulated(sim))
    }

    /// Works on what another address space was made from.
    pub fn from_parts(parts: Parts) -> Self {
        Self::new(parts)
    }

    fn new(parts: Parts) -> Self {
        Self { backend: Backend::new(parts), mirror: Mirror::new() }
    }

    /// Gives back what it was made from, with everything still mapped.
    ///
    /// Memory of buffers and files that is still mapped stays in this process for good, since
    /// nothing tells any more when a device no longer uses it. To avoid that, unmap first.
    pub fn into_parts(mut self) -> Parts {
        self.mirror.leak();
        // What is left behind has nothing mapped, so dropping it does nothing.
        let empty = Backend::new(Parts::Simulated(SimIoas::default()));
        let backend = std::mem::replace(&mut self.backend, empty);
        self.mirror = Mirror::new();
        backend.into_parts()
    }

    /// Which back end it stands on.
    pub fn backend(&self) -> BackendKind {
        self.backend.kind()
    }

    /// The addresses that may be mapped now; they change with each attached device.
    ///
    /// # Errors
    ///
    /// The kernel's; on type1 `EINVAL` while the container has no IOMMU.
    pub fn ranges(&self) -> Result<Vec<IovaRange>, DmaError> {
        Ok(self.refresh()?.0)
    }

    /// From the first to the last address that may be mapped now; `None` while none may.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::ranges`].
    pub fn aperture(&self) -> Result<Option<IovaRange>, DmaError> {
        let ranges = self.ranges()?;
        let start = ranges.iter().map(|range| range.start).min();
        let last = ranges.iter().map(|range| range.last).max();
        Ok(start.zip(last).map(|(start, last)| IovaRange { start, last }))
    }

    /// The gaps in the aperture, ascending: what attached devices or the IOMMU reserve, such as the
    /// window for interrupts.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::ranges`].
    pub fn reserved(&self) -> Result<Vec<IovaRange>, DmaError> {
        let mut ranges = self.ranges()?;
        ranges.sort_unstable();
        let gap = |pair: &[IovaRange]| {
            let start = pair[0].last.checked_add(1)?;
            let last = pair[1].start.checked_sub(1)?;
            (start <= last).then_some(IovaRange { start, last })
        };
        Ok(ranges.windows(2).filter_map(gap).collect())
    }

    /// Says which addresses are to be used: no device that reserves any of them can be attached
    /// later, and no others are given out where a place is left open. A fixed place may still be any
    /// that is permitted. None at all lifts it.
    ///
    /// # Errors
    ///
    /// `Cannot` on type1. `EADDRINUSE`: an attached device reserves some of them. `EINVAL`: they
    /// overlap, or one ends before it starts.
    ///
    /// # Kernel
    ///
    /// `IOMMU_IOAS_ALLOW_IOVAS`, 6.2.
    pub fn allow(&self, ranges: &[IovaRange]) -> Result<(), DmaError> {
        self.backend.allow(ranges)?;
        self.mirror.allow(ranges.to_vec());
        Ok(())
    }

    /// What was mapped through this value and is still mapped, ascending.
    pub fn regions(&self) -> Vec<Region> {
        self.mirror.regions()
    }

    /// The mapping at an address, if it was made through this value. Takes no lock.
    pub fn find(&self, iova: u64) -> Option<Region> {
        self.mirror.find(iova)
    }

    /// Where devices see this memory: the IOVA of its first byte, if one mapping made through this
    /// value shows all of it.
    ///
    /// Takes no lock, unless memory is mapped more than once; then any of its IOVAs is the answer.
    /// An index by address is kept from the first call on.
    pub fn translate(&self, memory: NonNull<u8>, length: u64) -> Option<u64> {
        self.mirror.translate(as_u64(memory.as_ptr().addr()), length)
    }

    /// How much is mapped.
    pub fn stats(&self) -> Stats {
        let (mappings, bytes) = self.mirror.totals();
        Stats { mappings, bytes }
    }

    /// Asks the kernel what there is room for.
    pub(crate) fn room(&self) -> Result<Room, DmaError> {
        Ok(self.backend.room()?)
    }

    /// Asks the kernel what may be mapped; also, whether that is something new.
    #[cold]
    fn refresh(&self) -> Result<(Vec<IovaRange>, bool), DmaError> {
        let ranges = self.backend.ranges()?.0;
        let new = self.mirror.permit(ranges.clone());
        Ok((ranges, new))
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // What can't be unmapped is left to the last close of the file; its memory is leaked below,
        // because a device may use it until then.
        let regions: Vec<_> = self.regions().iter().map(|r| (r.iova, r.length)).collect();
        let _ = self.unmap_batch(&regions);
        self.mirror.leak();
    }
}

impl From<(Iommufd, IoasId)> for AddressSpace {
    fn from((iommufd, ioas): (Iommufd, IoasId)) -> Self {
        Self::iommufd(iommufd, ioas)
    }
}

impl From<VfioContainer> for AddressSpace {
    fn from(container: VfioContainer) -> Self {
        Self::type1(container)
    }
}

#[cfg(test)]
mod tests;
