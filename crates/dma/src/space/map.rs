//! Mapping: addresses are reserved, the kernel is asked, and what it says is recorded.
#![expect(unsafe_code, reason = "maps memory by address")]

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use berth_uapi::{DmaPerms, Errno, IoctlError, IovaChoice};

use super::AddressSpace;
use crate::DmaBuffer;
use crate::buffer::whole_pages;
use crate::error::DmaError;
use crate::limits::Memlock;
use crate::memory::{Mapping, as_u64, is_whole_pages, page_bytes};
use crate::mirror::{Denied, New, Source, Ticket};
use crate::preflight::Planned;
use crate::trace;

/// How often another place is looked for where the kernel has something that isn't known here. What
/// is passed over doubles each time.
const PLACES: u32 = 24;

impl AddressSpace {
    /// Maps memory of this process, and returns at which IOVA.
    ///
    /// # Errors
    ///
    /// Every kind but `NotMapped`; see [`DmaErrorKind`](crate::DmaErrorKind).
    ///
    /// # Safety
    ///
    /// Until the range, and every copy that [`AddressSpace::copy`] made of it, is unmapped, devices
    /// may read and, with `perms.write`, change these bytes at any time: `length` bytes at `memory`
    /// must stay mapped to the same memory, and no Rust reference may rely on their contents
    /// meanwhile.
    pub unsafe fn map(
        &self,
        iova: IovaChoice,
        memory: NonNull<u8>,
        length: u64,
        perms: DmaPerms,
    ) -> Result<u64, DmaError> {
        let address = as_u64(memory.as_ptr().expose_provenance());
        check(iova, length, perms)?;
        aligned("address", address)?;
        let mut new = New { length, perms, source: Source::Memory { address }, keep: None };
        // SAFETY: the caller's promise.
        unsafe { self.map_memory(iova, &mut new, address) }
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

    /// Maps part of a memfd or of a file on hugetlbfs, and returns at which IOVA.
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
            let mut new = New { length, perms, source: Source::File { offset }, keep: None };
            return self.map_with(iova, &mut new, |iova| {
                self.backend.map_file(IovaChoice::Fixed(iova), file, offset, length, perms)
            });
        }
        let bytes =
            usize::try_from(length).map_err(|_| DmaError::Overflow { start: offset, length })?;
        let memory = Mapping::of_file(file, offset, bytes, perms)
            .map_err(|errno| DmaError::Memory { op: "mmap", length, errno })?;
        self.map_kept(iova, Arc::new(memory), perms)
    }

    /// Maps memory that is kept where it is until the kernel has let go of it.
    pub(crate) fn map_kept(
        &self,
        iova: IovaChoice,
        memory: Arc<Mapping>,
        perms: DmaPerms,
    ) -> Result<u64, DmaError> {
        let address = as_u64(memory.base().as_ptr().expose_provenance());
        let length = as_u64(memory.len());
        check(iova, length, perms)?;
        let mut new = New { length, perms, source: Source::Memory { address }, keep: Some(memory) };
        // SAFETY: the memory is owned by a `Mapping`, no reference to which is ever formed, and
        // the mirror keeps it where it is until the kernel has let go of it.
        unsafe { self.map_memory(iova, &mut new, address) }
    }

    /// # Safety
    ///
    /// As [`AddressSpace::map`], unless the memory is kept.
    #[inline]
    pub(super) unsafe fn map_memory(
        &self,
        iova: IovaChoice,
        new: &mut New,
        address: u64,
    ) -> Result<u64, DmaError> {
        let (length, perms) = (new.length, new.perms);
        if let IovaChoice::Fixed(at) = iova
            && new.keep.is_none()
            && let Some(ticket) = self.mirror.reserve_warm(at, new)
        {
            // SAFETY: the caller's promise.
            return match unsafe { self.backend.map(at, address, length, perms) } {
                Ok(_) => {
                    self.mirror.commit(&ticket);
                    trace::mapped(at, length, perms);
                    Ok(at)
                }
                Err(error) => Err(self.refused_at(iova, ticket, error)),
            };
        }
        self.map_with(iova, new, |iova| {
            // SAFETY: the caller's promise.
            unsafe { self.backend.map(iova, address, length, perms) }
        })
    }

    /// Takes the addresses, has `act` map there, and records what came of it.
    #[inline(never)]
    pub(super) fn map_with(
        &self,
        place: IovaChoice,
        new: &mut New,
        act: impl Fn(u64) -> Result<u64, IoctlError>,
    ) -> Result<u64, DmaError> {
        let mut tries = 0;
        loop {
            let ticket = self.reserve(place, new)?;
            match act(ticket.iova) {
                Ok(_) => {
                    self.mirror.commit(&ticket);
                    trace::mapped(ticket.iova, ticket.length, new.perms);
                    return Ok(ticket.iova);
                }
                Err(error) => {
                    tries += 1;
                    new.keep = self.refused(place, ticket, error, tries)?;
                }
            }
        }
    }

    /// Undoes a reservation that the kernel refused. Where another place can be tried, what was
    /// kept is the answer.
    #[cold]
    fn refused(
        &self,
        place: IovaChoice,
        ticket: Ticket<'_>,
        error: IoctlError,
        tries: u32,
    ) -> Result<Option<Arc<Mapping>>, DmaError> {
        let open = place == IovaChoice::Any && tries < PLACES;
        match error.errno {
            // Another user of the address space has something there.
            Errno::EXIST if open => {
                trace::refused("map", ticket.iova, ticket.length, error.errno);
                let more = ticket.length.checked_shl(tries).unwrap_or(u64::MAX);
                Ok(self.mirror.surrender(&ticket, more))
            }
            // Perhaps a device was attached since that reserves it.
            Errno::INVAL if open => {
                trace::refused("map", ticket.iova, ticket.length, error.errno);
                let keep = self.mirror.free(&ticket);
                match self.refresh() {
                    Ok((_, true)) => Ok(keep),
                    _ => Err(error.into()),
                }
            }
            _ => Err(self.refused_at(place, ticket, error)),
        }
    }

    /// Undoes a reservation that the kernel refused, with no other place to try.
    #[cold]
    fn refused_at(&self, place: IovaChoice, ticket: Ticket<'_>, error: IoctlError) -> DmaError {
        trace::refused("map", ticket.iova, ticket.length, error.errno);
        drop(self.mirror.free(&ticket));
        self.explain(place, ticket.length, error)
    }

    /// Takes addresses, and asks the kernel what is permitted where what is known is no answer.
    #[inline]
    pub(super) fn reserve(&self, place: IovaChoice, new: &mut New) -> Result<Ticket<'_>, DmaError> {
        match self.mirror.reserve(place, new) {
            Ok(ticket) => Ok(ticket),
            Err(denied) => {
                let length = new.length;
                let again = &mut || self.mirror.reserve(place, new);
                self.with_new_ranges(place, length, denied, again)
            }
        }
    }

    /// What was denied is tried again, once it is known what the kernel permits now.
    #[cold]
    pub(super) fn with_new_ranges<T>(
        &self,
        place: IovaChoice,
        length: u64,
        denied: Denied,
        reserve: &mut dyn FnMut() -> Result<T, Denied>,
    ) -> Result<T, DmaError> {
        let denied = match denied {
            Denied::Overlap(_) => denied,
            _ => {
                self.refresh()?;
                match reserve() {
                    Ok(done) => return Ok(done),
                    Err(denied) => denied,
                }
            }
        };
        let iova = fixed(place);
        Err(match denied {
            Denied::Overlap(with) => DmaError::Overlap { iova, length, with: Some(with) },
            Denied::NoSpace(largest) => DmaError::NoSpace { length, largest },
            Denied::NotPermitted => {
                DmaError::NotPermitted { iova, length, permitted: self.backend.ranges()?.0 }
            }
        })
    }

    /// Whether all of this could be mapped, as far as is known: its addresses are taken for a
    /// moment.
    pub(crate) fn could_map(&self, planned: &[Planned]) -> Result<(), DmaError> {
        let mut tickets = Vec::with_capacity(planned.len());
        let found = planned.iter().try_for_each(|Planned { iova, length }| {
            let (length, perms) = (*length, DmaPerms::READ);
            check(*iova, length, perms)?;
            let source = Source::Memory { address: 0 };
            let ticket = self.reserve(*iova, &mut New { length, perms, source, keep: None })?;
            tickets.push(ticket);
            Ok(())
        });
        for ticket in &tickets {
            drop(self.mirror.free(ticket));
        }
        found
    }

    /// Adds to the kernel's errno what can be found out about it.
    pub(super) fn explain(&self, place: IovaChoice, length: u64, error: IoctlError) -> DmaError {
        let iova = fixed(place);
        match error.errno {
            Errno::EXIST => DmaError::Overlap { iova, length, with: None },
            Errno::NOSPC if self.backend.limits_entries() => {
                // The one that was refused isn't among them any more.
                DmaError::EntryLimit { iova, length, mapped: self.mirror.totals().0 }
            }
            Errno::NOSPC => DmaError::NoSpace { length, largest: 0 },
            Errno::NOMEM => {
                let memlock = Memlock::read(self.backend.rlimit_mode());
                memlock.explain(length).unwrap_or(DmaError::Kernel(error))
            }
            Errno::INVAL if place != IovaChoice::Any => match self.refresh() {
                Ok((permitted, _)) if !permitted.iter().any(|r| r.contains(iova, length)) => {
                    DmaError::NotPermitted { iova, length, permitted }
                }
                _ => DmaError::Kernel(error),
            },
            _ => DmaError::Kernel(error),
        }
    }
}

pub(super) fn fixed(place: IovaChoice) -> u64 {
    match place {
        IovaChoice::Fixed(iova) => iova,
        IovaChoice::Any => 0,
    }
}

/// What can be refused without asking: then nothing needs undoing, and the numbers are known.
#[inline]
pub(super) fn check(iova: IovaChoice, length: u64, perms: DmaPerms) -> Result<(), DmaError> {
    let start = fixed(iova);
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

#[inline]
pub(super) fn aligned(what: &'static str, value: u64) -> Result<(), DmaError> {
    if is_whole_pages(value) {
        return Ok(());
    }
    Err(DmaError::Misaligned { what, value, alignment: page_bytes() })
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
