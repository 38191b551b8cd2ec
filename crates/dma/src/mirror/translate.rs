//! From memory to where devices see it.

use super::Mirror;
use super::block::{Block, Stage};
use crate::index::Index;

impl Mirror {
    /// Where devices see this memory: by a complete mapping that shows all of it. Without a lock, unless
    /// some memory is mapped more than once or nobody has asked before.
    pub(crate) fn translate(&self, address: u64, length: u64) -> Option<u64> {
        let last = address.checked_add(length.checked_sub(1)?)?;
        let hint = self.by_address.hints().map(|hints| hints.get(address));
        if let Some(block) = hint.and_then(|tile| self.blocks.get(tile))
            && let Some(iova) = block.translate_alone(address, last)
        {
            return Some(iova);
        }
        self.translate_by_index(address, last)
    }

    #[inline(never)]
    fn translate_by_index(&self, address: u64, last: u64) -> Option<u64> {
        let index = match self.by_address.index() {
            Some(index) => index,
            None => self.build_addresses()?,
        };
        let moves = self.by_address.moves();
        let seen = || {
            index.read(|index| {
                let (_, tile) = index.floor(address)?;
                let iova = self.blocks.get(tile)?.translate(address, last)?;
                Some((tile, iova))
            })
        };
        if let Some((tile, iova)) = seen() {
            // One that lives stays, so that those who ask write nothing that others read.
            let hints = self.by_address.hints()?;
            if !self.blocks.get(hints.get(address)).is_some_and(Block::is_mapped) {
                hints.put(address, tile);
            }
            return Some(iova);
        }
        let seen = || seen().map(|(_, iova)| iova);
        self.translate_shadow(address, last, moves, seen)
    }

    /// Looks at what the index doesn't have.
    #[cold]
    fn translate_shadow(
        &self,
        address: u64,
        last: u64,
        moves: usize,
        seen: impl Fn() -> Option<u64>,
    ) -> Option<u64> {
        if !self.by_address.has_more(moves) {
            return None;
        }
        let state = self.lock();
        let shadows = state.addresses.as_ref()?.shadows();
        let shadow = || shadows.iter().find_map(|tile| self.block(*tile).translate(address, last));
        let indexed = self.by_address.index()?.floor(address).map(|(_, tile)| tile);
        // Only how far each has come can change under the lock. Mixed by the golden ratio, in order.
        let stages = || {
            let words = indexed.iter().chain(shadows).map(|tile| self.block(*tile).word());
            words.fold(0_u64, |mixed, word| {
                mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(word.bits())
            })
        };
        // One can be completed after it was looked at, and another begin to go before it is. That
        // takes no lock: then they are looked at again.
        let mut before = stages();
        loop {
            let found = seen().or_else(shadow);
            let after = stages();
            if found.is_some() || after == before {
                return found;
            }
            before = after;
        }
    }

    #[cold]
    fn build_addresses(&self) -> Option<&Index> {
        let mut state = self.lock();
        if state.addresses.is_none() {
            // From here on nobody takes a place without the lock.
            let waits = self.warm.shut();
            let of_memory = |tile| {
                let (region, word) = self.block(tile).get();
                if word.stage() != Stage::Kept {
                    return region.memory().map(|memory| (tile, Some(memory)));
                }
                // Who has taken or is giving back what was chosen isn't done yet: what it shows is
                // found where the index has no answer, or goes under the lock.
                let is_nobodys = word.has_open_place() || waits == Some(tile);
                (!is_nobodys).then_some((tile, None))
            };
            let tiles = state.table.taken().filter_map(of_memory);
            let last_of = |tile| self.memory_of(tile).unwrap_or_default().1;
            state.addresses = Some(self.by_address.build(tiles, last_of));
        }
        self.by_address.index()
    }

    /// The memory that a mapping shows, first and last address; none while its place waits or is
    /// being taken.
    pub(super) fn memory_of(&self, tile: u32) -> Option<(u64, u64)> {
        let (region, word) = self.block(tile).get();
        region.memory().filter(|_| word.stage() != Stage::Kept)
    }
}
