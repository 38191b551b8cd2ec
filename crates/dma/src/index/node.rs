//! Nodes of the index, and where they are kept.

use crate::chunks::Chunks;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Entries of a node. A leaf of this many is searched in one or two cache lines of keys. Few, where
/// every order of what threads do is tried.
pub(super) const FANOUT: usize = if cfg!(loom) { 4 } else { 32 };

/// How many keys are compared at once.
const STRIDE: usize = FANOUT / STRIDES;
const STRIDES: usize = 4;

/// Keys in ascending order, each with a value: a leaf's entries, or the smallest key and the number
/// of each child.
///
/// Everything is atomic and relaxed, since readers look while it changes; they find out by the
/// index's version whether what they saw was whole.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Node {
    /// Those behind the last are the largest there can be.
    keys: [[AtomicU64; STRIDE]; STRIDES],
    values: [AtomicU32; FANOUT],
    length: AtomicU32,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            keys: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(u64::MAX))),
            values: std::array::from_fn(|_| AtomicU32::new(0)),
            length: AtomicU32::new(0),
        }
    }
}

impl Node {
    /// How many entries it has: at most [`FANOUT`], also for readers of a node that changes.
    pub(super) fn len(&self) -> usize {
        let length = self.length.load(Ordering::Relaxed);
        usize::try_from(length).unwrap_or(FANOUT).min(FANOUT)
    }

    /// Makes it shorter, or empties it.
    pub(super) fn truncate(&self, length: usize) {
        let keys = self.keys.as_flattened().get(length..self.len());
        keys.into_iter().flatten().for_each(|key| key.store(u64::MAX, Ordering::Relaxed));
        self.set_len(length);
    }

    fn set_len(&self, length: usize) {
        self.length.store(u32::try_from(length).unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn key(&self, at: usize) -> u64 {
        self.keys[at / STRIDE][at % STRIDE].load(Ordering::Relaxed)
    }

    pub(super) fn value(&self, at: usize) -> u32 {
        self.values[at].load(Ordering::Relaxed)
    }

    pub(super) fn set_key(&self, at: usize, key: u64) {
        self.keys[at / STRIDE][at % STRIDE].store(key, Ordering::Relaxed);
    }

    pub(super) fn set(&self, at: usize, key: u64, value: u32) {
        self.set_key(at, key);
        self.values[at].store(value, Ordering::Relaxed);
    }

    /// How many keys are not above `key`. In two steps of comparisons that don't wait for each other:
    /// the last keys of the strides, then the keys of one of them.
    pub(super) fn rank(&self, key: u64) -> usize {
        let not_above = |other: &AtomicU64| usize::from(other.load(Ordering::Relaxed) <= key);
        let [first, second, third, _] = &self.keys;
        let stride = [first, second, third].map(|keys| not_above(&keys[STRIDE - 1]));
        let stride = stride[0] + stride[1] + stride[2];
        let inside: usize = self.keys[stride].iter().map(not_above).sum();
        // Only above the largest of all keys can't be told from it.
        (stride * STRIDE + inside).min(self.len())
    }

    /// Puts an entry at a place and moves what is there up. There must be room.
    pub(super) fn insert(&self, at: usize, key: u64, value: u32) {
        let length = self.len();
        for to in (at + 1..=length).rev() {
            self.set(to, self.key(to - 1), self.value(to - 1));
        }
        self.set(at, key, value);
        self.set_len(length + 1);
    }

    /// Takes an entry out and moves what is above it down.
    pub(super) fn remove(&self, at: usize) {
        self.remove_range(at, at + 1);
    }

    /// Takes entries out and moves what is above them down.
    pub(super) fn remove_range(&self, start: usize, end: usize) {
        let length = self.len();
        for (to, from) in (start..).zip(end..length) {
            self.set(to, self.key(from), self.value(from));
        }
        self.truncate(length - (end - start));
    }

    /// Moves the entries from `from` on to the end of another node. There must be room.
    pub(super) fn move_to(&self, from: usize, to: &Self) {
        let (length, start) = (self.len(), to.len());
        for (at, place) in (from..length).zip(start..) {
            to.set(place, self.key(at), self.value(at));
        }
        to.set_len(start + (length - from));
        self.truncate(from);
    }
}

/// All nodes by their numbers; one that was given up is used again.
pub(super) type Nodes = Chunks<Node>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_counts_keys_that_are_not_above() {
        let node = Node::default();
        assert_eq!(node.rank(0), 0);
        for at in 0..FANOUT {
            node.insert(at, 10 * (at as u64 + 1), 0);
            for key in 0..10 * (FANOUT as u64 + 2) {
                let counted = (0..node.len()).filter(|at| node.key(*at) <= key).count();
                assert_eq!(node.rank(key), counted, "{key} among {}", node.len());
            }
        }
    }
}
