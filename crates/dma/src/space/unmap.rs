//! Unmapping: of one mapping, of many, of everything.

use berth_uapi::{Errno, IoctlError};

use super::AddressSpace;
use crate::error::DmaError;
use crate::mirror::Ticket;
use crate::trace;

impl AddressSpace {
    /// Unmaps exactly one mapping.
    ///
    /// # Errors
    ///
    /// `NotMapped`: nothing was mapped there through this value, or not exactly that. `Busy`:
    /// another thread is mapping, unmapping or copying it.
    #[inline]
    pub fn unmap(&self, iova: u64, length: u64) -> Result<(), DmaError> {
        match self.mirror.begin_unmap_hot(iova, length) {
            Some(ticket) => self.unmap_ticket(&ticket),
            None => self.unmap_of_index(iova, length),
        }
    }

    #[inline(never)]
    fn unmap_of_index(&self, iova: u64, length: u64) -> Result<(), DmaError> {
        let ticket = self.mirror.begin_unmap_of_index(iova, length)?;
        self.unmap_ticket(&ticket)
    }

    /// Unmaps many mappings, each exactly, with one ioctl for each run of neighbours.
    ///
    /// Ranges can be in any order. Nothing is unmapped unless all of them are there.
    ///
    /// # Errors
    ///
    /// `NotMapped`, `Busy`: of the first such range; nothing was unmapped. `Partial`: the kernel
    /// unmapped some and not others; those that it did not are still in
    /// [`AddressSpace::regions`].
    pub fn unmap_batch(&self, ranges: &[(u64, u64)]) -> Result<(), DmaError> {
        let mut tickets = Vec::with_capacity(ranges.len());
        for (iova, length) in ranges {
            match self.mirror.begin_unmap(*iova, *length) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => {
                    for ticket in &tickets {
                        self.mirror.commit(ticket);
                    }
                    return Err(error);
                }
            }
        }
        tickets.sort_unstable_by_key(|ticket| ticket.iova);
        let (mut failed, mut first) = (0, None);
        for run in tickets.chunk_by(|a, b| self.mirror.touch(a, b)) {
            let (left, error) = self.unmap_run(run);
            failed += left;
            first = first.or(error);
        }
        match first {
            None => Ok(()),
            Some(error) if tickets.len() == 1 => Err(error),
            Some(error) => {
                let unmapped = tickets.len() - failed;
                Err(DmaError::Partial { unmapped, failed, first: Box::new(error) })
            }
        }
    }

    /// Unmaps mappings without anything in between. How many are left, and the first error.
    pub(super) fn unmap_run(&self, run: &[Ticket]) -> (usize, Option<DmaError>) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return (0, None) };
        if run.len() > 1 {
            // What a mapping's range can't be: past the end of all addresses.
            let length = last.iova - first.iova + last.length;
            if self.backend.unmap(first.iova, length) == Ok(length) {
                self.mirror.free_run(run);
                trace::unmapped(first.iova, length, run.len());
                return (0, None);
            }
            // The kernel stops at the first that it can't unmap, and doesn't say where: each is
            // asked for, and one that it doesn't know any more is gone.
        }
        let (mut left, mut error) = (0, None);
        for ticket in run {
            match self.unmap_ticket(ticket) {
                Ok(()) => {}
                Err(DmaError::NotMapped { .. }) if run.len() > 1 => {}
                Err(DmaError::NotMapped { iova, length }) => {
                    error = error.or(Some(DmaError::NotMapped { iova, length }));
                }
                Err(found) => {
                    left += usize::from(!matches!(found, DmaError::Mismatch { .. }));
                    error = error.or(Some(found));
                }
            }
        }
        (left, error)
    }

    /// Asks the kernel, and records what it says.
    #[inline]
    fn unmap_ticket(&self, ticket: &Ticket) -> Result<(), DmaError> {
        let (iova, length) = (ticket.iova, ticket.length);
        match self.backend.unmap(iova, length) {
            Ok(removed) if removed == length => {
                drop(self.mirror.unmapped(ticket));
                trace::unmapped(iova, length, 1);
                Ok(())
            }
            answer => Err(self.not_unmapped(&ticket.aside(), answer)),
        }
    }

    #[cold]
    fn not_unmapped(&self, ticket: &Ticket, answer: Result<u64, IoctlError>) -> DmaError {
        let error = match answer {
            Ok(removed) => {
                drop(self.mirror.free(ticket));
                return DmaError::Mismatch { iova: ticket.iova, length: ticket.length, removed };
            }
            Err(error) => error,
        };
        trace::refused("unmap", ticket.iova, ticket.length, error.errno);
        // Another user of the address space was faster.
        if error.errno == Errno::NOENT {
            drop(self.mirror.free(ticket));
            return DmaError::NotMapped { iova: ticket.iova, length: ticket.length };
        }
        self.mirror.commit(ticket);
        error.into()
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
        let before = self.mirror.mapped();
        let removed = self.backend.unmap_all()?;
        self.mirror.forget(&before);
        trace::unmapped(0, removed, before.len());
        Ok(removed)
    }
}
