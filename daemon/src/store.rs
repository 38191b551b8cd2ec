//! The store: SQLite in WAL mode, synchronous=FULL, one writer and a few readers.
//!
//! Every query is checked against the schema when it is compiled; its description is kept in
//! `.sqlx`, so that a build needs no database. The statements of a commit are put together for as
//! many rows as there are, and are checked by the tests that write each table.

mod commit;
mod copy;
mod damage;
mod error;
mod fault;
mod going;
mod heal;
mod load;
mod open;
mod parsing;
mod read;
mod reader;
mod rows;
mod schema;
mod write;

use std::sync::Arc;

use arc_swap::ArcSwap;
use sqlx::SqlitePool;

pub use damage::HistoryLost;
pub use error::StoreError;
pub use fault::{probe, way_out};
pub use going::Going;
pub use load::Loaded;
pub use open::{Locked, Pieces, open, open_locked};
pub use reader::Reader;
pub use rows::{
    BaselineRow, ClosedIntentRow, DeviceRow, IntentRow, Rows, StepRow, StoredRequest, TargetRow,
};
pub use schema::{migrations, release_with};
pub use write::Writer;

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

impl EventRecord {
    /// Whether it concerns a device, group or reservation of that name.
    #[must_use]
    pub fn concerns(&self, object: &str) -> bool {
        self.reservation == object
            || self.groups.iter().any(|group| group == object)
            || self.devices.iter().any(|device| device == object)
    }
}

/// The readers' side of the store: past events.
#[derive(Debug, Clone)]
pub struct Store {
    readers: Arc<ArcSwap<SqlitePool>>,
}
