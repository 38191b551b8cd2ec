//! An event as all who watch are sent it.

use std::sync::{Arc, OnceLock};

use prost::{Message as _, bytes::Bytes};

use super::event;
use crate::{json, store::EventRecord};

/// One event for any number of watchers. Whoever needs a form of it first makes it, for all.
#[derive(Debug)]
pub struct WatchedEvent {
    record: Arc<EventRecord>,
    message: OnceLock<Bytes>,
    json: OnceLock<String>,
}

impl WatchedEvent {
    /// Of a stored event.
    #[must_use]
    pub fn new(record: Arc<EventRecord>) -> Self {
        Self { record, message: OnceLock::new(), json: OnceLock::new() }
    }

    /// What is stored.
    #[must_use]
    pub fn record(&self) -> &EventRecord {
        &self.record
    }

    /// `berth.v1.Event`, encoded.
    #[must_use]
    pub fn message(&self) -> Bytes {
        self.message.get_or_init(|| event(&self.record).encode_to_vec().into()).clone()
    }

    /// The same as proto3 JSON.
    #[must_use]
    pub fn json(&self) -> &str {
        self.json.get_or_init(|| {
            // The type has no value that JSON lacks.
            json::to_string(&event(&self.record)).unwrap_or_else(|_| "{}".to_owned())
        })
    }
}
