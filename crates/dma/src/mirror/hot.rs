//! Where a mapping is looked for before the index: mostly what is unmapped was mapped not long ago.

use crate::sync::{AtomicU32, Ordering};

const SLOTS: usize = if cfg!(loom) { 2 } else { 4096 };

/// The tile of the mapping that was made last, for each group of addresses. It may be any other's by
/// now: whoever takes it from here looks whether it is the one.
#[derive(Debug)]
pub(super) struct Hot {
    slots: Box<[AtomicU32; SLOTS]>,
}

#[inline]
fn slot_of(iova: u64) -> usize {
    usize::try_from(iova >> 12).unwrap_or(0) % SLOTS
}

impl Hot {
    pub(super) fn new() -> Self {
        Self { slots: Box::new(std::array::from_fn(|_| AtomicU32::new(u32::MAX))) }
    }

    #[inline]
    pub(super) fn get(&self, iova: u64) -> u32 {
        self.slots[slot_of(iova)].load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn put(&self, iova: u64, tile: u32) {
        self.slots[slot_of(iova)].store(tile, Ordering::Relaxed);
    }
}
