//! Answers about what is published, kept as bytes as long as it is: clients that poll ask the same
//! again far more often than anything changes.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, Weak},
};

use axum::body::Bytes;

use crate::model::Snapshot;

/// How much is kept at most; what is asked beyond that is made anew each time.
const MOST_BYTES: usize = 16 << 20;

/// Answers of one snapshot, by path and query.
#[derive(Debug, Default)]
pub(super) struct Kept(RwLock<Page>);

#[derive(Debug, Default)]
struct Page {
    /// What the answers are about. While this is there, no other snapshot has its address.
    of: Weak<Snapshot>,
    answers: HashMap<String, Bytes>,
    bytes: usize,
}

impl Page {
    fn is_of(&self, snapshot: &Arc<Snapshot>) -> bool {
        std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(snapshot))
    }
}

impl Kept {
    /// The answer, if it was given about this very snapshot before.
    pub(super) fn get(&self, snapshot: &Arc<Snapshot>, name: &str) -> Option<Bytes> {
        let page = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if page.is_of(snapshot) { page.answers.get(name).cloned() } else { None }
    }

    /// Keeps an answer about a snapshot, and none about an older one. An answer that was made from
    /// a later snapshot is right too: this page goes with the older one.
    pub(super) fn put(&self, snapshot: &Arc<Snapshot>, name: String, answer: &Bytes) {
        let mut page = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if !page.is_of(snapshot) {
            // Somebody else may have begun a page about a later one.
            if page.of.upgrade().is_some_and(|of| of.seq > snapshot.seq) {
                return;
            }
            *page = Page { of: Arc::downgrade(snapshot), ..Page::default() };
        }
        let bytes = name.len() + answer.len();
        if page.bytes + bytes <= MOST_BYTES && page.answers.insert(name, answer.clone()).is_none() {
            page.bytes += bytes;
        }
    }
}
