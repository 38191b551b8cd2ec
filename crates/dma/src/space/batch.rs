//! Mapping many buffers at once.
#![expect(unsafe_code, reason = "maps memory by address")]

use std::ptr::NonNull;

use berth_uapi::{DmaPerms, Errno, IoctlError, IovaChoice};

use super::AddressSpace;
use super::map::{aligned, check, fixed};
use super::plan::{Piece, Plan, plan};
use crate::error::DmaError;
use crate::memory::{as_u64, is_whole_pages};
use crate::mirror::{New, Source, Ticket};
use crate::trace;

/// How often a batch is tried where other users of the address space are in its way.
const TRIES: u32 = 24;

/// One buffer of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchBuffer {
    /// Where devices are to see it.
    pub iova: IovaChoice,
    /// Its memory.
    pub memory: NonNull<u8>,
    /// How long it is: whole pages.
    pub length: u64,
}

/// What a batch became. Its buffers live and end together: the kernel can't unmap a part of an area.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "without it the batch can only be unmapped by its regions"]
pub struct Batch {
    iovas: Vec<u64>,
    areas: Vec<(u64, u64)>,
}

impl Batch {
    /// Where devices see each buffer, in the order in which they were given.
    pub fn iovas(&self) -> &[u64] {
        &self.iovas
    }

    /// The mappings that were made, IOVA and length: what [`AddressSpace::unmap_batch`] takes.
    pub fn areas(&self) -> &[(u64, u64)] {
        &self.areas
    }
}

impl AddressSpace {
    /// Maps many buffers with as few ioctls as can be: buffers that lie one behind the other in
    /// memory become one mapping. Those with an open place are put one behind the other, so that
    /// they are unmapped at once as well.
    ///
    /// All are mapped or none is; only what the kernel refuses to take back is left, and is in
    /// [`AddressSpace::regions`] then.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::map`], for the first buffer or run of buffers that can't be mapped.
    ///
    /// # Safety
    ///
    /// As [`AddressSpace::map`], for every buffer until the batch is unmapped.
    pub unsafe fn map_batch(
        &self,
        buffers: &[BatchBuffer],
        perms: DmaPerms,
    ) -> Result<Batch, DmaError> {
        if let Some(whole) = neighbours(buffers) {
            check(whole.place, whole.length, perms)?;
            aligned("address", whole.address)?;
            let mut new = new(&whole, perms);
            // SAFETY: the caller's promise, for memory that is in one piece.
            let iova = unsafe { self.map_memory(whole.place, &mut new, whole.address) }?;
            let iovas = starts(iova, buffers).collect();
            return Ok(Batch { iovas, areas: vec![(iova, whole.length)] });
        }
        let plan = plan(&pieces(buffers, perms)?);
        let mut tries = 0;
        loop {
            let tickets = self.reserve_all(&plan, perms)?;
            // SAFETY: the caller's promise.
            let Err((at, error)) = (unsafe { self.map_all(&plan, &tickets, perms) }) else {
                for ticket in &tickets {
                    self.mirror.commit(ticket);
                }
                return Ok(batch(&plan, &tickets));
            };
            tries += 1;
            self.undo_batch(&plan, &tickets, (at, error), tries)?;
        }
    }

