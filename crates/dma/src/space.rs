//! The address space: map, unmap, and know what is mapped.
#![expect(unsafe_code, reason = "maps memory by address")]

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_uapi::{
    DmaPerms, Errno, IoasId, IoctlError, Iommufd, IovaChoice, IovaRange, VfioContainer,
};

use crate::alloc::Wanted;
use crate::backend::{Backend, BackendKind, Parts};
use crate::buffer::whole_pages;
use crate::error::DmaError;
use crate::memory::{Mapping, as_u64, page_bytes};
use crate::mirror::{Mirror, Region, Source};
use crate::sim::SimIoas;
use crate::{DmaBuffer, limits};

/// An I/O address space, and what was mapped in it through this value.
///
/// All calls take `&self`; maps and unmaps of different ranges run in parallel, no lock is held
/// over the kernel's work. Dropping it unmaps what it mapped; other users of the same IOAS or
/// container keep their mappings.
#[derive(Debug)]
pub struct AddressSpace {
    backend: Backend,
    mirror: Mutex<Mirror>,
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
        Self { backend: Backend::new(parts), mirror: Mutex::default() }
    }

    /// Gives back what it was made from, with everything still mapped.
    ///
    /// Memory of buffers and files that is still mapped stays in this process for good, since
    /// nothing tells any more when a device no longer uses it. To avoid that, unmap first.
    pub fn into_parts(mut self) -> Parts {
        self.lock().leak();
        // What is left behind has nothing mapped, so dropping it does nothing.
        let empty = Backend::new(Parts::Simulated(SimIoas::default()));
        std::mem::replace(&mut self.backend, empty).into_parts()
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
        Ok(self.backend.ranges()?.0)
    }

    /// What was mapped through this value and is still mapped, ascending.
    pub fn regions(&self) -> Vec<Region> {
        self.lock().regions()
    }

    /// Maps memory of this process, and returns at which IOVA.
    ///
    /// # Errors
    ///
    /// Every kind but `NotMapped`; see [`DmaErrorKind`](crate::DmaErrorKind).
    ///
    /// # Safety
    ///
    /// Until the range is unmapped, devices may read and, with `perms.write`, change these bytes
    /// at any time: `length` bytes at `memory` must stay mapped to the same memory, and no Rust
    /// reference may rely on their contents meanwhile.
    pub unsafe fn map(
        &self,
        iova: IovaChoice,
        memory: NonNull<u8>,
        length: u64,
        perms: DmaPerms,
    ) -> Result<u64, DmaError> {
        let address = as_u64(memory.as_ptr().expose_provenance());
        // SAFETY: the caller's promise.
        unsafe { self.map_address(iova, address, length, perms, None) }
    }

    /// Maps all of a buffer, and returns at which IOVA.
    ///
    /// # Errors
    ///
    /// Every kind but `NotMapped` and `BadAddress`.
    pub fn map_buffer(
        &self,
        iova: IovaChoice,
        buffer: &DmaBuffer,
        perms: DmaPerms,
    ) -> Result<u64, DmaError> {
        self.map_kept(iova, Arc::clone(buffer.memory()), perms)
    }

    /// Maps part of a memfd, and returns at which IOVA.
    ///
    /// The kernel does it by file where it can (iommufd from 6.13 on). Elsewhere the file is
    /// mapped into this process too and stays so until it is unmapped here; the pages are the
    /// same, but they count as locked by this process, and it must have the right to map them.
    ///
    /// # Errors
    ///
    /// Every kind but `NotMapped`; `BadAddress` for a range past the end of the file.
    pub fn map_file(
        &self,
        iova: IovaChoice,
        file: impl AsFd,
        offset: u64,
        length: u64,
        perms: DmaPerms,
    ) -> Result<u64, DmaError> {
        let file = file.as_fd();
        check(iova, length, perms)?;
        aligned("file offset", offset)?;
        inside_file(file, offset, length)?;
        if self.backend.maps_files()? {
            let source = Source::File { offset };
            return self.map_with(iova, length, perms, source, None, |iova| {
                self.backend.map_file(iova, file, offset, length, perms)
            });
        }
        let bytes =
            usize::try_from(length).map_err(|_| DmaError::Overflow { start: offset, length })?;
        let memory = Mapping::of_file(file, offset, bytes, perms)
            .map_err(|errno| DmaError::Memory { op: "mmap", length, errno })?;
        self.map_kept(iova, Arc::new(memory), perms)
    }

    /// Unmaps exactly one mapping.
    ///
    /// # Errors
    ///
    /// `NotMapped`: nothing was mapped there through this value, or not exactly that. `Busy`:
    /// another thread is mapping or unmapping it.
    pub fn unmap(&self, iova: u64, length: u64) -> Result<(), DmaError> {
        let leaving = self.lock().begin_unmap(iova, length)?;
        let answer = self.backend.unmap(iova, length);
        let mut mirror = self.lock();
        match answer {
            Ok(removed) if removed == length => {
                mirror.end_unmap(leaving);
                Ok(())
            }
            Ok(removed) => {
                mirror.end_unmap(leaving);
                Err(DmaError::Mismatch { iova, length, removed })
            }
            // Another user of the address space was faster.
            Err(error) if error.errno == Errno::NOENT => {
                mirror.end_unmap(leaving);
                Err(DmaError::NotMapped { iova, length })
            }
            Err(error) => {
                mirror.abort_unmap(leaving);
                Err(error.into())
            }
        }
    }

    /// Unmaps everything in the IOAS or container, whoever mapped it, and returns how many bytes
    /// that were.
    ///
    /// Mappings being made by other threads meanwhile may survive it; to be sure, call it until it
    /// answers 0.
    ///
    /// # Errors
    ///
    /// `Busy`: another thread is mapping or unmapping. Some mappings may be gone by then.
    pub fn unmap_all(&self) -> Result<u64, DmaError> {
        // Only what was complete before the call is known to be gone after it.
        let before = self.lock().mapped();
        let removed = self.backend.unmap_all()?;
        self.lock().forget(&before);
        Ok(removed)
    }

    /// Takes over a mapping that another process made before, so that it can be unmapped here. What
    /// it shows is that process's, or stays pinned without one.
    ///
    /// # Errors
    ///
    /// `Overlap` with one that is known already; `Empty`, `Overflow`, `Misaligned`.
    pub fn adopt(&self, iova: u64, length: u64, perms: DmaPerms) -> Result<(), DmaError> {
        check(IovaChoice::Fixed(iova), length, perms)?;
        let region = Region { iova, length, perms, source: Source::File { offset: 0 } };
        let mut mirror = self.lock();
        let ticket = mirror.reserve(region, None)?;
        mirror.publish(ticket, region, None);
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
        self.lock().leak();
    }

    fn map_kept(
        &self,
        iova: IovaChoice,
        memory: Arc<Mapping>,
        perms: DmaPerms,
    ) -> Result<u64, DmaError> {
        let address = as_u64(memory.base().as_ptr().expose_provenance());
        let length = as_u64(memory.len());
        // SAFETY: the memory is owned by a `Mapping`, no reference to which is ever formed, and
        // the mirror keeps it where it is until the kernel has let go of it.
        unsafe { self.map_address(iova, address, length, perms, Some(memory)) }
    }

    /// # Safety
    ///
    /// As [`AddressSpace::map`], unless `keep` holds the memory.
    unsafe fn map_address(
        &self,
        iova: IovaChoice,
        address: u64,
        length: u64,
        perms: DmaPerms,
        keep: Option<Arc<Mapping>>,
    ) -> Result<u64, DmaError> {
        check(iova, length, perms)?;
        aligned("address", address)?;
        let source = Source::Memory { address };
        self.map_with(iova, length, perms, source, keep, |iova| {
            // SAFETY: the caller's promise.
            unsafe { self.backend.map(iova, address, length, perms) }
        })
    }

    /// Takes the addresses, has `act` map, and records what came of it.
    fn map_with(
        &self,
        iova: IovaChoice,
        length: u64,
        perms: DmaPerms,
        source: Source,
        keep: Option<Arc<Mapping>>,
        act: impl FnOnce(IovaChoice) -> Result<u64, IoctlError>,
    ) -> Result<u64, DmaError> {
        let region = |iova| Region { iova, length, perms, source };
        let ticket = match iova {
            IovaChoice::Any if self.backend.chooses_iova() => {
                let mapped = act(iova).map_err(|error| self.explain(iova, length, error))?;
                self.lock().insert(region(mapped), keep);
                return Ok(mapped);
            }
            IovaChoice::Any => {
                let (permitted, page) = self.backend.ranges()?;
                let (Source::Memory { address: memory } | Source::File { offset: memory }) = source;
                let page = page.max(page_bytes());
                let wanted = Wanted { length, page, memory };
                self.lock().reserve_any(wanted, &permitted, region(0), keep.clone())?
            }
            IovaChoice::Fixed(iova) => self.lock().reserve(region(iova), keep.clone())?,
        };
        let place = IovaChoice::Fixed(ticket.iova);
        let answer = act(place);
        match answer {
            Ok(mapped) => {
                self.lock().publish(ticket, region(mapped), keep);
                Ok(mapped)
            }
            Err(error) => {
                self.lock().cancel(ticket);
                Err(self.explain(place, length, error))
            }
        }
    }

    /// Adds to the kernel's errno what can be found out about it.
    fn explain(&self, place: IovaChoice, length: u64, error: IoctlError) -> DmaError {
        let iova = match place {
            IovaChoice::Fixed(iova) => iova,
            IovaChoice::Any => 0,
        };
        match error.errno {
            Errno::EXIST => DmaError::Overlap { iova, length, with: None },
            Errno::NOSPC if self.backend.limits_entries() => {
                DmaError::EntryLimit { iova, length, mapped: self.lock().len() }
            }
            Errno::NOSPC => DmaError::NoSpace { length, largest: 0 },
            Errno::NOMEM => limits::memlock(length).unwrap_or(DmaError::Kernel(error)),
            Errno::INVAL if place != IovaChoice::Any => match self.backend.ranges() {
                Ok((permitted, _)) if !permitted.iter().any(|r| r.contains(iova, length)) => {
                    DmaError::NotPermitted { iova, length, permitted }
                }
                _ => DmaError::Kernel(error),
            },
            _ => DmaError::Kernel(error),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Mirror> {
        // Every change of the mirror is one insertion, removal or mark: it is whole after a panic.
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        for region in self.regions() {
            // What can't be unmapped is left to the last close of the file; its memory is leaked
            // below, because a device may use it until then.
            let _ = self.unmap(region.iova, region.length);
        }
        self.lock().leak();
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

/// What can be refused without asking: then nothing needs undoing, and the numbers are known.
fn check(iova: IovaChoice, length: u64, perms: DmaPerms) -> Result<(), DmaError> {
    let start = match iova {
        IovaChoice::Fixed(iova) => iova,
        IovaChoice::Any => 0,
    };
    if length == 0 {
        return Err(DmaError::Empty);
    }
    if start.checked_add(length - 1).is_none() || length == u64::MAX {
        return Err(DmaError::Overflow { start, length });
    }
    if !perms.read && !perms.write {
        return Err(DmaError::NoAccess { iova: start });
    }
    if !whole_pages(length) {
        return aligned("length", length);
    }
    aligned("iova", start)
}

fn aligned(what: &'static str, value: u64) -> Result<(), DmaError> {
    let alignment = page_bytes();
    if value.is_multiple_of(alignment) {
        return Ok(());
    }
    Err(DmaError::Misaligned { what, value, alignment })
}

fn inside_file(file: BorrowedFd<'_>, offset: u64, length: u64) -> Result<(), DmaError> {
    let stat =
        rustix::fs::fstat(file).map_err(|errno| DmaError::Memory { op: "fstat", length, errno })?;
    let buffer = u64::try_from(stat.st_size).unwrap_or(0);
    match offset.checked_add(length) {
        Some(end) if end <= buffer => Ok(()),
        _ => Err(DmaError::OutsideBuffer { offset, length, buffer, errno: Errno::INVAL }),
    }
}

#[cfg(test)]
#[path = "space_tests.rs"]
mod tests;
