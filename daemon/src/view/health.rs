//! The condition of devices as the API has it.

use berth_host::{AerCounters, LinkState};
use berth_ownership::{Cause, Condition, Device, Health};
use berth_proto::v1;

use super::{Boot, words};
use crate::model::ShownHealth;

/// What a device shows of its health; `None` where it shows nothing and nothing stands against it.
#[must_use]
pub fn health(record: Option<&Device>, shown: Option<&ShownHealth>) -> Option<v1::DeviceHealth> {
    let recorded = record.map(|record| &record.health);
    let shown = shown.cloned().unwrap_or_default();
    let answer = v1::DeviceHealth {
        condition: words::condition(recorded.map_or(Condition::Ok, Health::condition)).into(),
        causes: recorded.map(causes).unwrap_or_default(),
        notes: shown.notes,
        asleep: shown.health.is_asleep(),
        aer: shown.health.aer.map(aer),
        link: shown.health.link.as_ref().map(link),
        power_state: shown.health.power_state,
    };
    let tells = answer.asleep
        || answer.aer.is_some()
        || answer.link.is_some()
        || !answer.causes.is_empty()
        || !answer.notes.is_empty();
    tells.then_some(answer)
}

/// What stands against a device, the worst first.
#[must_use]
pub fn causes(health: &Health) -> Vec<v1::ConditionCause> {
    health.causes.iter().map(cause).collect()
}

/// The cordon of a device, if it has one.
#[must_use]
pub fn cordon(record: &Device, boot: &Boot) -> Option<v1::Cordon> {
    let note = record.marks.get(&Condition::Cordoned)?.clone();
    let term = record.cordon.as_ref();
    let expires_at = term.and_then(|term| words::expiry(&term.expires, boot));
    Some(v1::Cordon { note, expires_at, ttl_ms: term.map_or(0, |term| term.ttl_ms) })
}

fn cause(cause: &Cause) -> v1::ConditionCause {
    v1::ConditionCause {
        code: cause.code.name().to_owned(),
        what: cause.what.clone(),
        since: Some(words::timestamp(cause.since_ms.0)),
    }
}

fn aer(counters: AerCounters) -> v1::AerCounters {
    let AerCounters { correctable, nonfatal, fatal } = counters;
    v1::AerCounters { correctable, nonfatal, fatal }
}

fn link(link: &LinkState) -> v1::Link {
    let best = link.reachable();
    v1::Link {
        width: link.current.width.into(),
        speed_mts: link.current.speed,
        max_width: best.width.into(),
        max_speed_mts: best.speed,
    }
}
