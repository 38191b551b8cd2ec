//! Taking addresses before the kernel is asked, and giving them back.

use std::sync::Arc;

use berth_uapi::IovaChoice;

use super::block::{Stage, Word};
use super::places::Place;
use super::{Denied, Mirror, New, Region, Source, State, Ticket};
use crate::alloc::LARGE_PAGES;
use crate::memory::Mapping;
use crate::table::Refused;

/// How many mappings are given up under one lock.
const RUN: usize = 64;

/// Takes.
impl Mirror {
    /// Takes what was chosen and given back last, if it is exactly this, without the lock: for memory that
    /// isn't kept.
    #[inline]
    pub(crate) fn reserve_warm(&self, iova: u64, new: &New) -> Option<Ticket<'_>> {
        let tile = self.hot.get(iova);
        if !self.warm.take(tile) {
            return None;
        }
        let block = self.block(tile);
        if !block.is_at(iova, new.length) {
            self.give_warm_up(tile);
            return None;
        }
        let word = block.word().next(new.perms, new.source);
        block.set_again(new.source, word);
        Some(Ticket { block, tile, word, iova, length: new.length })
    }

    /// Gives a place up that this thread took and can't use: it would mostly be in its way.
    #[cold]
    fn give_warm_up(&self, tile: u32) {
        let mut state = self.lock();
        self.warm.forget(tile);
        if let Some(addresses) = &mut state.addresses {
            addresses.forget(&self.by_address, tile);
        }
        self.give_up(&mut state, tile);
    }

    /// Takes addresses before the kernel is asked; what is kept goes over only where it succeeds.
    pub(crate) fn reserve(&self, place: IovaChoice, new: &mut New) -> Result<Ticket<'_>, Denied> {
        let mut state = self.lock();
        if let Some(kept) = self.place_for(&mut state, place, new) {
            return Ok(self.put_again(&mut state, kept, place, new));
        }
        let tile = self.take(&mut state, place, new)?;
        Ok(self.put(&mut state, tile, place, new))
    }

    /// Takes addresses for all of these, one right behind the other where their place is left open.
    /// All or none.
    pub(crate) fn reserve_row(
        &self,
        place: IovaChoice,
        row: &mut [New],
    ) -> Result<Vec<Ticket<'_>>, Denied> {
        let mut state = self.lock();
        let total = row.iter().map(|new| new.length).fold(0, u64::saturating_add);
        let Some(first) = row.first() else { return Ok(Vec::new()) };
        let whole = New { length: total, keep: None, ..first.clone() };
        let tile = self.take(&mut state, place, &whole)?;
        let start = state.table.range(tile).start;
        state.table.release(tile);
        let mut tickets = Vec::with_capacity(row.len());
        let mut iova = start;
        for new in row {
            let at = IovaChoice::Fixed(iova);
            // It was free as a whole a moment ago, under the same lock.
            let tile = self.take(&mut state, at, new)?;
            iova = iova.saturating_add(new.length);
            tickets.push(self.put(&mut state, tile, place, new));
        }
        Ok(tickets)
    }

    /// Takes what the table has. Places that are kept for the next one are given up where they are in
    /// the way.
    fn take(&self, state: &mut State, place: IovaChoice, new: &New) -> Result<u32, Denied> {
        let denied = match self.take_free(state, place, new) {
            Ok(tile) => return Ok(tile),
            Err(denied) => denied,
        };
        let in_the_way = match denied {
            Refusal::Taken(tile) => self.block(tile).word().stage() == Stage::Kept,
            Refusal::NoSpace(_) => !state.places.is_empty() || self.warm.kept().is_some(),
            Refusal::NotFree => false,
        };
        let denied = if in_the_way {
            self.give_places_up(state);
            match self.take_free(state, place, new) {
                Ok(tile) => return Ok(tile),
                Err(denied) => denied,
            }
        } else {
            denied
        };
        Err(match denied {
            Refusal::Taken(tile) => Denied::Overlap(self.block(tile).get().0),
            Refusal::NotFree => Denied::NotPermitted,
            Refusal::NoSpace(largest) => Denied::NoSpace(largest),
        })
    }

    fn take_free(&self, state: &mut State, place: IovaChoice, new: &New) -> Result<u32, Refusal> {
        let length = new.length;
        let iova = match place {
            IovaChoice::Fixed(iova) => iova,
            IovaChoice::Any => {
                return state.table.take_any(length, new.memory()).map_err(Refusal::NoSpace);
            }
        };
        let near = self.index.floor(iova).map(|(_, tile)| tile);
        let taken = match state.table.take(near, iova, length, false) {
            // Address 0, what another user seemed to have, or what isn't given out: the kernel knows.
            Err(Refused::NotFree) if state.permits(iova, length) => {
                state.table.take(near, iova, length, true)
            }
            answer => answer,
        };
        taken.map_err(|refused| match refused {
            Refused::Taken(tile) => Refusal::Taken(tile),
            Refused::NotFree => Refusal::NotFree,
        })
    }

    fn put(&self, state: &mut State, tile: u32, place: IovaChoice, new: &mut New) -> Ticket<'_> {
        let iova = state.table.range(tile).start;
        self.blocks.grow_to(tile);
        // A mapping that had this number may have been freed while it was named.
        self.warm.forget(tile);
        let region = new.at(iova);
        let block = self.block(tile);
        let word = new.word(block.word(), place);
        block.set(&region, word);
        self.index.insert(&mut state.writer, iova, tile);
        state.bytes += region.length;
        self.settle(state, tile, &region, new);
        Ticket { block, tile, word, iova, length: new.length }
    }

    /// As [`Mirror::put`], where the index names the tile already.
    fn put_again(
        &self,
        state: &mut State,
        kept: Place,
        place: IovaChoice,
        new: &mut New,
    ) -> Ticket<'_> {
        let Place { tile, iova, length } = kept;
        let block = self.block(tile);
        let word = new.word(block.word(), place);
        block.set_again(new.source, word);
        self.settle(state, tile, &new.at(iova), new);
        Ticket { block, tile, word, iova, length }
    }

    #[inline]
    fn settle(&self, state: &mut State, tile: u32, region: &Region, new: &mut New) {
        if let Some(keep) = new.keep.take() {
            state.keep(tile, Some(keep));
        }
        self.hot.put(region.iova, tile);
        if let (Some(addresses), Some(memory)) = (&mut state.addresses, region.memory()) {
            let last_of = |tile| self.memory_of(tile).unwrap_or_default().1;
            addresses.insert(&self.by_address, tile, memory, last_of);
        }
    }

    /// A place that was given back a moment ago and is as one that the table would give.
    #[inline]
    fn place_for(&self, state: &mut State, place: IovaChoice, new: &New) -> Option<Place> {
        let length = new.length;
        match place {
            IovaChoice::Fixed(iova) => {
                let tile = self.warm.kept().filter(|tile| self.block(*tile).is_at(iova, length))?;
                self.warm.take_locked(tile).then_some(Place { tile, iova, length })
            }
            IovaChoice::Any if state.places.is_empty() => None,
            IovaChoice::Any => {
                let large = LARGE_PAGES.into_iter().find(|size| *size <= length).unwrap_or(1);
                let away = new.memory() & (large - 1);
                state.places.take(length, |place| place.iova & (large - 1) == away)
            }
        }
    }

    /// The kernel mapped what was reserved.
    #[inline]
    pub(crate) fn commit(&self, ticket: &Ticket<'_>) {
        ticket.block.store(ticket.word.at(Stage::Mapped));
    }
}

