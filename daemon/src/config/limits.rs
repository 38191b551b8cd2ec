//! Numbers of the file: how long things may take, what is kept, how much is let in.

use std::ops::RangeInclusive;

use toml::Spanned;

use super::{
    ConfigError, Limits, Retention, Timeouts,
    error::Source,
    raw::{RawLimits, RawRetention, RawTimeouts},
};

/// A number within its limits, or its default.
pub(super) struct Range<'a, 'b> {
    pub(super) source: &'a Source<'b>,
    pub(super) section: &'static str,
}

impl Range<'_, '_> {
    pub(super) fn get(
        &self,
        value: Option<&Spanned<u64>>,
        key: &str,
        default: u64,
        allowed: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        if allowed.contains(value.get_ref()) {
            return Ok(*value.get_ref());
        }
        Err(self.source.error(
            Some(value.span()),
            &format!("{}.{key}", self.section),
            format!("{} is out of range", value.get_ref()),
            format!("use {} to {}", allowed.start(), allowed.end()),
        ))
    }
}

pub(super) const HOUR_MS: u64 = 3_600_000;
/// Of what there can be many.
const MANY: RangeInclusive<u64> = 1..=1_000_000;
/// Of a request's body, in bytes.
const BODY: RangeInclusive<u64> = 1_024..=(64 << 20);

pub(super) fn timeouts(raw: &RawTimeouts, source: &Source<'_>) -> Result<Timeouts, ConfigError> {
    let range = Range { source, section: "timeouts" };
    let default = Timeouts::default();
    Ok(Timeouts {
        wait_ms: range.get(raw.wait_ms.as_ref(), "wait_ms", default.wait_ms, 1..=HOUR_MS)?,
        act_ms: range.get(raw.act_ms.as_ref(), "act_ms", default.act_ms, 100..=HOUR_MS)?,
        header_ms: range.get(
            raw.header_ms.as_ref(),
            "header_ms",
            default.header_ms,
            100..=HOUR_MS,
        )?,
        handshake_ms: range.get(
            raw.handshake_ms.as_ref(),
            "handshake_ms",
            default.handshake_ms,
            100..=HOUR_MS,
        )?,
        body_ms: range.get(raw.body_ms.as_ref(), "body_ms", default.body_ms, 100..=HOUR_MS)?,
        drain_ms: range.get(raw.drain_ms.as_ref(), "drain_ms", default.drain_ms, 0..=HOUR_MS)?,
        rescan_ms: range.get(
            raw.rescan_ms.as_ref(),
            "rescan_ms",
            default.rescan_ms,
            1_000..=24 * HOUR_MS,
        )?,
    })
}

pub(super) fn retention(raw: &RawRetention, source: &Source<'_>) -> Result<Retention, ConfigError> {
    let range = Range { source, section: "retention" };
    let default = Retention::default();
    Ok(Retention {
        events: range.get(raw.events.as_ref(), "events", default.events, 1_000..=1_000_000_000)?,
    })
}

pub(super) fn limits(raw: &RawLimits, source: &Source<'_>) -> Result<Limits, ConfigError> {
    let range = Range { source, section: "limits" };
    let default = Limits::default();
    let size = |value: Option<&Spanned<u64>>, key, default: usize, allowed| {
        let default = u64::try_from(default).unwrap_or(u64::MAX);
        let number = range.get(value, key, default, allowed)?;
        Ok::<usize, ConfigError>(usize::try_from(number).unwrap_or(usize::MAX))
    };
    let small = |value: Option<&Spanned<u64>>, key, default: u32, allowed| {
        let number = range.get(value, key, u64::from(default), allowed)?;
        Ok::<u32, ConfigError>(u32::try_from(number).unwrap_or(u32::MAX))
    };
    Ok(Limits {
        connections: size(raw.connections.as_ref(), "connections", default.connections, MANY)?,
        streams: small(raw.streams.as_ref(), "streams", default.streams, 1..=65_535)?,
        body_bytes: size(raw.body_bytes.as_ref(), "body_bytes", default.body_bytes, BODY)?,
        watchers: size(raw.watchers.as_ref(), "watchers", default.watchers, MANY)?,
        connections_per_uid: size(
            raw.connections_per_uid.as_ref(),
            "connections_per_uid",
            default.connections_per_uid,
            MANY,
        )?,
        header_bytes: small(
            raw.header_bytes.as_ref(),
            "header_bytes",
            default.header_bytes,
            8_192..=(1 << 20),
        )?,
        waiting_commands: size(
            raw.waiting_commands.as_ref(),
            "waiting_commands",
            default.waiting_commands,
            16..=1_000_000,
        )?,
        handover_connections: size(
            raw.handover_connections.as_ref(),
            "handover_connections",
            default.handover_connections,
            MANY,
        )?,
        handover_connections_per_uid: size(
            raw.handover_connections_per_uid.as_ref(),
            "handover_connections_per_uid",
            default.handover_connections_per_uid,
            MANY,
        )?,
    })
}
