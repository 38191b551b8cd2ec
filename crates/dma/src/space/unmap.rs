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
        let (mut tickets, one_run) = self.begin_all(ranges)?;
        let (mut failed, mut first) = (0, None);
        if one_run {
            (failed, first) = self.unmap_run(&tickets);
        } else {
            tickets.sort_unstable_by_key(|ticket| ticket.iova);
            for run in tickets.chunk_by(|a, b| self.mirror.touch(a, b)) {
                let (left, error) = self.unmap_run(run);
                failed += left;
                first = first.or(error);
            }
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

    /// Takes all of these to unmap them, or none; also, whether they are given as neighbours in
    /// ascending order, as those that were made together mostly are.
    fn begin_all(&self, ranges: &[(u64, u64)]) -> Result<(Vec<Ticket<'_>>, bool), DmaError> {
        let mut tickets = Vec::with_capacity(ranges.len());
        let mut next = ranges.first().map_or(0, |(iova, _)| *iova);
        let mut in_order = true;
        for (iova, length) in ranges {
            in_order &= *iova == next;
            next = iova.wrapping_add(*length);
            if let Some(ticket) = self.mirror.begin_unmap_hot(*iova, *length) {
                tickets.push(ticket);
                continue;
            }
            match self.mirror.begin_unmap_of_index(*iova, *length) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => {
                    for ticket in &tickets {
                        self.mirror.commit(ticket);
                    }
                    return Err(error);
                }
            }
        }
        // Behind the last address of all comes the first, which is no neighbour.
        let ascends = tickets.first().map(|ticket| ticket.iova) <= tickets.last().map(|t| t.iova);
        Ok((tickets, in_order && ascends))
    }

    /// Unmaps mappings without anything in between. How many are left, and the first error.
    pub(super) fn unmap_run(&self, run: &[Ticket<'_>]) -> (usize, Option<DmaError>) {
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
    fn unmap_ticket(&self, ticket: &Ticket<'_>) -> Result<(), DmaError> {
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
    fn not_unmapped(&self, ticket: &Ticket<'_>, answer: Result<u64, IoctlError>) -> DmaError {
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

#[cfg(test)]
mod tests {
    use berth_uapi::{DmaPerms, IovaChoice, IovaRange};

    use super::*;
    use crate::memory::page_bytes;
    use crate::{DmaBuffer, SimFlavour, SimIoas, SimLimits};

    /// A space where everything may be mapped, with a page at each of these.
    fn with_pages(pages: &[u64]) -> (AddressSpace, SimIoas) {
        let permitted = vec![IovaRange { start: 0, last: u64::MAX }];
        let limits = SimLimits { permitted, ..SimLimits::default() };
        let sim = SimIoas::new(SimFlavour::Iommufd, limits);
        let space = AddressSpace::simulated(sim.clone());
        for iova in pages {
            let page = DmaBuffer::new(1).expect("memory");
            let place = IovaChoice::Fixed(*iova);
            assert_eq!(space.map_buffer(place, &page, DmaPerms::READ), Ok(*iova));
        }
        (space, sim)
    }

    #[test]
    fn a_batch_is_unmapped_in_whatever_order_it_is_given() {
        let page = page_bytes();
        let top = u64::MAX - (page - 1);
        for pages in [
            vec![],
            (0..300).map(|at| at * page).collect(),
            (0..300).rev().map(|at| at * page).collect(),
            (0..300).map(|at| (at + at / 7) * page).collect(),
            // Both ends of all addresses, which are no neighbours.
            vec![top, 0],
            vec![top - page, top, 0, page],
        ] {
            let (space, sim) = with_pages(&pages);
            let ranges: Vec<_> = pages.iter().map(|iova| (*iova, page)).collect();
            assert_eq!(space.unmap_batch(&ranges), Ok(()));
            assert_eq!((space.regions(), sim.areas()), (vec![], vec![]));
            assert_eq!((space.stats().mappings, space.stats().bytes), (0, 0));
            assert!(ranges.is_empty() || space.unmap_batch(&ranges).is_err());
        }
    }

    #[test]
    fn a_batch_with_one_that_is_not_there_leaves_all() {
        let page = page_bytes();
        let (space, sim) = with_pages(&[0, page, 2 * page]);
        let ranges: Vec<_> = (0..4).map(|at| (at * page, page)).collect();
        let error = space.unmap_batch(&ranges).expect_err("the last one isn't there");
        assert!(matches!(error, DmaError::NotMapped { iova, .. } if iova == 3 * page));
        assert_eq!((space.regions().len(), sim.areas().len()), (3, 3));
        assert!(space.unmap_batch(&[ranges[0], ranges[0]]).is_err(), "twice the same");
        assert_eq!(space.unmap_batch(&ranges[..3]), Ok(()));
    }
}
