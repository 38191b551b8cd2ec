//! Changing the index: insert and remove, with splits and merges.

use super::node::{FANOUT, Node};
use super::{Index, LEVELS, Writer};
use crate::sync::Ordering;

/// A node with fewer entries looks for a neighbour to merge with.
const SPARSE: usize = FANOUT / 4;
/// The most entries of a merged node: not full, or the next insertion would split it again.
const MERGED: usize = FANOUT * 3 / 4;

/// The way from the root down to a leaf: node and place at each level, root first.
struct Way {
    steps: [(u32, usize); LEVELS],
    levels: usize,
    leaf: u32,
}

impl Index {
    /// Adds an entry. The key must not be there.
    pub(crate) fn insert(&self, writer: &mut Writer, key: u64, value: u32) {
        let way = self.way_to(key);
        let leaf = self.node(way.leaf);
        let at = leaf.rank(key);
        // Room is made before, so that what follows has one form.
        let spare = (leaf.len() == FANOUT).then(|| self.take_nodes(writer, &way));
        writer.entries += 1;
        self.change(|index| match spare {
            None => {
                leaf.insert(at, key, value);
                if at == 0 {
                    index.lower_minimum(&way, key);
                }
            }
            Some(spare) => index.split_and_insert(&way, spare, at, key, value),
        });
    }

    /// Removes an entry, and answers its value.
    pub(crate) fn remove(&self, writer: &mut Writer, key: u64) -> Option<u32> {
        let way = self.way_to(key);
        let leaf = self.node(way.leaf);
        let at = leaf.rank(key).checked_sub(1).filter(|at| leaf.key(*at) == key)?;
        let value = leaf.value(at);
        writer.entries -= 1;
        self.change(|index| {
            leaf.remove(at);
            index.after_removal(writer, &way);
        });
        Some(value)
    }

    /// Removes all entries from one key to another, both included: those of a leaf at once.
    pub(crate) fn remove_run(&self, writer: &mut Writer, first: u64, last: u64) {
        loop {
            // From the last one down, so that what is left in a leaf mostly stays where it is.
            let way = self.way_to(last);
            let leaf = self.node(way.leaf);
            let at = first.checked_sub(1).map_or(0, |below| leaf.rank(below));
            let end = leaf.rank(last);
            if at >= end {
                return;
            }
            writer.entries -= end - at;
            self.change(|index| {
                leaf.remove_range(at, end);
                index.after_removal(writer, &way);
            });
            if at > 0 {
                return;
            }
        }
    }

    /// A node whose number stands in the tree. Only a reader can see one that isn't there.
    #[expect(clippy::expect_used, reason = "the tree names nodes that were made, and no others")]
    fn node(&self, number: u32) -> &Node {
        self.nodes.get(number).expect("a node of the tree")
    }

    fn way_to(&self, key: u64) -> Way {
        let mut way = Way { steps: [(0, 0); LEVELS], levels: self.levels(), leaf: 0 };
        let mut number = self.root.load(Ordering::Relaxed);
        for step in &mut way.steps[..way.levels] {
            let node = self.node(number);
            let at = node.rank(key).saturating_sub(1);
            *step = (number, at);
            number = node.value(at);
        }
        way.leaf = number;
        way
    }

    fn lower_minimum(&self, way: &Way, key: u64) {
        for (number, at) in way.steps[..way.levels].iter().rev() {
            self.node(*number).set_key(*at, key);
            if *at > 0 {
                break;
            }
        }
    }
}

/// Nodes for a split, taken before it begins: one for each full level, and one for a new root.
struct Spare {
    nodes: [u32; LEVELS + 1],
    left: usize,
}

impl Spare {
    fn take(&mut self) -> u32 {
        self.left -= 1;
        self.nodes[self.left]
    }
}

impl Index {
    fn take_nodes(&self, writer: &mut Writer, way: &Way) -> Spare {
        let full = way.steps[..way.levels]
            .iter()
            .rev()
            .take_while(|(number, _)| self.node(*number).len() == FANOUT)
            .count();
        let root = usize::from(full == way.levels);
        let mut spare = Spare { nodes: [0; LEVELS + 1], left: 1 + full + root };
        for place in &mut spare.nodes[..spare.left] {
            *place = writer.free.pop().unwrap_or_else(|| {
                self.nodes.grow_to(writer.made);
                writer.made += 1;
                writer.made - 1
            });
            self.node(*place).truncate(0);
        }
        spare
    }

    fn split_and_insert(&self, way: &Way, mut spare: Spare, at: usize, key: u64, value: u32) {
        let mut upper = self.split(way.leaf, spare.take(), at, key, value);
        if at == 0 {
            self.lower_minimum(way, key);
        }
        for (number, at) in way.steps[..way.levels].iter().rev() {
            let node = self.node(*number);
            let (key, child) = upper;
            if node.len() < FANOUT {
                node.insert(at + 1, key, child);
                return;
            }
            upper = self.split(*number, spare.take(), at + 1, key, child);
        }
        let (old, new) = (self.root.load(Ordering::Relaxed), spare.take());
        let root = self.node(new);
        root.insert(0, self.node(old).key(0), old);
        root.insert(1, upper.0, upper.1);
        self.root.store(new, Ordering::Relaxed);
        self.height.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves the upper half of a full node into an empty one and inserts; the smallest key and the
    /// number of the upper one. Keys that rise fill nodes: then only what is new goes up.
    fn split(&self, number: u32, empty: u32, at: usize, key: u64, value: u32) -> (u64, u32) {
        let (node, upper) = (self.node(number), self.node(empty));
        let middle = if at == FANOUT { FANOUT } else { FANOUT / 2 };
        node.move_to(middle, upper);
        if at < middle {
            node.insert(at, key, value);
        } else {
            upper.insert(at - middle, key, value);
        }
        (upper.key(0), empty)
    }

    /// Keeps minima exact and nodes filled on the way up from a leaf that lost an entry.
    fn after_removal(&self, writer: &mut Writer, way: &Way) {
        let mut child = way.leaf;
        for (number, at) in way.steps[..way.levels].iter().rev() {
            let (node, parent) = (self.node(child), self.node(*number));
            if node.len() == 0 {
                parent.remove(*at);
                writer.free.push(child);
            } else {
                parent.set_key(*at, node.key(0));
                if node.len() < SPARSE {
                    self.merge(writer, parent, *at);
                }
            }
            child = *number;
        }
        self.lower_root(writer);
    }

    /// Merges a sparse child with a neighbour, if both fit into one.
    fn merge(&self, writer: &mut Writer, parent: &Node, at: usize) {
        for left in [at.checked_sub(1), Some(at)].into_iter().flatten() {
            let right = left + 1;
            if right >= parent.len() {
                continue;
            }
            let (into, from) = (self.node(parent.value(left)), self.node(parent.value(right)));
            if into.len() + from.len() <= MERGED {
                from.move_to(0, into);
                writer.free.push(parent.value(right));
                parent.remove(right);
                return;
            }
        }
    }

    /// A root with one child is that child; one with none is an empty leaf.
    fn lower_root(&self, writer: &mut Writer) {
        while self.levels() > 0 {
            let number = self.root.load(Ordering::Relaxed);
            let root = self.node(number);
            match root.len() {
                0 => self.height.store(0, Ordering::Relaxed),
                1 => {
                    self.root.store(root.value(0), Ordering::Relaxed);
                    self.height.fetch_sub(1, Ordering::Relaxed);
                    writer.free.push(number);
                }
                _ => return,
            }
        }
    }
}
