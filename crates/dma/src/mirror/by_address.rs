//! Finding mappings by the address of their memory, for those who ask.
//!
//! Nothing is kept until somebody asks for the first time. The same memory can be mapped twice, which
//! an ordered index can't tell apart: all but one of those stand on a list that is only looked at
//! when the index has no answer.

use super::hints::Hints;
use crate::index::{Index, Writer};
use crate::sync::{AtomicUsize, OnceLock, Ordering};

/// How many of the list are looked at for a place in the index that has become free.
const MOVED: usize = 8;

/// What readers need.
#[derive(Debug, Default)]
pub(super) struct ByAddress {
    index: OnceLock<Index>,
    /// There before the index.
    hints: OnceLock<Hints>,
    shadows: AtomicUsize,
    /// How often one of the list went into the index.
    moves: AtomicUsize,
}

/// What it takes to change it.
#[derive(Debug)]
pub(super) struct AddressWriter {
    writer: Writer,
    shadows: Vec<u32>,
    /// Which of the list is looked at next.
    next: usize,
}

impl ByAddress {
    /// The index, once somebody asked.
    pub(super) fn index(&self) -> Option<&Index> {
        self.index.get()
    }

    /// What the index needn't be asked for, once somebody asked.
    #[inline]
    pub(super) fn hints(&self) -> Option<&Hints> {
        self.hints.get()
    }

    /// How often something moved into the index so far. Taken before the index is read.
    pub(super) fn moves(&self) -> usize {
        self.moves.load(Ordering::Acquire)
    }

    /// Whether what the index didn't have can be somewhere else: on the list, or moved from there
    /// into the index since it was read.
    pub(super) fn has_more(&self, moves: usize) -> bool {
        // In this order: who finds the list empty since something moved sees that it moved.
        self.shadows.load(Ordering::Acquire) > 0 || self.moves() != moves
    }

    /// Begins to keep all of `tiles`, each with the first and last address of its memory, or none if
    /// that isn't known yet. Readers see the index only once it has all of them.
    pub(super) fn build(
        &self,
        tiles: impl Iterator<Item = (u32, Option<(u64, u64)>)>,
        last_of: impl Fn(u32) -> u64,
    ) -> AddressWriter {
        let (index, writer) = Index::new();
        let hints = Hints::new();
        let mut addresses = AddressWriter { writer, shadows: Vec::new(), next: 0 };
        for (tile, memory) in tiles {
            let indexed = memory.is_some_and(|memory| {
                hints.made(memory.1 - memory.0 + 1);
                addresses.index_it(&index, tile, memory, &last_of)
            });
            if !indexed {
                addresses.shadows.push(tile);
            }
        }
        self.shadows.store(addresses.shadows.len(), Ordering::Release);
        // Under the lock of the one writer, so they aren't there yet.
        let _ = self.hints.set(hints);
        let _ = self.index.set(index);
        addresses
    }
}

impl AddressWriter {
    /// Adds a mapping of memory. `end_of` answers where the memory of another one ends.
    pub(super) fn insert(
        &mut self,
        by: &ByAddress,
        tile: u32,
        (address, last): (u64, u64),
        last_of: impl Fn(u32) -> u64,
    ) {
        let (Some(index), Some(hints)) = (by.index(), by.hints()) else { return };
        hints.made(last - address + 1);
        if !self.index_it(index, tile, (address, last), last_of) {
            self.shadows.push(tile);
            by.shadows.store(self.shadows.len(), Ordering::Release);
        }
    }

    fn index_it(
        &mut self,
        index: &Index,
        tile: u32,
        (address, last): (u64, u64),
        last_of: impl Fn(u32) -> u64,
    ) -> bool {
        let free = index.floor(last).is_none_or(|(_, other)| last_of(other) < address);
        if free {
            index.insert(&mut self.writer, address, tile);
        }
        free
    }

    /// Takes a mapping out; `range_of` answers where another's memory is, if that is known yet.
    pub(super) fn remove(
        &mut self,
        by: &ByAddress,
        tile: u32,
        (address, last): (u64, u64),
        range_of: impl Fn(u32) -> Option<(u64, u64)>,
    ) {
        let (Some(index), Some(hints)) = (by.index(), by.hints()) else { return };
        hints.gone(tile, address, last);
        if index.get(address) != Some(tile) {
            return self.forget(by, tile);
        }
        index.remove(&mut self.writer, address);
        for _ in 0..MOVED.min(self.shadows.len()) {
            self.next = if self.next < self.shadows.len() { self.next } else { 0 };
            let shadow = self.shadows[self.next];
            let last_of = |tile| range_of(tile).unwrap_or_default().1;
            let indexed = range_of(shadow)
                .is_some_and(|memory| self.index_it(index, shadow, memory, last_of));
            if indexed {
                by.moves.fetch_add(1, Ordering::Release);
                self.shadows.swap_remove(self.next);
                by.shadows.store(self.shadows.len(), Ordering::Release);
            } else {
                self.next += 1;
            }
            if self.shadows.is_empty() {
                break;
            }
        }
    }

    /// Takes off the list what is on it.
    pub(super) fn forget(&mut self, by: &ByAddress, tile: u32) {
        self.shadows.retain(|shadow| *shadow != tile);
        by.shadows.store(self.shadows.len(), Ordering::Release);
    }

    /// What the index doesn't have.
    pub(super) fn shadows(&self) -> &[u32] {
        &self.shadows
    }
}
