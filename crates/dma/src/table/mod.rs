//! Which addresses are taken, free or not permitted: tiles that cover the whole address space.
//!
//! Tiles know their neighbours, so that one that is given back grows together with free ones beside
//! it at once; free ones are also listed by size. Nothing is allocated once there have been as many
//! tiles before.

mod bins;

use berth_uapi::IovaRange;

use self::bins::Bins;
use crate::alloc::{LARGE_PAGES, fit};

/// No tile.
const NONE: u32 = u32::MAX;

/// Free tiles that are tried for an alignment before a smaller one will do.
const TRIES: usize = 32;

/// Free tiles of which the lowest is taken.
const CLOSE: usize = 8;
/// How many times the smallest free tile that is large enough another one may have that is as good.
const LARGER: u64 = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    /// No part of the address space; for use.
    #[default]
    Spare,
    Free,
    /// Not to be given out: not permitted, address 0, or another user's.
    Hole,
    Taken,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tile {
    start: u64,
    last: u64,
    kind: Kind,
    before: u32,
    after: u32,
    bin_before: u32,
    bin_after: u32,
}

impl Tile {
    fn range(&self) -> IovaRange {
        IovaRange { start: self.start, last: self.last }
    }
}

/// Why a range can't be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// This tile has some of it.
    Taken(u32),
    /// Not all of it is free to give out.
    NotFree,
}

/// An address space of inclusive ranges, all multiples of one unit.
#[derive(Debug)]
pub(crate) struct Table {
    unit: u64,
    tiles: Vec<Tile>,
    /// The first of those for use, linked by `after`.
    spare: u32,
    first: u32,
    bins: Box<Bins>,
    permitted: Vec<IovaRange>,
}

impl Table {
    /// All of the address space, of which nothing is permitted yet.
    pub(crate) fn new(unit: u64) -> Self {
        let bins = Box::new(Bins::new());
        let mut table =
            Self { unit, tiles: Vec::new(), spare: NONE, first: NONE, bins, permitted: Vec::new() };
        table.insert_after(NONE, 0, u64::MAX, Kind::Hole);
        table
    }

    /// What may be given out, in ascending order.
    #[cfg(test)]
    pub(crate) fn permitted(&self) -> &[IovaRange] {
        &self.permitted
    }

    /// Replaces what may be given out. What is taken stays so.
    pub(crate) fn permit(&mut self, ranges: Vec<IovaRange>) {
        self.permitted = ranges;
        let mut at = self.first;
        while at != NONE {
            if self.tile(at).kind == Kind::Taken {
                at = self.tile(at).after;
                continue;
            }
            let (before, start) = (self.tile(at).before, self.tile(at).start);
            let mut last = start;
            while at != NONE && self.tile(at).kind != Kind::Taken {
                last = self.tile(at).last;
                at = self.remove(at);
            }
            self.fill(before, start, last);
        }
    }

    /// Takes free addresses for `length` bytes: where `memory` lies in a large page, they lie in
    /// one just so. The tile, or the length of the largest free one.
    pub(crate) fn take_any(&mut self, length: u64, memory: u64) -> Result<u32, u64> {
        let large = LARGE_PAGES.into_iter().filter(|size| *size <= length && *size > self.unit);
        for alignment in large {
            if let Some((tile, iova)) = self.aligned(length, alignment, memory % alignment) {
                return Ok(self.carve(tile, iova, length));
            }
        }
        match self.anywhere(length) {
            Some(tile) => Ok(self.carve(tile, self.tile(tile).start, length)),
            None => Err(self.largest()),
        }
    }

    /// Takes free addresses for `length` bytes, `offset` more than a multiple of `alignment`. The
    /// tile, or the length of the largest free one.
    pub(crate) fn take_aligned(
        &mut self,
        length: u64,
        alignment: u64,
        offset: u64,
    ) -> Result<u32, u64> {
        if alignment == self.unit {
            return self.take_any(length, 0);
        }
        match self.aligned(length, alignment, offset) {
            Some((tile, iova)) => Ok(self.carve(tile, iova, length)),
            None => Err(self.largest()),
        }
    }

