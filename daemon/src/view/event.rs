//! Events as the API has them.

use berth_proto::{pbjson_types::Struct, v1};

use super::words;
use crate::store::EventRecord;

/// A stored event as the API has it.
#[must_use]
pub fn event(record: &EventRecord) -> v1::Event {
    v1::Event {
        seq: record.seq,
        time: Some(words::timestamp(record.time_unix_ms)),
        boot_id: record.boot_id.to_string(),
        actor: record.actor.clone(),
        cause: record.cause.clone(),
        request_id: record.request_id.clone(),
        kind: record.kind.clone(),
        groups: record.groups.clone(),
        devices: record.devices.iter().map(words::address).collect(),
        reservation: record.reservation.clone(),
        before: object(record.before.as_deref()),
        after: object(record.after.as_deref()),
    }
}

fn object(json: Option<&str>) -> Option<Struct> {
    json.and_then(|json| serde_json::from_str(json).ok())
}
