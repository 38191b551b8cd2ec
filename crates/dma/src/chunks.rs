//! A growing list of things that never move, so that readers look at one while others are added.

use crate::sync::OnceLock;

/// Things of the first chunk, of which most have enough and which is found first; each further chunk
/// doubles what there is.
const FIRST_CHUNK: u32 = 8;
/// Chunks that there can be: as many as give 2^31 things.
const CHUNKS: usize = 30;

/// Things by their numbers, from 0 on.
#[derive(Debug)]
pub(crate) struct Chunks<T> {
    chunks: [OnceLock<Box<[T]>>; CHUNKS],
}

impl<T: Default> Chunks<T> {
    pub(crate) fn new() -> Self {
        Self { chunks: std::array::from_fn(|_| OnceLock::new()) }
    }

    /// The thing of this number, if there is one. A number that a reader took from what changes
    /// meanwhile may be any.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        if number < FIRST_CHUNK {
            return self.chunks[0].get()?.get(usize::try_from(number).ok()?);
        }
        let (chunk, at) = place(number);
        self.chunks.get(chunk)?.get()?.get(at)
    }

    /// Makes sure that there is one of this number, which follows those there are.
    pub(crate) fn grow_to(&self, number: u32) {
        let (chunk, _) = place(number);
        let size = usize::try_from(FIRST_CHUNK).unwrap_or(1) << chunk.saturating_sub(1);
        self.chunks[chunk].get_or_init(|| (0..size).map(|_| T::default()).collect());
    }
}

/// In which chunk a thing is, and where there: chunks have 8, 8, 16, 32, ... things.
#[inline]
fn place(number: u32) -> (usize, usize) {
    let index = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    if number < FIRST_CHUNK {
        return (0, index(number));
    }
    // The highest bit says which chunk, the others where there.
    let log = number.ilog2();
    (index(log - (FIRST_CHUNK.ilog2() - 1)), index(number ^ (1 << log)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn everything_has_a_place_of_its_own() {
        let chunks = Chunks::<AtomicU32>::new();
        for number in 0..1000 {
            chunks.grow_to(number);
            let thing = chunks.get(number).expect("it was made");
            assert_eq!(thing.swap(number + 1, Ordering::Relaxed), 0, "{number} is another's");
        }
        let holds = |number| chunks.get(number).map(|n| n.load(Ordering::Relaxed));
        assert!((0..1000).all(|number| holds(number) == Some(number + 1)));
        assert!(chunks.get(u32::MAX).is_none());
    }
}
