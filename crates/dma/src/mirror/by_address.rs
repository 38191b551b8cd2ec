//! Finding mappings by the address of their memory, for those who ask.
//!
//! Nothing is kept until somebody asks for the first time. The same memory can be mapped twice, which
//! an ordered index can't tell apart: all but one of those stand on a list that is only looked at
//! when the index has no answer.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::index::{Index, Writer};

/// How many of the list are looked at for a place in the index that has become free.
const MOVED: usize = 8;

/// What readers need.
#[derive(Debug, Default)]
pub(super) struct ByAddress {
    index: OnceLock<Index>,
    shadows: AtomicUsize,
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

    /// Whether the index doesn't have all.
    pub(super) fn has_shadows(&self) -> bool {
        self.shadows.load(Ordering::Acquire) > 0
    }

    /// Begins to keep it.
    pub(super) fn build(&self) -> AddressWriter {
        let (index, writer) = Index::new();
        // Under the lock of the one writer, so it isn't there yet.
        let _ = self.index.set(index);
        AddressWriter { writer, shadows: Vec::new(), next: 0 }
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
        let Some(index) = by.index() else { return };
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

    /// Takes a mapping out; `range_of` answers where another's memory is.
    pub(super) fn remove(
        &mut self,
        by: &ByAddress,
        tile: u32,
        address: u64,
        range_of: impl Fn(u32) -> (u64, u64),
    ) {
        let Some(index) = by.index() else { return };
        if index.get(address) != Some(tile) {
            self.shadows.retain(|shadow| *shadow != tile);
            by.shadows.store(self.shadows.len(), Ordering::Release);
            return;
        }
        index.remove(&mut self.writer, address);
        for _ in 0..MOVED.min(self.shadows.len()) {
            self.next = if self.next < self.shadows.len() { self.next } else { 0 };
            let shadow = self.shadows[self.next];
            if self.index_it(index, shadow, range_of(shadow), |tile| range_of(tile).1) {
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

    /// What the index doesn't have.
    pub(super) fn shadows(&self) -> &[u32] {
        &self.shadows
    }
}
