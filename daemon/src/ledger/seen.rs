//! Which request ids may be known: one that is new for sure needs no look into the store.
//!
//! Ids are kept as hashes: two that have the same cost a look, no more. All of the store's are read
//! with the first look, and again when there are too many, as the store forgets old ones.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

use super::task::BATCH;

/// How many hashes are kept: some 16 MiB.
pub(super) const MOST: usize = 1 << 20;
/// After how many requests all those before them are durable: there are never more in the queue's
/// part that was received, in the batch that is decided and in the one that is written.
const SETTLED: usize = 4 * BATCH;

/// The ids that were received, and those in the store.
#[derive(Debug)]
pub(super) struct Seen {
    hashes: HashSet<u64>,
    hasher: RandomState,
    most: usize,
    /// The store's are among them.
    complete: bool,
    /// How many requests come before the store's are read.
    before_all: usize,
}

impl Seen {
    pub(super) fn new(most: usize) -> Self {
        let hasher = RandomState::new();
        Self { hashes: HashSet::new(), hasher, most, complete: false, before_all: 0 }
    }

    /// Takes a request that was received. Whether it may be one that was received before.
    pub(super) fn maybe(&mut self, identity: &str, id: &str) -> bool {
        if self.hashes.len() >= self.most {
            self.begin_anew(SETTLED);
        }
        self.before_all = self.before_all.saturating_sub(1);
        let first = self.hashes.insert(self.hasher.hash_one((identity, id)));
        !(self.complete && first)
    }

    /// How many of the store's ids are to be read with the next look, at most.
    pub(super) fn wants(&self) -> Option<usize> {
        (!self.complete && self.before_all == 0).then_some(self.most / 2)
    }

    /// Takes the store's ids. Where there are as many as were wanted it may have more.
    pub(super) fn take(&mut self, stored: &[(String, String)]) {
        if stored.len() >= self.most / 2 {
            self.begin_anew(self.most / 2);
            return;
        }
        let hash = |(identity, id): &(String, String)| {
            self.hasher.hash_one((identity.as_str(), id.as_str()))
        };
        self.hashes.extend(stored.iter().map(hash));
        self.complete = true;
    }

    fn begin_anew(&mut self, before_all: usize) {
        self.hashes = HashSet::new();
        self.complete = false;
        self.before_all = before_all;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::Range<usize>) -> Vec<(String, String)> {
        range.map(|id| ("uid:1".to_owned(), id.to_string())).collect()
    }

    #[test]
    fn what_is_new_is_known_as_new_when_the_stores_were_read() {
        let mut seen = Seen::new(MOST);
        assert!(seen.maybe("uid:1", "early"), "the store may have it");
        assert_eq!(seen.wants(), Some(MOST / 2));
        seen.take(&ids(0..3));
        assert_eq!(seen.wants(), None);
        assert!(seen.maybe("uid:1", "early"), "received before the store's were read");
        assert!(seen.maybe("uid:1", "2"), "in the store");
        assert!(!seen.maybe("uid:2", "2"), "another identity's");
        assert!(seen.maybe("uid:2", "2"), "a second time");
    }

    #[test]
    fn too_many_are_read_again_when_all_before_are_durable() {
        let mut seen = Seen::new(2 * SETTLED);
        seen.take(&[]);
        for (identity, id) in ids(0..2 * SETTLED) {
            assert!(!seen.maybe(&identity, &id));
        }
        for (identity, id) in ids(0..SETTLED) {
            assert_eq!(seen.wants(), None, "{id}");
            assert!(seen.maybe(&identity, &id), "nothing is new for sure");
        }
        assert_eq!(seen.wants(), Some(SETTLED));
        seen.take(&ids(0..10));
        assert!(!seen.maybe("uid:1", "new") && seen.maybe("uid:1", "9"));
    }

    #[test]
    fn a_store_with_more_than_are_kept_is_looked_into_each_time() {
        let mut seen = Seen::new(100);
        seen.take(&ids(0..50));
        for (identity, id) in ids(1000..1050) {
            assert_eq!(seen.wants(), None);
            assert!(seen.maybe(&identity, &id));
        }
        assert_eq!(seen.wants(), Some(50), "it may have forgotten some by now");
    }
}
