//! Events.

use berth_proto::v1;

use super::{Meaning, cell, table as render};
use crate::address;

/// One line a change.
pub(crate) fn table(events: &[v1::Event]) -> String {
    render(
        &["SEQ", "TIME", "KIND", "OBJECT", "ACTOR", "CAUSE"],
        events.iter().map(|event| {
            vec![
                cell(event.seq.to_string(), Meaning::Plain),
                cell(time(event), Meaning::Plain),
                cell(&event.kind, Meaning::Plain),
                cell(objects(event), Meaning::Plain),
                cell(&event.actor, Meaning::Plain),
                cell(cause(event), Meaning::Plain),
            ]
        }),
    )
}

/// One change of a stream.
pub(crate) fn line(event: &v1::Event) -> String {
    format!(
        "{} {} {} {} by {} ({})",
        event.seq,
        time(event),
        event.kind,
        objects(event),
        event.actor,
        cause(event)
    )
}

/// What led to it, and the reason that was given for it.
fn cause(event: &v1::Event) -> String {
    let after = event.after.as_ref().and_then(|after| serde_json::to_value(after).ok());
    match after.as_ref().and_then(|after| after["reason"].as_str()) {
        Some(reason) if !reason.is_empty() => format!("{}: {reason}", event.cause),
        _ => event.cause.clone(),
    }
}

fn objects(event: &v1::Event) -> String {
    let mut parts = Vec::new();
    if !event.reservation.is_empty() {
        parts.push(event.reservation.clone());
    }
    parts.extend(event.groups.iter().cloned());
    parts.extend(event.devices.iter().map(|device| address::text(Some(device)).to_owned()));
    parts.join(" ")
}

fn time(event: &v1::Event) -> String {
    time_of(event.time.as_ref())
}

/// RFC 3339, as the JSON mapping writes it.
pub(crate) fn time_of(time: Option<&berth_proto::Timestamp>) -> String {
    time.and_then(|time| serde_json::to_value(time).ok())
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
