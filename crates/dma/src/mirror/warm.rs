//! The place that was chosen and given back last: taken and given back again without the lock.
//!
//! Who gives a place back under the lock names its tile here. From then on mappings of that tile come
//! and go with a compare-and-swap each: while its place waits, whoever moves the slot on has it, and
//! while it is mapped, only who unmaps it lets it wait again. Whoever has the lock can name another
//! tile, or none, at any time: the compare-and-swap fails then, and what is left needs the lock.

use crate::sync::{AtomicU64, Ordering};

/// No tile.
const NONE: u64 = u32::MAX as u64;
/// The place waits, and is nobody's.
const KEPT: u64 = 1 << 32;
/// For those who have the lock alone.
const SHUT: u64 = 1 << 33;

/// At most one tile, and whether its place waits.
#[derive(Debug)]
pub(super) struct Warm {
    slot: AtomicU64,
}

/// Without the lock.
impl Warm {
    pub(super) fn new() -> Self {
        Self { slot: AtomicU64::new(NONE) }
    }

    /// Takes the place of this tile, if it waits.
    #[inline]
    pub(super) fn take(&self, tile: u32) -> bool {
        let tile = u64::from(tile);
        self.slot.load(Ordering::Relaxed) == tile | KEPT && self.exchange(tile | KEPT, tile)
    }

    /// Whether [`Warm::give`] can be expected to let the place of this tile wait.
    #[inline]
    pub(super) fn names(&self, tile: u32) -> bool {
        self.slot.load(Ordering::Relaxed) == u64::from(tile)
    }

    /// Lets the place of this tile wait, if the tile is still the one: for who has the tile.
    #[inline]
    pub(super) fn give(&self, tile: u32) -> bool {
        let tile = u64::from(tile);
        self.exchange(tile, tile | KEPT)
    }

    /// What was written before a place waits is seen by who takes it.
    #[inline]
    fn exchange(&self, from: u64, to: u64) -> bool {
        self.slot.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// With the lock.
impl Warm {
    /// The tile whose place waits.
    pub(super) fn kept(&self) -> Option<u32> {
        kept(self.slot.load(Ordering::Acquire))
    }

    /// As [`Warm::take`], also where only those who have the lock may.
    pub(super) fn take_locked(&self, tile: u32) -> bool {
        let to = u64::from(tile) | self.shut_bit();
        self.exchange(to | KEPT, to)
    }

    /// Lets the place of this tile wait, or none. The tile whose place waited until now is the
    /// caller's.
    pub(super) fn replace(&self, tile: Option<u32>) -> Option<u32> {
        let new = tile.map_or(NONE, |tile| u64::from(tile) | KEPT) | self.shut_bit();
        kept(self.slot.swap(new, Ordering::AcqRel))
    }

    /// Names this tile no longer, which is the caller's.
    pub(super) fn forget(&self, tile: u32) {
        let shut = self.shut_bit();
        if self.slot.load(Ordering::Relaxed) == u64::from(tile) | shut {
            // Nobody else changes what names a tile whose place doesn't wait.
            self.slot.store(NONE | shut, Ordering::Release);
        }
    }

    /// From now on only those who have the lock take and give. The tile whose place waits.
    pub(super) fn shut(&self) -> Option<u32> {
        kept(self.slot.fetch_or(SHUT, Ordering::AcqRel))
    }

    /// Changes under the lock alone.
    fn shut_bit(&self) -> u64 {
        self.slot.load(Ordering::Relaxed) & SHUT
    }
}

fn kept(slot: u64) -> Option<u32> {
    let tile = u32::try_from(slot & NONE).ok();
    tile.filter(|_| slot & KEPT != 0)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_once_and_waits_again() {
        let warm = Warm::new();
        assert!(!warm.take(7) && !warm.give(7) && !warm.names(7));
        assert_eq!((warm.replace(Some(7)), warm.kept()), (None, Some(7)));
        assert!(!warm.take(8) && !warm.names(7));
        assert!(warm.take(7) && !warm.take(7) && warm.names(7));
        assert_eq!(warm.kept(), None);
        assert!(warm.give(7) && !warm.give(7));
        assert_eq!((warm.replace(Some(8)), warm.replace(None)), (Some(7), Some(8)));
    }

    #[test]
    fn a_tile_that_is_named_no_longer_waits_for_nobody() {
        let warm = Warm::new();
        for another in [Some(8), None] {
            warm.replace(Some(7));
            assert!(warm.take_locked(7));
            warm.forget(8);
            assert!(warm.names(7));
            if another.is_none() {
                warm.forget(7);
            } else {
                warm.replace(another);
            }
            assert!(!warm.names(7) && !warm.give(7));
        }
    }

    #[test]
    fn what_is_shut_is_for_who_has_the_lock() {
        let warm = Warm::new();
        warm.replace(Some(7));
        assert_eq!(warm.shut(), Some(7));
        assert!(!warm.take(7) && warm.take_locked(7) && !warm.take_locked(7));
        assert!(!warm.names(7) && !warm.give(7));
        assert_eq!((warm.replace(Some(7)), warm.kept()), (None, Some(7)));
        assert!(!warm.take(7));
        assert_eq!((warm.replace(None), warm.shut()), (Some(7), None));
    }
}
