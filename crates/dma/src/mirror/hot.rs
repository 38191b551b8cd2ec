//! Where a mapping is looked for before the index: mostly what is unmapped was mapped not long ago.

use crate::memory::page_bytes;
use crate::sync::{AtomicU32, Ordering};

const SLOTS: usize = if cfg!(loom) { 2 } else { 4096 };

/// The tile of the mapping that was made last, for each group of addresses. It may be any other's by
/// now: whoever takes it from here looks whether it is the one.
#[derive(Debug)]
pub(super) struct Hot {
    /// Of a page: no two mappings begin in one.
    shift: u32,
    slots: Box<[AtomicU32; SLOTS]>,
}

impl Hot {
    pub(super) fn new() -> Self {
        let shift = page_bytes().trailing_zeros();
        Self { shift, slots: Box::new(std::array::from_fn(|_| AtomicU32::new(u32::MAX))) }
    }

    #[inline]
    fn slot(&self, iova: u64) -> &AtomicU32 {
        let page = iova >> (self.shift % u64::BITS);
        &self.slots[usize::try_from(page).unwrap_or(0) % SLOTS]
    }

    #[inline]
    pub(super) fn get(&self, iova: u64) -> u32 {
        self.slot(iova).load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn put(&self, iova: u64, tile: u32) {
        self.slot(iova).store(tile, Ordering::Relaxed);
    }
}