    /// Takes these addresses. `near` is a taken tile at or below them; without one the search
    /// begins at the bottom. With `force` also what isn't permitted, if nothing is there.
    pub(crate) fn take(
        &mut self,
        near: Option<u32>,
        iova: u64,
        length: u64,
        force: bool,
    ) -> Result<u32, Refused> {
        let last = iova.saturating_add(length.saturating_sub(1));
        let mut tile = near.unwrap_or(self.first);
        while self.tile(tile).last < iova {
            tile = self.tile(tile).after;
        }
        let found = self.tile(tile);
        if found.kind == Kind::Free && found.last >= last {
            return Ok(self.carve(tile, iova, length));
        }
        let mut end = tile;
        loop {
            let found = self.tile(end);
            if found.kind == Kind::Taken {
                return Err(Refused::Taken(end));
            }
            if found.last >= last {
                break;
            }
            end = found.after;
        }
        if !force {
            return Err(Refused::NotFree);
        }
        Ok(self.take_run(tile, end, iova, last))
    }

    /// Whether these addresses would be given out if they were free.
    #[inline]
    pub(crate) fn gives_out(&self, iova: u64, length: u64) -> bool {
        let range = IovaRange { start: iova, last: iova.saturating_add(length - 1) };
        range.start >= self.unit && self.permitting(range).is_some()
    }

    /// Gives a taken tile back.
    pub(crate) fn release(&mut self, tile: u32) {
        let range = self.tile(tile).range();
        if range.start >= self.unit && self.permitting(range).is_some() {
            self.tile_mut(tile).kind = Kind::Free;
            self.settle(tile);
        } else {
            let before = self.tile(tile).before;
            self.remove(tile);
            self.fill(before, range.start, range.last);
        }
    }

    /// Gives taken tiles back that lie one behind the other with nothing in between: as one, so that
    /// they are listed once. They are linked as they lie, and so become spare ones.
    pub(crate) fn release_run(&mut self, run: impl IntoIterator<Item = u32>) {
        let mut run = run.into_iter();
        let Some(first) = run.next() else { return };
        let mut end = first;
        for tile in run {
            self.tile_mut(tile).kind = Kind::Spare;
            end = tile;
        }
        if end != first {
            let Tile { last, after, .. } = *self.tile(end);
            self.tile_mut(end).after = self.spare;
            self.spare = self.tile(first).after;
            if after != NONE {
                self.tile_mut(after).before = first;
            }
            let whole = self.tile_mut(first);
            (whole.last, whole.after) = (last, after);
        }
        self.release(first);
    }

    /// Gives a taken tile up as another user's, with up to `more` free bytes behind it.
    pub(crate) fn surrender(&mut self, tile: u32, more: u64) {
        let after = self.tile(tile).after;
        if after != NONE && self.tile(after).kind == Kind::Free {
            let next = self.tile(after).range();
            let length = more.min(next.last - next.start) & !(self.unit - 1);
            if length > 0 {
                let behind = self.carve(after, next.start, length);
                self.tile_mut(behind).kind = Kind::Hole;
            }
        }
        self.tile_mut(tile).kind = Kind::Hole;
        self.settle(tile);
    }

