//! Places that were given back a moment ago, by their length: whoever maps as much again takes one as it
//! is, without the table and the index, as the kernel's own allocator of IOVAs does.
//!
//! What somebody chose is kept apart, in `warm`, for whoever chooses it again, and never given to who leaves
//! it open: they would find it taken. It is the last one alone, since those who leave it open are given
//! what is free between places.

/// Rows of lengths; those that fall together share one.
const ROWS: usize = if cfg!(loom) { 2 } else { 16 };
/// Places of a row.
const DEPTH: usize = if cfg!(loom) { 2 } else { 8 };

/// A place that nobody chose and that is nobody's, though the table still has it as taken and the index
/// names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tile: u32,
    pub(super) iova: u64,
    pub(super) length: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    /// The oldest first.
    places: [Place; DEPTH],
    filled: usize,
}

/// The places. Nothing is allocated.
#[derive(Debug, Default)]
pub(super) struct Places {
    rows: [Row; ROWS],
    filled: usize,
}

/// The row of a length: the upper bits of a product depend on all of it.
#[inline]
fn row_of(length: u64) -> usize {
    let mixed = length.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
    usize::try_from(mixed).unwrap_or(0) % ROWS
}

impl Row {
    #[inline]
    fn remove(&mut self, at: usize) -> Place {
        let place = self.places[at];
        self.places.copy_within(at + 1..self.filled, at);
        self.filled -= 1;
        place
    }
}

impl Places {
    pub(super) fn len(&self) -> usize {
        self.filled
    }

    /// How long all of them are together.
    pub(super) fn bytes(&self) -> u64 {
        let filled = self.rows.iter().flat_map(|row| &row.places[..row.filled]);
        filled.map(|place| place.length).sum()
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Keeps a place. One that there is no room for any more is the answer.
    #[inline]
    pub(super) fn put(&mut self, place: Place) -> Option<Place> {
        let row = &mut self.rows[row_of(place.length)];
        let oldest = (row.filled == DEPTH).then(|| row.remove(0));
        row.places[row.filled] = place;
        row.filled += 1;
        self.filled += usize::from(oldest.is_none());
        oldest
    }

    /// Takes the place of this length that was kept last of those that suit.
    #[inline]
    pub(super) fn take(&mut self, length: u64, suits: impl Fn(&Place) -> bool) -> Option<Place> {
        let row = &mut self.rows[row_of(length)];
        let found = row.places[..row.filled]
            .iter()
            .rposition(|place| place.length == length && suits(place))?;
        self.filled -= 1;
        Some(row.remove(found))
    }

    /// Takes any.
    pub(super) fn pop(&mut self) -> Option<Place> {
        let row = self.rows.iter_mut().find(|row| row.filled > 0)?;
        self.filled -= 1;
        Some(row.remove(row.filled - 1))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn place(tile: u32, length: u64) -> Place {
        Place { tile, iova: u64::from(tile) << 20, length }
    }

    #[test]
    fn the_last_one_of_its_length_is_taken_first_and_the_oldest_given_up() {
        let mut places = Places::default();
        let some = u32::try_from(DEPTH).expect("few");
        assert!((0..some).all(|tile| places.put(place(tile, 4096)).is_none()));
        assert_eq!(places.put(place(some, 4096)), Some(place(0, 4096)));
        assert_eq!(places.take(8192, |_| true), None);
        assert_eq!(places.take(4096, |_| true), Some(place(some, 4096)));
        assert_eq!(places.take(4096, |place| place.tile == 2), Some(place(2, 4096)));
        assert_eq!(places.take(4096, |place| place.tile == 2), None);
        assert_eq!(places.bytes(), 4096 * (u64::from(some) - 2));
        let left: Vec<_> = std::iter::from_fn(|| places.pop()).map(|place| place.tile).collect();
        assert_eq!(left.len(), DEPTH - 2);
        assert!(places.is_empty() && !left.contains(&2) && !left.contains(&0));
    }

    #[test]
    fn lengths_share_a_row_and_stay_apart() {
        let mut places = Places::default();
        let lengths: Vec<u64> = (1..=40).map(|pages| pages * 4096).collect();
        let mut given_up = Vec::new();
        for (tile, length) in (0..).zip(&lengths) {
            given_up.extend(places.put(place(tile, *length)));
        }
        for (tile, length) in (0..).zip(&lengths) {
            let place = place(tile, *length);
            let expected = (!given_up.contains(&place)).then_some(place);
            assert_eq!(places.take(*length, |_| true), expected);
        }
        assert!(places.is_empty());
    }
}