/// Gives back.
impl Mirror {
    /// The kernel unmapped exactly this: as [`Mirror::free`], and the place is kept for whoever maps as
    /// much next.
    #[inline]
    pub(crate) fn unmapped(&self, ticket: &Ticket<'_>) -> Option<Arc<Mapping>> {
        let Ticket { block, tile, word, .. } = *ticket;
        if !word.holds_memory() && self.warm.names(tile) {
            block.store(word.at(Stage::Kept));
            if self.warm.give(tile) {
                return None;
            }
        }
        self.unmapped_locked(&ticket.aside())
    }

    #[inline(never)]
    fn unmapped_locked(&self, ticket: &Ticket<'_>) -> Option<Arc<Mapping>> {
        let Ticket { tile, word, iova, length, .. } = *ticket;
        let mut state = self.lock();
        // Others find no place in what isn't given out, and the kernel may have let it be mapped.
        if !state.table.gives_out(iova, length) {
            drop(state);
            return self.free(ticket);
        }
        let kept = self.take_out(&mut state, ticket, Stage::Kept);
        let oldest = if word.has_open_place() {
            state.places.put(Place { tile, iova, length }).map(|place| place.tile)
        } else {
            self.warm.replace(Some(tile))
        };
        if let Some(oldest) = oldest {
            self.give_up(&mut state, oldest);
        }
        kept
    }

