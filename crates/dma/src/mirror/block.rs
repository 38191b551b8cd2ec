//! What readers see of one mapping.

use berth_uapi::DmaPerms;

use super::{Region, Source};
use crate::sync::{AtomicU64, Ordering, fence, spin_loop};

/// How far a mapping has come; no lock is held over the ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// None is there.
    Empty,
    /// None is there, but an index names it still, and its place waits for the next one.
    Kept,
    Mapping,
    Mapped,
    /// Mapped, and it stays until it has been copied.
    Copying,
    Unmapping,
}

/// A mapping's generation, stage, access, kind of source, of place and of memory in one word, so that a
/// change of stage is one compare-and-swap that fails for another mapping of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

const STAGE: u64 = 0b111;
const READ: u64 = 1 << 3;
const WRITE: u64 = 1 << 4;
const FILE: u64 = 1 << 5;
const OPEN: u64 = 1 << 6;
const HOLDS: u64 = 1 << 7;
const GENERATION: u32 = 8;

impl Word {
    /// Of the next mapping of the same number.
    #[inline]
    pub(super) fn next(self, perms: DmaPerms, source: Source) -> Self {
        let mut word = ((self.0 >> GENERATION) + 1) << GENERATION;
        word |= if perms.read { READ } else { 0 };
        word |= if perms.write { WRITE } else { 0 };
        word |= if matches!(source, Source::File { .. }) { FILE } else { 0 };
        Self(word).at(Stage::Mapping)
    }

    /// The same, of a mapping whose place was left open.
    pub(super) fn with_open_place(self) -> Self {
        Self(self.0 | OPEN)
    }

    /// Whether the mapping's place was left open.
    pub(super) fn has_open_place(self) -> bool {
        self.0 & OPEN != 0
    }

    /// The same, of a mapping whose memory is kept where it is.
    pub(super) fn with_memory(self) -> Self {
        Self(self.0 | HOLDS)
    }

    /// All of it: another one as soon as anything has changed.
    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// Whether memory is kept for the mapping.
    pub(super) fn holds_memory(self) -> bool {
        self.0 & HOLDS != 0
    }

    #[inline]
    pub(super) fn stage(self) -> Stage {
        match self.0 & STAGE {
            0 => Stage::Empty,
            1 => Stage::Mapping,
            2 => Stage::Mapped,
            3 => Stage::Copying,
            4 => Stage::Unmapping,
            _ => Stage::Kept,
        }
    }

    /// The same mapping at another stage.
    #[inline]
    pub(super) fn at(self, stage: Stage) -> Self {
        let stage = match stage {
            Stage::Empty => 0,
            Stage::Mapping => 1,
            Stage::Mapped => 2,
            Stage::Copying => 3,
            Stage::Unmapping => 4,
            Stage::Kept => 5,
        };
        Self((self.0 & !STAGE) | stage)
    }

    /// Whether devices can use it.
    pub(super) fn is_mapped(self) -> bool {
        matches!(self.stage(), Stage::Mapped | Stage::Copying)
    }

    fn perms(self) -> DmaPerms {
        DmaPerms { read: self.0 & READ != 0, write: self.0 & WRITE != 0 }
    }
}

/// A mapping. While an index names it only the word changes, and the source where its place is used
/// again.
#[derive(Debug, Default)]
pub(super) struct Block {
    word: AtomicU64,
    iova: AtomicU64,
    length: AtomicU64,
    source: AtomicU64,
}

impl Block {
    /// Writes all of it, before an index names it.
    #[inline]
    pub(super) fn set(&self, region: &Region, word: Word) {
        // Who sees where it is now sees that the mapping before is gone, too.
        fence(Ordering::Release);
        self.iova.store(region.iova, Ordering::Relaxed);
        self.length.store(region.length, Ordering::Relaxed);
        self.set_again(region.source, word);
    }

    /// Makes it another mapping of the same addresses, also while an index names it.
    #[inline]
    pub(super) fn set_again(&self, source: Source, word: Word) {
        // As there.
        fence(Ordering::Release);
        let (Source::Memory { address: source } | Source::File { offset: source }) = source;
        self.source.store(source, Ordering::Relaxed);
        self.word.store(word.0, Ordering::Release);
    }

