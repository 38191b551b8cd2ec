//! The store: SQLite in WAL mode, synchronous=FULL, one writer and a few readers.

use std::sync::Arc;

/// One event as it is stored and streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// Gapless.
    pub seq: u64,
    /// When.
    pub time_unix_ms: u64,
    /// On which boot.
    pub boot_id: Arc<str>,
    /// Who asked.
    pub actor: String,
    /// What led to it.
    pub cause: String,
    /// The caller's request id, or empty.
    pub request_id: String,
    /// `reservation.created`.
    pub kind: String,
    /// Stable ids.
    pub groups: Vec<String>,
    /// Addresses.
    pub devices: Vec<String>,
    /// The reservation, or empty.
    pub reservation: String,
    /// The object before: proto3 JSON.
    pub before: Option<String>,
    /// The object after: proto3 JSON.
    pub after: Option<String>,
}

/// The store.
#[derive(Debug)]
pub struct Store {}