    /// Takes addresses for all areas, or none.
    fn reserve_all(&self, plan: &Plan, perms: DmaPerms) -> Result<Vec<Ticket<'_>>, DmaError> {
        let mut tickets = Vec::with_capacity(plan.areas.len());
        while tickets.len() < plan.areas.len() {
            let at = tickets.len();
            let count = if at < plan.placed() { 1 } else { plan.row(at).get() };
            let row = &plan.areas[at..at + count];
            if let Err(error) = self.reserve_row(row, perms, &mut tickets) {
                self.free_all(&tickets);
                return Err(error);
            }
        }
        Ok(tickets)
    }

    /// Takes addresses for areas one behind the other or, where so much in one piece isn't free, each
    /// for itself.
    fn reserve_row<'a>(
        &'a self,
        row: &[Piece],
        perms: DmaPerms,
        tickets: &mut Vec<Ticket<'a>>,
    ) -> Result<(), DmaError> {
        if let [area] = row {
            tickets.push(self.reserve(area.place, &mut new(area, perms))?);
            return Ok(());
        }
        let Some(first) = row.first() else { return Ok(()) };
        let mut news: Vec<New> = row.iter().map(|area| new(area, perms)).collect();
        let total = news.iter().map(|new| new.length).fold(0, u64::saturating_add);
        let mut reserve = || self.mirror.reserve_row(first.place, &mut news);
        let reserved = match reserve() {
            Ok(tickets) => Ok(tickets),
            Err(denied) => self.with_new_ranges(first.place, total, denied, &mut reserve),
        };
        match reserved {
            Err(DmaError::NoSpace { .. }) if row.len() > 1 => {
                for area in row {
                    tickets.push(self.reserve(area.place, &mut new(area, perms))?);
                }
            }
            answer => tickets.extend(answer?),
        }
        Ok(())
    }

    fn free_all(&self, tickets: &[Ticket<'_>]) {
        for ticket in tickets {
            drop(self.mirror.free(ticket));
        }
    }

    /// # Safety
    ///
    /// As [`AddressSpace::map_batch`].
    unsafe fn map_all(
        &self,
        plan: &Plan,
        tickets: &[Ticket<'_>],
        perms: DmaPerms,
    ) -> Result<(), (usize, IoctlError)> {
        for (at, (area, ticket)) in plan.areas.iter().zip(tickets).enumerate() {
            // SAFETY: the caller's promise for all buffers of the area.
            unsafe { self.backend.map(ticket.iova, area.address, area.length, perms) }.map_err(
                |error| {
                    trace::refused("map", ticket.iova, area.length, error.errno);
                    (at, error)
                },
            )?;
            trace::mapped(ticket.iova, area.length, perms);
        }
        Ok(())
    }

    /// Takes everything back that a batch did before the kernel refused an area. Where that may be
    /// due to another user of the address space, there is nothing to report yet.
    fn undo_batch(
        &self,
        plan: &Plan,
        tickets: &[Ticket<'_>],
        (at, error): (usize, IoctlError),
        tries: u32,
    ) -> Result<(), DmaError> {
        let (mapped, not_mapped) = tickets.split_at(at);
        let had = self.mirror.totals().0.saturating_sub(not_mapped.len());
        let mut left = 0;
        for run in mapped.chunk_by(|a, b| self.mirror.touch(a, b)) {
            left += self.unmap_run(run).0;
        }
        let place = plan.areas[at].place;
        let open = place == IovaChoice::Any && tries < TRIES && left == 0;
        let foreign = open && error.errno == Errno::EXIST;
        for (number, ticket) in not_mapped.iter().enumerate() {
            if number == 0 && foreign {
                let more = ticket.length.checked_shl(tries).unwrap_or(u64::MAX);
                drop(self.mirror.surrender(ticket, more));
            } else {
                drop(self.mirror.free(ticket));
            }
        }
        if foreign {
            return Ok(());
        }
        if open && error.errno == Errno::INVAL && self.refresh().is_ok_and(|(_, new)| new) {
            return Ok(());
        }
        let mut error = self.explain(place, plan.areas[at].length, error);
        if let DmaError::EntryLimit { mapped, .. } = &mut error {
            *mapped = had;
        }
        Err(error)
    }
}

fn piece(buffer: &BatchBuffer) -> Piece {
    let address = as_u64(buffer.memory.as_ptr().expose_provenance());
    Piece { place: buffer.iova, address, length: buffer.length }
}

/// Buffers that are neighbours in the order in which they are given, as they mostly are: one area. Each
/// is whole pages long, so that all are aligned if the first one is.
fn neighbours(buffers: &[BatchBuffer]) -> Option<Piece> {
    let first = piece(buffers.first()?);
    // Where they aren't, that is mostly told by the first two.
    if buffers.get(1).is_some_and(|next| !first.goes_on_with(&piece(next))) {
        return None;
    }
    let place = first.place;
    let length = match place {
        IovaChoice::Fixed(start) => joined(buffers, |place, offset| match place {
            IovaChoice::Fixed(iova) => iova ^ start.wrapping_add(offset),
            IovaChoice::Any => 1,
        }),
        IovaChoice::Any => joined(buffers, |place, _| u64::from(place != IovaChoice::Any)),
    }?;
    let ends = fixed(place).checked_add(length - 1).and(first.address.checked_add(length - 1));
    ends.map(|_| Piece { length, ..first })
}

/// The length of all together, if each begins where the one before ends. `elsewhere` answers 0 for a
/// place so far behind the first one. What is wrong is gathered, and looked at once at the end.
fn joined(buffers: &[BatchBuffer], elsewhere: impl Fn(IovaChoice, u64) -> u64) -> Option<u64> {
    let address = piece(buffers.first()?).address;
    let (mut length, mut wrong, mut bits, mut tops) = (0_u64, 0, 0, 0);
    for next in buffers.iter().map(piece) {
        wrong |= elsewhere(next.place, length) | (next.address ^ address.wrapping_add(length));
        bits |= next.length;
        tops |= next.length.wrapping_sub(1);
        length = length.wrapping_add(next.length);
    }
    // None is longer than this, and none is empty. All are whole pages if all bits of their lengths are.
    let longest = tops.checked_add(1)?;
    let fits = longest.checked_mul(as_u64(buffers.len())).is_some();
    (fits && wrong == 0 && is_whole_pages(bits)).then_some(length)
}

/// Where each of them begins that lie one behind the other.
fn starts(first: u64, buffers: &[BatchBuffer]) -> impl Iterator<Item = u64> {
    let mut next = first;
    buffers.iter().map(move |buffer| {
        let start = next;
        // The last one may end at the last address of all.
        next = next.wrapping_add(buffer.length);
        start
    })
}

/// What the buffers are, each checked.
fn pieces(buffers: &[BatchBuffer], perms: DmaPerms) -> Result<Vec<Piece>, DmaError> {
    let checked = |buffer| {
        let piece = piece(buffer);
        check(piece.place, piece.length, perms)?;
        aligned("address", piece.address)?;
        Ok(piece)
    };
    buffers.iter().map(checked).collect()
}

fn new(area: &Piece, perms: DmaPerms) -> New {
    let source = Source::Memory { address: area.address };
    New { length: area.length, perms, source, keep: None }
}

fn batch(plan: &Plan, tickets: &[Ticket<'_>]) -> Batch {
    let iovas = plan.of.iter().map(|(area, offset)| tickets[*area].iova + offset).collect();
    let areas = tickets.iter().map(|ticket| (ticket.iova, ticket.length)).collect();
    Batch { iovas, areas }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::page_bytes;

    fn buffer(iova: IovaChoice, page: usize, length: u64) -> BatchBuffer {
        let address = std::ptr::without_provenance_mut(page << 12);
        BatchBuffer { iova, memory: NonNull::new(address).expect("not null"), length }
    }

    #[test]
    fn neighbours_in_order_need_no_sorting() {
        let (any, at) = (IovaChoice::Any, IovaChoice::Fixed);
        let page = page_bytes();
        let rows = [
            vec![buffer(any, 5, page), buffer(any, 6, 2 * page), buffer(any, 8, page)],
            vec![buffer(at(0), 5, page), buffer(at(page), 6, 3 * page)],
            vec![buffer(any, 7, page)],
        ];
        for row in &rows {
            let whole = neighbours(row).expect("they are neighbours");
            let slow = plan(&pieces(row, DmaPerms::READ).expect("sound"));
            let of: Vec<_> = starts(0, row).map(|offset| (0, offset)).collect();
            assert_eq!((vec![whole], of), (slow.areas, slow.of));
        }
        let others = [
            vec![],
            vec![buffer(any, 6, page), buffer(any, 5, page)],
            vec![buffer(any, 5, page), buffer(any, 7, page)],
            vec![buffer(at(0), 5, page), buffer(at(2 * page), 6, page)],
            vec![buffer(any, 5, page), buffer(any, 6, page / 2)],
            vec![buffer(any, 5, page), buffer(any, 6, 0)],
            vec![buffer(any, 5, page), buffer(at(page), 6, page)],
        ];
        assert!(others.iter().all(|row| neighbours(row).is_none()));
    }
}
