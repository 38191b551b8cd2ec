//! Free ranges by size: which is large enough is found in constant time.

use super::{NONE, Tile};

/// Second-level bins, as a power of two: sizes in one bin differ by a 32nd at most.
const STEPS: u32 = 5;
const BINS: usize = 1 << STEPS;
/// Powers of two of a size in units, those below [`BINS`] taken together.
const LEVELS: usize = 60;

/// Lists of free tiles, two levels of bins as in TLSF: a bit for each that isn't empty.
#[derive(Debug)]
pub(super) struct Bins {
    levels: u64,
    bins: [u32; LEVELS],
    heads: [[u32; BINS]; LEVELS],
}

/// Which bin: its power of two, and its step there.
type Bin = (usize, usize);

/// The bin of a size in units. All in it have at least its smallest size.
fn bin_of(size: u64) -> Bin {
    let index = |n: u64| usize::try_from(n).unwrap_or(0);
    if size < 1 << STEPS {
        return (0, index(size));
    }
    let log = size.ilog2();
    let step = (size >> (log - STEPS)) & ((1 << STEPS) - 1);
    (index(u64::from(log - STEPS + 1)), index(step))
}

/// The first bin of which everything has at least this size.
fn bin_above(size: u64) -> Bin {
    if size < 1 << STEPS {
        return bin_of(size);
    }
    let round = (1 << (size.ilog2() - STEPS)) - 1;
    bin_of(size.saturating_add(round))
}

impl Bins {
    pub(super) fn new() -> Self {
        Self { levels: 0, bins: [0; LEVELS], heads: [[NONE; BINS]; LEVELS] }
    }

    /// Adds a free tile of a size in units.
    pub(super) fn add(&mut self, tiles: &mut [Tile], tile: u32, size: u64) {
        let (level, step) = bin_of(size);
        let head = std::mem::replace(&mut self.heads[level][step], tile);
        if let Some(next) = at_mut(tiles, head) {
            next.bin_before = tile;
        }
        if let Some(tile) = at_mut(tiles, tile) {
            (tile.bin_before, tile.bin_after) = (NONE, head);
        }
        self.levels |= 1 << level;
        self.bins[level] |= 1 << step;
    }

    /// Takes a free tile of a size in units out again.
    pub(super) fn remove(&mut self, tiles: &mut [Tile], tile: u32, size: u64) {
        let (level, step) = bin_of(size);
        let Some(Tile { bin_before, bin_after, .. }) = at_mut(tiles, tile).copied() else { return };
        if let Some(next) = at_mut(tiles, bin_after) {
            next.bin_before = bin_before;
        }
        if let Some(before) = at_mut(tiles, bin_before) {
            before.bin_after = bin_after;
            return;
        }
        self.heads[level][step] = bin_after;
        if bin_after == NONE {
            self.bins[level] &= !(1 << step);
            if self.bins[level] == 0 {
                self.levels &= !(1 << level);
            }
        }
    }

    /// A tile of at least this size, of the smallest bin that has nothing smaller.
    pub(super) fn at_least(&self, size: u64) -> Option<u32> {
        let bin = self.filled_from(bin_above(size))?;
        Some(self.head(bin))
    }

