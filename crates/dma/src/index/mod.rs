//! An ordered index from a 64-bit key to a number: one writer at a time, readers without a lock.
//!
//! A B+ tree whose nodes never move and are never freed while it lives. A writer makes the version
//! odd, changes nodes, and makes it even again; a reader that saw another version after than before
//! looks again. So readers write nothing that they share, and nothing here is unsafe.
//!
//! The smallest key of every child stands in its parent exactly, so that the largest key that is not
//! above another one is found in one way down.

mod edit;
mod node;

use self::node::{Node, Nodes};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, spin_loop, yield_now};

/// Levels that a tree of 2^32 entries has at most, also when its nodes are a quarter full.
const LEVELS: usize = 12;

/// How often a reader looks again before it lets another thread run.
const SPINS: u32 = 64;

/// The index. All changes go through one [`Writer`].
#[derive(Debug)]
pub(crate) struct Index {
    version: AtomicU64,
    root: AtomicU32,
    /// Levels above the leaves.
    height: AtomicU32,
    nodes: Nodes,
}

/// What it takes to change an index. Whoever makes an [`Index`] keeps its one writer under a lock.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Nodes that were made.
    made: u32,
    /// Nodes that were given up.
    free: Vec<u32>,
    entries: usize,
}

impl Writer {
    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }
}

impl Index {
    pub(crate) fn new() -> (Self, Writer) {
        let index = Self {
            version: AtomicU64::new(0),
            root: AtomicU32::new(0),
            height: AtomicU32::new(0),
            nodes: Nodes::new(),
        };
        index.nodes.grow_to(0);
        (index, Writer { made: 1, free: Vec::new(), entries: 0 })
    }

    /// Reads what doesn't change meanwhile: `look` is called again until nothing was written while
    /// it ran. What it answered before is dropped, so it must not act on what it sees.
    #[inline]
    pub(crate) fn read<T>(&self, mut look: impl FnMut(&Self) -> T) -> T {
        let mut spins = 0;
        loop {
            let before = self.version.load(Ordering::Acquire);
            if before.is_multiple_of(2) {
                let seen = look(self);
                fence(Ordering::Acquire);
                if self.version.load(Ordering::Relaxed) == before {
                    return seen;
                }
            }
            spins += 1;
            if spins < SPINS {
                spin_loop();
            } else {
                yield_now();
            }
        }
    }

    /// Lets `change` happen between two versions. What readers look at in [`Index::read`] beside the
    /// index is changed in there, too. Only whoever has the writer may call it.
    #[inline]
    pub(crate) fn change<T>(&self, change: impl FnOnce(&Self) -> T) -> T {
        let before = self.version.load(Ordering::Relaxed);
        if !before.is_multiple_of(2) {
            // Within a larger change.
            return change(self);
        }
        self.version.store(before + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let done = change(self);
        self.version.store(before + 2, Ordering::Release);
        done
    }

    /// The entry with the largest key that is not above `key`. For whoever has the writer, or
    /// within [`Index::read`].
    pub(crate) fn floor(&self, key: u64) -> Option<(u64, u32)> {
        let mut node = self.root_node()?;
        for _ in 0..self.levels() {
            node = self.nodes.get(node.value(node.rank(key).saturating_sub(1)))?;
        }
        let at = node.rank(key).checked_sub(1)?;
        Some((node.key(at), node.value(at)))
    }

    /// The value of exactly this key. As [`Index::floor`].
    pub(crate) fn get(&self, key: u64) -> Option<u32> {
        self.floor(key).filter(|(found, _)| *found == key).map(|(_, value)| value)
    }

    fn root_node(&self) -> Option<&Node> {
        self.nodes.get(self.root.load(Ordering::Relaxed))
    }

    /// Bounded, also for a reader that sees half a change.
    fn levels(&self) -> usize {
        usize::try_from(self.height.load(Ordering::Relaxed)).unwrap_or(LEVELS).min(LEVELS)
    }
}

#[cfg(all(test, loom))]
mod orders;
#[cfg(all(test, not(loom)))]
mod tests;
