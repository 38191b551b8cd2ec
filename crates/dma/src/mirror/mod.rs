//! What an address space has mapped, kept beside the kernel's own table, which can't be read.

mod block;
mod by_address;
mod claim;
mod hints;
mod hot;
mod places;
mod translate;
mod warm;

use std::sync::{Arc, PoisonError};

use berth_uapi::{DmaPerms, IovaRange};

use self::block::{Block, Stage, Word};
use self::by_address::{AddressWriter, ByAddress};
use self::hot::Hot;
use self::places::Places;
use self::warm::Warm;
use crate::chunks::Chunks;
use crate::error::DmaError;
use crate::index::{Index, Writer};
use crate::memory::{Mapping, page_bytes};
use crate::sync::{Mutex, MutexGuard};
use crate::table::Table;

/// Where the memory of a mapping comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Memory of this process, by its address.
    Memory {
        /// The address.
        address: u64,
    },
    /// Part of a file.
    File {
        /// Where in the file.
        offset: u64,
    },
}

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where devices see it.
    pub iova: u64,
    /// How long it is.
    pub length: u64,
    /// What devices may do with it.
    pub perms: DmaPerms,
    /// What it shows.
    pub source: Source,
}

impl Region {
    /// The addresses it takes.
    pub fn range(&self) -> IovaRange {
        IovaRange { start: self.iova, last: self.iova.saturating_add(self.length - 1) }
    }

    /// The memory it shows, first and last address.
    fn memory(&self) -> Option<(u64, u64)> {
        match self.source {
            Source::Memory { address } => Some((address, address.saturating_add(self.length - 1))),
            Source::File { .. } => None,
        }
    }
}

/// What is to be mapped.
#[derive(Clone, Debug)]
pub(crate) struct New {
    pub(crate) length: u64,
    pub(crate) perms: DmaPerms,
    pub(crate) source: Source,
    /// Memory that must stay where it is until the kernel has let go of it.
    pub(crate) keep: Option<Arc<Mapping>>,
}

/// Why addresses could not be reserved.
#[derive(Debug)]
pub(crate) enum Denied {
    /// This mapping is in the way.
    Overlap(Region),
    /// They aren't permitted, as far as is known.
    NotPermitted,
    /// Nothing this large is free, as far as is known; the largest there is.
    NoSpace(u64),
}

/// A mapping of which this thread alone decides what becomes of it.
#[derive(Debug)]
#[must_use]
pub(crate) struct Ticket<'a> {
    /// That of the tile.
    block: &'a Block,
    tile: u32,
    word: Word,
    pub(crate) iova: u64,
    pub(crate) length: u64,
}

impl Ticket<'_> {
    /// The same, for what is seldom done: a ticket that is lent nowhere else needs no memory.
    #[inline]
    pub(crate) fn aside(&self) -> Self {
        Self { ..*self }
    }
}

#[derive(Debug)]
struct State {
    table: Table,
    /// What the kernel maps.
    permitted: Vec<IovaRange>,
    /// What is given out of that, if not all.
    allowed: Vec<IovaRange>,
    writer: Writer,
    addresses: Option<AddressWriter>,
    kept: Vec<Option<Arc<Mapping>>>,
    /// Addresses that are free, though the table has them as taken and the index names them.
    places: Places,
    /// Of what the table has as taken, so with those of places that wait.
    bytes: u64,
}

/// All mappings.
///
/// The lock is held to reserve addresses and to give them up, never over an ioctl and never to look; a
/// place that was chosen and given back a moment ago is taken and given back again without it.
/// In between, a mapping belongs to the thread that moved it on with a compare-and-swap: it alone
/// says whether it is mapped now, or gone. So memory is let go only by who knows that the kernel has.
#[derive(Debug)]
pub(crate) struct Mirror {
    index: Index,
    /// Mappings that were made last: where one that is to be unmapped is looked first.
    hot: Hot,
    warm: Warm,
    by_address: ByAddress,
    blocks: Chunks<Block>,
    state: Mutex<State>,
}