    /// Whether it is, or was, exactly here.
    #[inline]
    pub(super) fn is_at(&self, iova: u64, length: u64) -> bool {
        self.iova.load(Ordering::Relaxed) == iova && self.length.load(Ordering::Relaxed) == length
    }

    /// Where it is, first address and length: for who alone can change it.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.iova.load(Ordering::Relaxed), self.length.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// Whether devices can use it.
    pub(super) fn is_mapped(&self) -> bool {
        self.word().is_mapped()
    }

    /// The mapping and its word. Where it is, is right only as far as an index named it all the while;
    /// what it shows is that word's, unless its place waits.
    #[inline]
    pub(super) fn get(&self) -> (Region, Word) {
        loop {
            let word = self.word();
            let source = self.source.load(Ordering::Relaxed);
            let source = if word.0 & FILE == 0 {
                Source::Memory { address: source }
            } else {
                Source::File { offset: source }
            };
            let (iova, length) = self.place();
            fence(Ordering::Acquire);
            // A word is of one mapping, and of one stage of it.
            if self.word.load(Ordering::Relaxed) == word.0 {
                return (Region { iova, length, perms: word.perms(), source }, word);
            }
            spin_loop();
        }
    }

    /// Takes exactly this mapping to unmap it, if it is complete; the word that it has then.
    ///
    /// Also while no index names it: its fields are those of the word, or the word has moved on.
    #[inline]
    pub(super) fn begin_unmap(&self, iova: u64, length: u64) -> Option<Word> {
        let word = self.word();
        let this = word.stage() == Stage::Mapped && self.is_at(iova, length);
        let leaving = word.at(Stage::Unmapping);
        (this && self.exchange(word, leaving)).then_some(leaving)
    }

    /// Where devices see this memory, if the mapping is complete and shows all of it. As
    /// [`Block::get`], which this does without what isn't needed.
    pub(super) fn translate(&self, address: u64, last: u64) -> Option<u64> {
        let word = self.word();
        let offset = address.wrapping_sub(self.source.load(Ordering::Relaxed));
        let end = offset.checked_add(last - address)?;
        let shows = end < self.length.load(Ordering::Relaxed);
        (shows && word.is_mapped() && word.0 & FILE == 0)
            .then(|| self.iova.load(Ordering::Relaxed).wrapping_add(offset))
    }

    /// As [`Block::translate`], also while no index names it.
    pub(super) fn translate_alone(&self, address: u64, last: u64) -> Option<u64> {
        let before = self.word();
        let seen = self.translate(address, last)?;
        fence(Ordering::Acquire);
        // As above.
        (self.word.load(Ordering::Relaxed) == before.0).then_some(seen)
    }

    /// Moves on a mapping of which this thread alone decides.
    #[inline]
    pub(super) fn store(&self, word: Word) {
        self.word.store(word.0, Ordering::Release);
    }

    /// Moves a mapping on, unless another thread was faster.
    #[inline]
    pub(super) fn exchange(&self, from: Word, to: Word) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        self.word.compare_exchange(from.0, to.0, success, failure).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_keeps_what_it_was_made_of() {
        let block = Block::default();
        assert_eq!(block.word().stage(), Stage::Empty);
        for (perms, source) in [
            (DmaPerms::READ, Source::File { offset: 7 }),
            (DmaPerms::WRITE, Source::Memory { address: u64::MAX }),
            (DmaPerms::READ_WRITE, Source::Memory { address: 0 }),
        ] {
            let region = Region { iova: 0x1000, length: 0x2000, perms, source };
            let before = Word((u64::MAX - 1) << GENERATION);
            let first = before.next(perms, source).with_open_place().with_memory();
            assert!(first.has_open_place() && first.holds_memory());
            assert!(!before.has_open_place() && !before.holds_memory());
            block.set(&region, first);
            block.set_again(source, first);
            assert!(block.is_at(0x1000, 0x2000) && !block.is_at(0x1000, 0x1000));
            for stage in [Stage::Mapped, Stage::Copying, Stage::Unmapping] {
                assert!(block.exchange(first.at(first.stage()), first.at(stage)));
                assert!(!block.exchange(first.at(Stage::Mapping), first), "it was moved on");
                assert_eq!((block.get().0, block.word().stage()), (region, stage));
                block.store(first);
            }
        }
    }
}
