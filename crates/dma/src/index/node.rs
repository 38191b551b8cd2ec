//! Nodes of the index, and where they are kept.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::chunks::Chunks;

/// Entries of a node. A leaf of this many is searched in one or two cache lines of keys.
pub(super) const FANOUT: usize = 32;

/// How many keys are compared at once.
const STRIDE: usize = 8;

/// Keys in ascending order, each with a value: a leaf's entries, or the smallest key and the number
/// of each child.
///
/// Everything is atomic and relaxed, since readers look while it changes; they find out by the
/// index's version whether what they saw was whole.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Node {
    keys: [AtomicU64; FANOUT],
    values: [AtomicU32; FANOUT],
    length: AtomicU32,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            keys: [const { AtomicU64::new(0) }; FANOUT],
            values: [const { AtomicU32::new(0) }; FANOUT],
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

    pub(super) fn set_len(&self, length: usize) {
        self.length.store(u32::try_from(length).unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn key(&self, at: usize) -> u64 {
        self.keys[at].load(Ordering::Relaxed)
    }

    pub(super) fn value(&self, at: usize) -> u32 {
        self.values[at].load(Ordering::Relaxed)
    }

    pub(super) fn set_key(&self, at: usize, key: u64) {
        self.keys[at].store(key, Ordering::Relaxed);
    }

    pub(super) fn set(&self, at: usize, key: u64, value: u32) {
        self.keys[at].store(key, Ordering::Relaxed);
        self.values[at].store(value, Ordering::Relaxed);
    }

    /// How many keys are not above `key`. In two steps of comparisons that don't wait for each other:
    /// the last keys of each stride, then the keys of one stride.
    pub(super) fn rank(&self, key: u64) -> usize {
        let length = self.len();
        let not_above = |at: usize| usize::from(at < length && self.key(at) <= key);
        let strides: usize = (1..FANOUT / STRIDE).map(|n| not_above(n * STRIDE - 1)).sum();
        let start = strides * STRIDE;
        start + (start..start + STRIDE).map(not_above).sum::<usize>()
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
        let length = self.len();
        for to in at..length - 1 {
            self.set(to, self.key(to + 1), self.value(to + 1));
        }
        self.set_len(length - 1);
    }

    /// Moves the entries from `from` on to the end of another node. There must be room.
    pub(super) fn move_to(&self, from: usize, to: &Self) {
        let (length, start) = (self.len(), to.len());
        for (at, place) in (from..length).zip(start..) {
            to.set(place, self.key(at), self.value(at));
        }
        to.set_len(start + (length - from));
        self.set_len(from);
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