    /// The tiles of about this size, also smaller ones.
    pub(super) fn alike<'a>(
        &'a self,
        tiles: &'a [Tile],
        size: u64,
    ) -> impl Iterator<Item = u32> + 'a {
        self.list(tiles, bin_of(size))
    }

    /// The tiles that surely have at least this size, smaller bins first.
    pub(super) fn enough<'a>(
        &'a self,
        tiles: &'a [Tile],
        size: u64,
    ) -> impl Iterator<Item = u32> + 'a {
        self.lists(tiles, bin_above(size))
    }

    /// The tiles that can have at least this size, smaller bins first: also those of the bin in
    /// which some have it and some haven't.
    pub(super) fn perhaps<'a>(
        &'a self,
        tiles: &'a [Tile],
        size: u64,
    ) -> impl Iterator<Item = u32> + 'a {
        self.lists(tiles, bin_of(size))
    }

    /// The tiles of the bin with the largest ones.
    pub(super) fn largest<'a>(&'a self, tiles: &'a [Tile]) -> impl Iterator<Item = u32> + 'a {
        let level = self.levels.checked_ilog2().map(|level| usize::try_from(level).unwrap_or(0));
        let bin = level.and_then(|level| {
            let step = self.bins[level].checked_ilog2()?;
            Some((level, usize::try_from(step).unwrap_or(0)))
        });
        bin.into_iter().flat_map(|bin| self.list(tiles, bin))
    }

    fn head(&self, (level, step): Bin) -> u32 {
        self.heads[level][step]
    }

    fn lists<'a>(&'a self, tiles: &'a [Tile], from: Bin) -> impl Iterator<Item = u32> + 'a {
        let bins = std::iter::successors(self.filled_from(from), |bin| self.next(*bin));
        bins.flat_map(|bin| self.list(tiles, bin))
    }

    fn list<'a>(&self, tiles: &'a [Tile], bin: Bin) -> impl Iterator<Item = u32> + 'a {
        let known = |tile: u32| (tile != NONE).then_some(tile);
        std::iter::successors(known(self.head(bin)), move |tile| {
            known(tiles.get(usize::try_from(*tile).ok()?)?.bin_after)
        })
    }

    fn next(&self, (level, step): Bin) -> Option<Bin> {
        if step + 1 < BINS {
            return self.filled_from((level, step + 1));
        }
        self.filled_from((level + 1, 0))
    }

    /// The first bin from this one on that isn't empty.
    fn filled_from(&self, (level, step): Bin) -> Option<Bin> {
        let lowest = |bits: u32| usize::try_from(bits).unwrap_or(0);
        let steps = self.bins.get(level)? & (u32::MAX << step);
        if steps != 0 {
            return Some((level, lowest(steps.trailing_zeros())));
        }
        let levels = self.levels & u64::MAX.checked_shl(u32::try_from(level + 1).ok()?)?;
        (levels != 0).then(|| {
            let level = lowest(levels.trailing_zeros());
            (level, lowest(self.bins[level].trailing_zeros()))
        })
    }
}

fn at_mut(tiles: &mut [Tile], tile: u32) -> Option<&mut Tile> {
    tiles.get_mut(usize::try_from(tile).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bin_has_its_sizes(size in 1..=u64::MAX / 2, other in 1..=u64::MAX / 2) {
            let (size, other) = (size >> (other % 60), other >> (size % 60));
            prop_assert_eq!(bin_of(size) <= bin_of(other), size <= other || bin_of(size) == bin_of(other));
            prop_assert!(bin_of(size) <= bin_above(size));
            if bin_of(other) >= bin_above(size) {
                prop_assert!(other >= size);
            }
        }
    }

    #[test]
    fn the_smallest_that_surely_fits_is_found() {
        let mut tiles = vec![Tile::default(); 8];
        let mut bins = Bins::new();
        for (tile, size) in [(0, 1), (1, 31), (2, 1000), (3, 1001), (4, 1 << 40), (5, 1)] {
            bins.add(&mut tiles, tile, size);
        }
        assert_eq!(bins.at_least(1), Some(5));
        bins.remove(&mut tiles, 5, 1);
        assert_eq!(bins.at_least(1), Some(0));
        assert_eq!(bins.at_least(2), Some(1));
        assert_eq!(bins.at_least(32), Some(3));
        // Both of about 1000 are in one bin, so that either may be too small for 1000.
        assert_eq!(bins.at_least(1000), Some(4));
        assert_eq!(bins.perhaps(&tiles, 1000).collect::<Vec<_>>(), [3, 2, 4]);
        bins.remove(&mut tiles, 4, 1 << 40);
        assert_eq!(bins.at_least(1000), None);
        assert_eq!(bins.largest(&tiles).collect::<Vec<_>>(), [3, 2]);
        for (tile, size) in [(3, 1001), (2, 1000), (1, 31), (0, 1)] {
            bins.remove(&mut tiles, tile, size);
        }
        assert_eq!((bins.at_least(1), bins.levels), (None, 0));
    }
}