    /// The kernel has nothing (any more) where this ticket says: the addresses are free again. What
    /// was kept is handed to the caller, who lets go of it without the lock.
    pub(crate) fn free(&self, ticket: &Ticket<'_>) -> Option<Arc<Mapping>> {
        let mut state = self.lock();
        self.index.remove(&mut state.writer, ticket.iova);
        let kept = self.take_out(&mut state, ticket, Stage::Empty);
        state.table.release(ticket.tile);
        kept
    }

    /// As [`Mirror::free`], for mappings that lie one behind the other with nothing in between.
    pub(crate) fn free_run(&self, run: &[Ticket<'_>]) {
        // The lock isn't held for long: others map meanwhile.
        for part in run.chunks(RUN) {
            let mut state = self.lock();
            let (first, last) = (&part[0], &part[part.len() - 1]);
            self.index.remove_run(&mut state.writer, first.iova, last.iova);
            let mut kept = Vec::new();
            for ticket in part {
                if let Some(memory) = self.take_out(&mut state, ticket, Stage::Empty) {
                    kept.push(memory);
                }
            }
            state.table.release_run(part.iter().map(|ticket| ticket.tile));
            // What was kept is let go of without the lock.
            drop(state);
            drop(kept);
        }
    }

    /// As [`Mirror::free`], but the addresses are another user's, and perhaps some more behind them.
    pub(crate) fn surrender(&self, ticket: &Ticket<'_>, more: u64) -> Option<Arc<Mapping>> {
        let mut state = self.lock();
        self.index.remove(&mut state.writer, ticket.iova);
        let kept = self.take_out(&mut state, ticket, Stage::Empty);
        state.table.surrender(ticket.tile, more);
        kept
    }

    /// Ends a mapping; its place is the caller's.
    #[inline]
    fn take_out(&self, state: &mut State, ticket: &Ticket<'_>, to: Stage) -> Option<Arc<Mapping>> {
        if let Some(addresses) = &mut state.addresses
            && let Some(memory) = ticket.block.get().0.memory()
        {
            let range_of = |tile| self.memory_of(tile);
            addresses.remove(&self.by_address, ticket.tile, memory, range_of);
        }
        ticket.block.store(ticket.word.at(to));
        if to == Stage::Empty {
            state.bytes -= ticket.length;
        }
        if ticket.word.holds_memory() { state.keep(ticket.tile, None) } else { None }
    }

    /// Gives all places up that are kept for whoever maps next.
    pub(super) fn give_places_up(&self, state: &mut State) {
        if let Some(tile) = self.warm.replace(None) {
            self.give_up(state, tile);
        }
        while let Some(place) = state.places.pop() {
            self.give_up(state, place.tile);
        }
    }

    fn give_up(&self, state: &mut State, tile: u32) {
        let block = self.block(tile);
        let (iova, length) = block.place();
        self.index.remove(&mut state.writer, iova);
        block.store(block.word().at(Stage::Empty));
        state.bytes -= length;
        state.table.release(tile);
    }
}

/// Why the table has nothing.
enum Refusal {
    Taken(u32),
    NotFree,
    NoSpace(u64),
}

impl New {
    /// It, mapped at an address.
    #[inline]
    fn at(&self, iova: u64) -> Region {
        let Self { length, perms, source, .. } = *self;
        Region { iova, length, perms, source }
    }

    /// Where its memory lies, in what has large pages.
    #[inline]
    fn memory(&self) -> u64 {
        let (Source::Memory { address: at } | Source::File { offset: at }) = self.source;
        at
    }

    /// Its word, behind the one of the mapping that had its number before.
    fn word(&self, before: Word, place: IovaChoice) -> Word {
        let mut word = before.next(self.perms, self.source);
        if place == IovaChoice::Any {
            word = word.with_open_place();
        }
        if self.keep.is_some() {
            word = word.with_memory();
        }
        word
    }
}
