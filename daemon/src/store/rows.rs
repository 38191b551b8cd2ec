//! What one transaction writes: rows of each table, as JSON arrays that SQLite takes apart. Documents
//! within a row are texts, not JSON in JSON, which would be parsed and written again on the way.

use std::sync::Arc;

use serde::{Serialize, Serializer, ser::SerializeTuple as _};

use super::EventRecord;

/// Everything that one transaction writes.
#[derive(Debug, Default)]
pub struct Rows {
    /// New events.
    pub events: Vec<EventRow>,
    /// Groups by id.
    pub groups: Vec<(String, String)>,
    /// Groups that are gone.
    pub groups_gone: Vec<String>,
    /// Devices.
    pub devices: Vec<DeviceRow>,
    /// Devices that are gone for good.
    pub devices_gone: Vec<String>,
    /// Identities by address.
    pub identities: Vec<(String, String)>,
    /// Baselines, where there is none yet.
    pub baselines: Vec<BaselineRow>,
    /// Devices whose baseline is restored.
    pub baselines_gone: Vec<String>,
    /// Contexts by id.
    pub contexts: Vec<(String, String)>,
    /// Contexts that went.
    pub contexts_gone: Vec<String>,
    /// Domains by id.
    pub domains: Vec<(String, String)>,
    /// Domains that went.
    pub domains_gone: Vec<String>,
    /// Reservations by id, with what is known beside the record.
    pub reservations: Vec<(String, String, String)>,
    /// Reservations that are forgotten.
    pub reservations_gone: Vec<String>,
    /// Reservations whose targets are written anew.
    pub retarget: Vec<String>,
    /// Their targets.
    pub targets: Vec<TargetRow>,
    /// New intents.
    pub intents: Vec<IntentRow>,
    /// Intents that ended.
    pub intents_closed: Vec<ClosedIntentRow>,
    /// Steps.
    pub steps: Vec<StepRow>,
    /// New request ids.
    pub requests: Vec<StoredRequest>,
    /// Answers to requests whose kernel work ended: intent, answer, refusal.
    pub answers: Vec<(u64, Option<String>, Option<String>)>,
    /// What is true of the whole store.
    pub meta: Vec<(String, String)>,
    /// Events up to this one go.
    pub events_before: u64,
    /// Request ids and closed intents from before this time go.
    ///
    /// # Units
    /// Milliseconds since 1970-01-01 UTC.
    pub history_before_unix_ms: u64,
}

impl Rows {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.identities.is_empty()
            && self.baselines.is_empty()
            && self.baselines_gone.is_empty()
            && self.steps.is_empty()
            && self.requests.is_empty()
            && self.answers.is_empty()
            && self.meta.is_empty()
            && self.intents.is_empty()
            && self.intents_closed.is_empty()
    }
}

/// An event's row.
#[derive(Debug, Clone)]
pub struct EventRow(pub Arc<EventRecord>);

impl Serialize for EventRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = &*self.0;
        let mut row = serializer.serialize_tuple(12)?;
        row.serialize_element(&event.seq)?;
        row.serialize_element(&event.time_unix_ms)?;
        row.serialize_element(&*event.boot_id)?;
        row.serialize_element(&event.actor)?;
        row.serialize_element(&event.cause)?;
        row.serialize_element(&event.request_id)?;
        row.serialize_element(&event.kind)?;
        row.serialize_element(&event.groups)?;
        row.serialize_element(&event.devices)?;
        row.serialize_element(&event.reservation)?;
        row.serialize_element(&event.before)?;
        row.serialize_element(&event.after)?;
        row.end()
    }
}

/// A device's row: address, whether it is there, record.
#[derive(Debug, Serialize)]
pub struct DeviceRow(pub String, pub u8, pub String);

/// A baseline's row: address, driver, override, intent.
#[derive(Debug, Serialize)]
pub struct BaselineRow(pub String, pub Option<String>, pub Option<String>, pub u64);

/// A target's row: device, group, reservation, owner.
#[derive(Debug, Serialize)]
pub struct TargetRow(pub String, pub String, pub String, pub String);

/// A new intent's row: id, reservation, body, boot, time.
#[derive(Debug, Serialize)]
pub struct IntentRow(pub u64, pub Option<String>, pub String, pub String, pub u64);

/// A closed intent's row: id, time, outcome.
#[derive(Debug, Serialize)]
pub struct ClosedIntentRow(pub u64, pub u64, pub String);

/// A step's row: intent, ordinal, step, detail.
#[derive(Debug, Serialize)]
pub struct StepRow(pub u64, pub u64, pub String, pub String);

/// A request id with its answer, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRequest {
    /// Who asked.
    pub identity: String,
    /// The id.
    pub id: String,
    /// Hash of the call's name and body, hex.
    pub body: String,
    /// When.
    pub created_unix_ms: u64,
    /// What the answer is about: JSON.
    pub about: String,
    /// The kernel work that the answer waits for.
    pub intent: Option<u64>,
    /// The answer: proto3 JSON.
    pub answer: Option<String>,
    /// Why the kernel work failed: JSON.
    pub refusal: Option<String>,
}

impl Serialize for StoredRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_tuple(8)?;
        row.serialize_element(&self.identity)?;
        row.serialize_element(&self.id)?;
        row.serialize_element(&self.body)?;
        row.serialize_element(&self.created_unix_ms)?;
        row.serialize_element(&self.about)?;
        row.serialize_element(&self.intent)?;
        row.serialize_element(&self.answer)?;
        row.serialize_element(&self.refusal)?;
        row.end()
    }
}
