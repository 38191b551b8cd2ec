//! Which mapping shows an address, as far as somebody asked before: where memory is looked for without the
//! index.

use crate::sync::{AtomicU32, Ordering};

const BITS: u32 = if cfg!(loom) { 1 } else { 12 };
const SLOTS: usize = 1 << BITS;
/// No tile.
const NONE: u32 = u32::MAX;
/// Slots of a mapping that are looked through one by one when it goes.
const FEW: u64 = 64;

/// A tile for each group of addresses. It may be any by now: whoever takes one from here looks whether
/// it shows what was asked for.
///
/// The addresses of a group are as many as the smallest mapping has, so that mappings of one size have
/// slots of their own.
#[derive(Debug)]
pub(super) struct Hints {
    shift: AtomicU32,
    slots: Box<[AtomicU32; SLOTS]>,
}

impl Hints {
    pub(super) fn new() -> Self {
        let slots = Box::new(std::array::from_fn(|_| AtomicU32::new(NONE)));
        Self { shift: AtomicU32::new(u64::BITS - 1), slots }
    }

    #[inline]
    fn slot(&self, group: u64) -> &AtomicU32 {
        // By the golden ratio: groups one behind the other fall far apart, and so do those at any
        // other distance.
        let mixed = group.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BITS);
        &self.slots[usize::try_from(mixed).unwrap_or(0) % SLOTS]
    }

    #[inline]
    fn group(&self, address: u64) -> u64 {
        // Always below the number of bits; the remainder says so.
        address >> (self.shift.load(Ordering::Relaxed) % u64::BITS)
    }

    #[inline]
    pub(super) fn get(&self, address: u64) -> u32 {
        self.slot(self.group(address)).load(Ordering::Relaxed)
    }

    pub(super) fn put(&self, address: u64, tile: u32) {
        self.slot(self.group(address)).store(tile, Ordering::Relaxed);
    }

    /// There is a mapping with so many bytes of memory. Only under the lock.
    pub(super) fn made(&self, length: u64) {
        let shift = length.max(1).ilog2();
        if shift < self.shift.load(Ordering::Relaxed) {
            self.shift.store(shift, Ordering::Relaxed);
            self.clear();
        }
    }

    /// A mapping of this memory goes. Only under the lock.
    pub(super) fn gone(&self, tile: u32, address: u64, last: u64) {
        let (first, last) = (self.group(address), self.group(last));
        if last - first > FEW {
            return self.clear();
        }
        for group in first..=last {
            let slot = self.slot(group);
            if slot.load(Ordering::Relaxed) == tile {
                slot.store(NONE, Ordering::Relaxed);
            }
        }
    }

    fn clear(&self) {
        self.slots.iter().for_each(|slot| slot.store(NONE, Ordering::Relaxed));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn mappings_of_one_size_have_slots_of_their_own() {
        for (length, distance) in [(PAGE, PAGE), (PAGE, 2 * PAGE), (2 << 20, 2 << 20)] {
            let hints = Hints::new();
            hints.made(length);
            let address = |tile: u32| (0x7f00_0000_0000) + u64::from(tile) * distance;
            (0..512).for_each(|tile| hints.put(address(tile), tile));
            let found = (0..512).filter(|tile| hints.get(address(*tile) + length / 2) == *tile);
            assert_eq!(found.count(), 512, "{length:#x} bytes every {distance:#x}");
        }
    }

    #[test]
    fn what_goes_is_named_by_no_slot() {
        let hints = Hints::new();
        hints.made(PAGE);
        (0..1000).for_each(|page| hints.put(page * PAGE, u32::from(page >= 8)));
        hints.gone(0, 0, 8 * PAGE - 1);
        assert!((0..8).all(|page| hints.get(page * PAGE) == NONE));
        assert!((8..1000).any(|page| hints.get(page * PAGE) == 1));
        hints.gone(1, 8 * PAGE, 1000 * PAGE - 1);
        assert!((0..1000).all(|page| hints.get(page * PAGE) == NONE));
        hints.put(0, 7);
        hints.made(2 * PAGE);
        assert_eq!(hints.get(0), 7, "larger ones change nothing");
        hints.made(PAGE / 2);
        assert_eq!(hints.get(0), NONE);
    }
}
