//! What one transaction writes: rows of each table. Documents within a row are texts.

use std::sync::Arc;

use berth_uapi::VfToken;

use super::EventRecord;

/// Everything that one transaction writes.
#[derive(Debug, Default)]
pub struct Rows {
    /// New events.
    pub events: Vec<Arc<EventRecord>>,
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
    /// VF tokens by the address of the physical function, where there is none yet.
    pub vf_tokens: Vec<(String, VfToken)>,
    /// Physical functions that are gone.
    pub vf_tokens_gone: Vec<String>,
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
    /// About how many rows there are to write.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
            + self.groups.len()
            + self.devices.len()
            + self.identities.len()
            + self.contexts.len()
            + self.contexts_gone.len()
            + self.domains.len()
            + self.domains_gone.len()
            + self.reservations.len()
            + self.targets.len()
            + self.intents.len()
            + self.intents_closed.len()
            + self.steps.len()
            + self.requests.len()
            + self.answers.len()
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.identities.is_empty()
            && self.baselines.is_empty()
            && self.baselines_gone.is_empty()
            && self.vf_tokens.is_empty()
            && self.vf_tokens_gone.is_empty()
            && self.steps.is_empty()
            && self.requests.is_empty()
            && self.answers.is_empty()
            && self.meta.is_empty()
            && self.intents.is_empty()
            && self.intents_closed.is_empty()
    }
}

/// A device's row: address, whether it is there, record.
#[derive(Debug)]
pub struct DeviceRow(pub String, pub u8, pub String);

/// A baseline's row: address, driver, override, intent.
#[derive(Debug)]
pub struct BaselineRow(pub String, pub Option<String>, pub Option<String>, pub u64);

/// A target's row: device, group, reservation, owner.
#[derive(Debug)]
pub struct TargetRow(pub String, pub String, pub String, pub String);

/// A new intent's row: id, reservation, body, boot, time.
#[derive(Debug)]
pub struct IntentRow(pub u64, pub Option<String>, pub String, pub String, pub u64);

/// A closed intent's row: id, time, outcome.
#[derive(Debug)]
pub struct ClosedIntentRow(pub u64, pub u64, pub String);

/// A step's row: intent, ordinal, step, detail.
#[derive(Debug)]
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