impl Mirror {
    pub(crate) fn new() -> Self {
        let (index, writer) = Index::new();
        let state = State {
            table: Table::new(page_bytes()),
            permitted: Vec::new(),
            allowed: Vec::new(),
            writer,
            addresses: None,
            kept: Vec::new(),
            places: Places::default(),
            bytes: 0,
        };
        let (hot, warm, by_address) = (Hot::new(), Warm::new(), ByAddress::default());
        let blocks = Chunks::new();
        Self { index, hot, warm, by_address, blocks, state: Mutex::new(state) }
    }

    /// Learns what is permitted, and answers whether that is something new.
    pub(crate) fn permit(&self, mut ranges: Vec<IovaRange>) -> bool {
        ranges.sort_unstable();
        let mut state = self.lock();
        let new = state.permitted != ranges;
        self.give_places_up(&mut state);
        state.permitted = ranges;
        state.give_out();
        new
    }

    /// Restricts what is given out where a place is left open; an empty list lifts it.
    pub(crate) fn allow(&self, mut ranges: Vec<IovaRange>) {
        ranges.sort_unstable();
        let mut state = self.lock();
        self.give_places_up(&mut state);
        state.allowed = ranges;
        state.give_out();
    }

    /// Takes exactly one mapping to unmap it, if it is found where it is looked first.
    #[inline]
    pub(crate) fn begin_unmap_hot(&self, iova: u64, length: u64) -> Option<Ticket<'_>> {
        let tile = self.hot.get(iova);
        let block = self.blocks.get(tile)?;
        let word = block.begin_unmap(iova, length)?;
        Some(Ticket { block, tile, word, iova, length })
    }

    /// Takes exactly one mapping to unmap it, wherever it is.
    ///
    /// # Errors
    ///
    /// Nothing is there, or not exactly this, or it is busy.
    #[inline(never)]
    pub(crate) fn begin_unmap_of_index(
        &self,
        iova: u64,
        length: u64,
    ) -> Result<Ticket<'_>, DmaError> {
        let last = iova.saturating_add(length.saturating_sub(1));
        let mut below = Some(last);
        loop {
            let seen = below.and_then(|below| self.seen(below));
            let Some((tile, region, word)) = seen.filter(|s| s.1.range().last >= iova) else {
                return Err(DmaError::NotMapped { iova, length });
            };
            if word.stage() == Stage::Kept {
                // It's none, and can hide one that begins before it.
                below = region.iova.checked_sub(1);
                continue;
            }
            if (region.iova, region.length) != (iova, length) {
                return Err(DmaError::Bisects { iova, length, mapping: region });
            }
            if word.stage() != Stage::Mapped {
                return Err(DmaError::Busy { iova });
            }
            let leaving = word.at(Stage::Unmapping);
            let block = self.block(tile);
            if block.exchange(word, leaving) {
                return Ok(Ticket { block, tile, word: leaving, iova, length });
            }
            below = Some(last);
        }
    }

    /// Takes the mapping that has all of a range to copy it, and what is kept for it.
    ///
    /// # Errors
    ///
    /// Nothing is there, or not all of it in one mapping, or it is busy.
    pub(crate) fn begin_copy(
        &self,
        iova: u64,
        length: u64,
    ) -> Result<(Ticket<'_>, Region, Option<Arc<Mapping>>), DmaError> {
        loop {
            let seen = self.seen(iova).filter(|s| s.1.range().last >= iova);
            let Some((tile, region, word)) = seen else {
                return Err(DmaError::NotMapped { iova, length });
            };
            if word.stage() == Stage::Kept {
                return Err(DmaError::NotMapped { iova, length });
            }
            if !region.range().contains(iova, length) {
                return Err(DmaError::Bisects { iova, length, mapping: region });
            }
            if word.stage() != Stage::Mapped {
                return Err(DmaError::Busy { iova: region.iova });
            }
            let copying = word.at(Stage::Copying);
            let block = self.block(tile);
            if block.exchange(word, copying) {
                let kept = self.lock().kept_of(tile);
                let Region { iova, length, .. } = region;
                let ticket = Ticket { block, tile, word: copying, iova, length };
                return Ok((ticket, region, kept));
            }
        }
    }

    /// Names every mapping that is complete now.
    pub(crate) fn mapped(&self) -> Vec<Ticket<'_>> {
        let state = self.lock();
        let tickets = state.table.taken().filter_map(|tile| {
            let block = self.block(tile);
            let (Region { iova, length, .. }, word) = block.get();
            (word.stage() == Stage::Mapped).then_some(Ticket { block, tile, word, iova, length })
        });
        tickets.collect()
    }

    /// Forgets mappings that were complete before the kernel unmapped everything. One that another
    /// thread has taken meanwhile is that thread's to remove.
    pub(crate) fn forget(&self, tickets: &[Ticket<'_>]) {
        for ticket in tickets {
            let gone = ticket.word.at(Stage::Unmapping);
            if ticket.block.exchange(ticket.word, gone) {
                drop(self.free(ticket));
            }
        }
    }

    /// Whether one lies right behind the other, with nothing in between.
    pub(crate) fn touch(&self, first: &Ticket<'_>, second: &Ticket<'_>) -> bool {
        first.iova.checked_add(first.length) == Some(second.iova)
    }

    /// The complete mappings, ascending.
    pub(crate) fn regions(&self) -> Vec<Region> {
        let state = self.lock();
        let seen = state.table.taken().map(|tile| self.block(tile).get());
        seen.filter(|(_, word)| word.is_mapped()).map(|(region, _)| region).collect()
    }

    /// The complete mapping at an address, without a lock.
    pub(crate) fn find(&self, iova: u64) -> Option<Region> {
        let (_, region, word) = self.seen(iova)?;
        (word.is_mapped() && region.range().last >= iova).then_some(region)
    }

    /// The last mapping that begins at or below an address, at whatever stage.
    fn seen(&self, iova: u64) -> Option<(u32, Region, Word)> {
        self.index.read(|index| {
            let (_, tile) = index.floor(iova)?;
            let (region, word) = self.blocks.get(tile)?.get();
            Some((tile, region, word))
        })
    }

    /// How many mappings there are, complete or not, and how many bytes they have.
    pub(crate) fn totals(&self) -> (usize, u64) {
        let state = self.lock();
        let waits = self.warm.kept().map(|tile| self.block(tile).place().1);
        let mappings = state.writer.len() - state.places.len() - usize::from(waits.is_some());
        (mappings, state.bytes - state.places.bytes() - waits.unwrap_or(0))
    }

    /// Gives up memory that the kernel may still hand to a device: it is never freed.
    pub(crate) fn leak(&self) {
        for kept in std::mem::take(&mut self.lock().kept) {
            std::mem::forget(kept);
        }
    }

    #[expect(clippy::expect_used, reason = "tiles that were taken once have a block for good")]
    #[inline]
    fn block(&self, tile: u32) -> &Block {
        self.blocks.get(tile).expect("a block of a tile")
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a bug of this crate; what it left is still tiles and entries.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn permits(&self, iova: u64, length: u64) -> bool {
        self.permitted.iter().any(|range| range.contains(iova, length))
    }

    fn give_out(&mut self) {
        if self.allowed.is_empty() {
            return self.table.permit(self.permitted.clone());
        }
        let both = |range: &IovaRange, allowed: &IovaRange| {
            let (start, last) = (range.start.max(allowed.start), range.last.min(allowed.last));
            (start <= last).then_some(IovaRange { start, last })
        };
        let of = |range| self.allowed.iter().filter_map(move |allowed| both(range, allowed));
        self.table.permit(self.permitted.iter().flat_map(of).collect());
    }

    /// Exchanges what is kept for a tile.
    #[inline]
    fn keep(&mut self, tile: u32, keep: Option<Arc<Mapping>>) -> Option<Arc<Mapping>> {
        let at = usize::try_from(tile).unwrap_or(usize::MAX);
        if at >= self.kept.len() {
            keep.as_ref()?;
            self.kept.resize(at + 1, None);
        }
        std::mem::replace(&mut self.kept[at], keep)
    }

    fn kept_of(&self, tile: u32) -> Option<Arc<Mapping>> {
        self.kept.get(usize::try_from(tile).ok()?)?.clone()
    }
}

#[cfg(all(test, loom))]
mod orders;