    /// The taken tiles, ascending.
    pub(crate) fn taken(&self) -> impl Iterator<Item = u32> + '_ {
        let known = |tile: u32| (tile != NONE).then_some(tile);
        let all =
            std::iter::successors(known(self.first), move |tile| known(self.tile(*tile).after));
        all.filter(|tile| self.tile(*tile).kind == Kind::Taken)
    }

    /// Where a tile is.
    pub(crate) fn range(&self, tile: u32) -> IovaRange {
        self.tile(tile).range()
    }

    /// How many tiles have been needed at once; numbers are below it.
    pub(crate) fn numbers(&self) -> u32 {
        u32::try_from(self.tiles.len()).unwrap_or(NONE)
    }

    /// The length of the largest free range.
    pub(crate) fn largest(&self) -> u64 {
        let lengths = self.bins.largest(&self.tiles).map(|tile| {
            let range = self.tile(tile).range();
            (range.last - range.start).saturating_add(1)
        });
        lengths.max().unwrap_or(0)
    }

    fn tile(&self, tile: u32) -> &Tile {
        &self.tiles[usize::try_from(tile).unwrap_or(usize::MAX)]
    }

    fn tile_mut(&mut self, tile: u32) -> &mut Tile {
        &mut self.tiles[usize::try_from(tile).unwrap_or(usize::MAX)]
    }

    /// A range's size in units: that of the whole address space in bytes would not fit.
    fn units(&self, range: IovaRange) -> u64 {
        // A shift: units are powers of two.
        ((range.last - range.start) >> self.unit.trailing_zeros()) + 1
    }

    /// The permitted range that has all of this one.
    #[inline]
    fn permitting(&self, range: IovaRange) -> Option<IovaRange> {
        let at = self.permitted.partition_point(|permitted| permitted.start <= range.start);
        let found = *self.permitted.get(at.checked_sub(1)?)?;
        (found.last >= range.last).then_some(found)
    }

    fn anywhere(&self, length: u64) -> Option<u32> {
        let units = length.div_ceil(self.unit);
        let size = |tile: &u32| self.units(self.tile(*tile).range());
        let fits = |tile: &u32| size(tile) >= units;
        // The lowest of some: what is taken stays close together.
        let lowest = |tiles: &mut dyn Iterator<Item = u32>| {
            tiles.take(CLOSE).filter(fits).min_by_key(|tile| self.tile(*tile).start)
        };
        // Not always the smallest of those that are larger, which leaves a piece for which there is
        // less use; nor a much larger one, which large pages may fit in.
        let larger = || {
            let mut tiles = self.bins.enough(&self.tiles, units).peekable();
            let most = tiles.peek().map_or(0, size).saturating_mul(LARGER);
            lowest(&mut tiles.take_while(|tile| size(tile) <= most))
        };
        lowest(&mut self.bins.alike(&self.tiles, units))
            .or_else(larger)
            .or_else(|| self.bins.perhaps(&self.tiles, units).find(fits))
    }

    /// A free tile, and the lowest address in it that is `offset` more than a multiple of
    /// `alignment`.
    fn aligned(&self, length: u64, alignment: u64, offset: u64) -> Option<(u32, u64)> {
        let fits = |tile: u32| {
            fit(self.tile(tile).range(), length, alignment, offset).map(|iova| (tile, iova))
        };
        let units = length.div_ceil(self.unit);
        let mut close = self.bins.perhaps(&self.tiles, units).take(TRIES);
        close.find_map(fits).or_else(|| {
            let padded = units.saturating_add(alignment / self.unit - 1);
            self.bins.at_least(padded).and_then(fits)
        })
    }

    /// Makes part of a tile a taken one, and answers its number; the rest stays what it is.
    fn carve(&mut self, tile: u32, iova: u64, length: u64) -> u32 {
        let Tile { start, last, kind, .. } = *self.tile(tile);
        self.unlist(tile);
        let end = iova + (length - 1);
        *self.tile_mut(tile) =
            Tile { start: iova, last: end, kind: Kind::Taken, ..*self.tile(tile) };
        if start < iova {
            let before = self.tile(tile).before;
            self.insert_after(before, start, iova - 1, kind);
        }
        if end < last {
            self.insert_after(tile, end + 1, last, kind);
        }
        tile
    }

    /// Takes from `iova` to `last` out of a run of tiles that aren't taken.
    fn take_run(&mut self, first: u32, end: u32, iova: u64, last: u64) -> u32 {
        let (low, high) = (*self.tile(first), *self.tile(end));
        let mut before = low.before;
        let mut at = first;
        loop {
            let ends = at == end;
            at = self.remove(at);
            if ends {
                break;
            }
        }
        if low.start < iova {
            before = self.insert_after(before, low.start, iova - 1, low.kind);
        }
        let taken = self.insert_after(before, iova, last, Kind::Taken);
        if last < high.last {
            self.insert_after(taken, last + 1, high.last, high.kind);
        }
        taken
    }

    /// Puts free tiles where it is permitted, and holes elsewhere. There must be no tile yet.
    fn fill(&mut self, mut before: u32, start: u64, last: u64) {
        // `None` once the range is used up, which may be at the very last address.
        let mut next = Some(start);
        let from = self.permitted.partition_point(|range| range.last < start);
        for at in from..self.permitted.len() {
            let Some(start) = next else { return };
            let Some((low, high)) = self.whole_units(self.permitted[at], start, last) else {
                continue;
            };
            if low > start {
                before = self.insert_after(before, start, low - 1, Kind::Hole);
                before = self.settle(before);
            }
            before = self.insert_after(before, low, high, Kind::Free);
            before = self.settle(before);
            next = high.checked_add(1).filter(|next| *next <= last);
        }
        if let Some(start) = next {
            let hole = self.insert_after(before, start, last, Kind::Hole);
            self.settle(hole);
        }
    }

    /// What a permitted range gives of `start` to `last`: whole units, and never address 0.
    fn whole_units(&self, permitted: IovaRange, start: u64, last: u64) -> Option<(u64, u64)> {
        let low = permitted.start.max(self.unit).max(start);
        let low = low.checked_next_multiple_of(self.unit)?;
        let bytes = permitted.last.min(last).checked_sub(low)?.saturating_add(1);
        let whole = bytes & !(self.unit - 1);
        (whole > 0).then(|| (low, low + (whole - 1)))
    }

    /// Lets a tile grow together with neighbours of its kind, and answers the number of the whole.
    fn settle(&mut self, tile: u32) -> u32 {
        let kind = self.tile(tile).kind;
        self.unlist(tile);
        // Ranges that touch stay apart: a mapping can't span two of them.
        let bounds = match kind {
            Kind::Free => self.permitting(self.tile(tile).range()),
            _ => Some(IovaRange { start: 0, last: u64::MAX }),
        };
        let Some(bounds) = bounds else { return tile };
        let Tile { before, after, start, last, .. } = *self.tile(tile);
        // While an interval is filled, the tile behind it is a neighbour that does not touch yet.
        if after != NONE {
            let next = *self.tile(after);
            if next.kind == kind && next.last <= bounds.last && next.start - 1 == last {
                self.remove(after);
                self.tile_mut(tile).last = next.last;
            }
        }
        if before != NONE {
            let previous = *self.tile(before);
            if previous.kind == kind && previous.start >= bounds.start && previous.last + 1 == start
            {
                self.remove(before);
                self.tile_mut(tile).start = previous.start;
            }
        }
        self.list(tile);
        tile
    }

    fn list(&mut self, tile: u32) {
        if self.tile(tile).kind == Kind::Free {
            let units = self.units(self.tile(tile).range());
            self.bins.add(&mut self.tiles, tile, units);
        }
    }

    /// Takes a tile out of its bin, if it is in one.
    fn unlist(&mut self, tile: u32) {
        let found = *self.tile(tile);
        if found.kind == Kind::Free && found.bin_after != UNLISTED {
            let units = self.units(found.range());
            self.bins.remove(&mut self.tiles, tile, units);
            self.tile_mut(tile).bin_after = UNLISTED;
        }
    }

    /// A new tile behind another one, or at the bottom.
    fn insert_after(&mut self, before: u32, start: u64, last: u64, kind: Kind) -> u32 {
        let after = if before == NONE { self.first } else { self.tile(before).after };
        let new = Tile { start, last, kind, before, after, bin_before: NONE, bin_after: UNLISTED };
        let tile = self.spare;
        let tile = if tile == NONE {
            self.tiles.push(new);
            self.numbers() - 1
        } else {
            self.spare = self.tile(tile).after;
            *self.tile_mut(tile) = new;
            tile
        };
        match before {
            NONE => self.first = tile,
            before => self.tile_mut(before).after = tile,
        }
        if after != NONE {
            self.tile_mut(after).before = tile;
        }
        self.list(tile);
        tile
    }

    /// Takes a tile out, and answers the one behind it.
    fn remove(&mut self, tile: u32) -> u32 {
        self.unlist(tile);
        let Tile { before, after, .. } = *self.tile(tile);
        match before {
            NONE => self.first = after,
            before => self.tile_mut(before).after = after,
        }
        if after != NONE {
            self.tile_mut(after).before = before;
        }
        *self.tile_mut(tile) = Tile { after: self.spare, ..Tile::default() };
        self.spare = tile;
        after
    }
}

/// Marks a tile that is in no bin.
const UNLISTED: u32 = NONE - 1;

#[cfg(test)]
mod tests;
