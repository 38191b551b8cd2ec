//! The shape of `berthd.toml`. Unknown keys are refused; meanings are given in `check`.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::error::{ConfigError, Source};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) host: Option<Spanned<String>>,
    pub(super) sysfs_root: Option<PathBuf>,
    pub(super) state_dir: Option<Spanned<PathBuf>>,
    pub(super) helper: Option<Spanned<PathBuf>>,
    pub(super) helper_socket: Option<Spanned<PathBuf>>,
    #[serde(default)]
    pub(super) listen: Vec<Spanned<RawListener>>,
    #[serde(default)]
    pub(super) timeouts: RawTimeouts,
    #[serde(default)]
    pub(super) retention: RawRetention,
    #[serde(default)]
    pub(super) limits: RawLimits,
    #[serde(default)]
    pub(super) reset: Vec<RawReset>,
    #[serde(default)]
    pub(super) device: Vec<Spanned<RawDevice>>,
    #[serde(default)]
    pub(super) condition: RawCondition,
    #[serde(default)]
    pub(super) quota: Vec<Spanned<RawQuota>>,
    #[serde(default)]
    pub(super) rate: Vec<Spanned<RawRate>>,
    pub(super) log: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) hardening: RawHardening,
    #[serde(default)]
    pub(super) web: RawWeb,
}

/// `[web]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWeb {
    pub(super) link_ms: Option<Spanned<u64>>,
    pub(super) idle_ms: Option<Spanned<u64>>,
    pub(super) session_ms: Option<Spanned<u64>>,
    pub(super) sessions: Option<Spanned<u64>>,
}

/// `[condition]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCondition {
    pub(super) degraded: Option<Spanned<String>>,
    pub(super) failed: Option<Spanned<String>>,
    pub(super) poll_ms: Option<Spanned<u64>>,
    pub(super) quiet_ms: Option<Spanned<u64>>,
}

/// One `[[listen]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListener {
    pub(super) serve: Spanned<String>,
    pub(super) path: Option<Spanned<PathBuf>>,
    pub(super) address: Option<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) group: Option<Spanned<String>>,
    pub(super) role: Option<Spanned<String>>,
    pub(super) others: Option<Spanned<String>>,
    pub(super) label: Option<Spanned<String>>,
    pub(super) hosts: Option<Spanned<Vec<String>>>,
    pub(super) tls: Option<Spanned<RawTls>>,
    #[serde(default)]
    pub(super) rule: Vec<RawRule>,
}

/// `tls` of a `[[listen]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    pub(super) cert: Spanned<PathBuf>,
    pub(super) key: Spanned<PathBuf>,
    pub(super) client_ca: Spanned<PathBuf>,
    pub(super) min_version: Option<Spanned<String>>,
}

/// One `[[listen.rule]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRule {
    pub(super) uid: Option<Spanned<u32>>,
    pub(super) gid: Option<Spanned<String>>,
    pub(super) uri: Option<Spanned<String>>,
    pub(super) role: Spanned<String>,
    pub(super) label: Option<Spanned<String>>,
}

/// `[timeouts]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTimeouts {
    pub(super) wait_ms: Option<Spanned<u64>>,
    pub(super) act_ms: Option<Spanned<u64>>,
    pub(super) header_ms: Option<Spanned<u64>>,
    pub(super) handshake_ms: Option<Spanned<u64>>,
    pub(super) body_ms: Option<Spanned<u64>>,
    pub(super) drain_ms: Option<Spanned<u64>>,
    pub(super) rescan_ms: Option<Spanned<u64>>,
}

/// `[retention]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRetention {
    pub(super) events: Option<Spanned<u64>>,
}

/// `[limits]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) connections: Option<Spanned<u64>>,
    pub(super) streams: Option<Spanned<u64>>,
    pub(super) body_bytes: Option<Spanned<u64>>,
    pub(super) watchers: Option<Spanned<u64>>,
    pub(super) connections_per_uid: Option<Spanned<u64>>,
    pub(super) header_bytes: Option<Spanned<u64>>,
    pub(super) waiting_commands: Option<Spanned<u64>>,
    pub(super) handover_connections: Option<Spanned<u64>>,
    pub(super) handover_connections_per_uid: Option<Spanned<u64>>,
}

/// One `[[reset]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawReset {
    pub(super) class: Spanned<String>,
    pub(super) policy: Spanned<String>,
}

/// One `[[device]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDevice {
    pub(super) verdict: Spanned<String>,
    pub(super) class: Option<Spanned<String>>,
    pub(super) vendor: Option<Spanned<String>>,
    pub(super) address: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) note: String,
}

/// One `[[quota]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawQuota {
    pub(super) uid: Option<Spanned<u32>>,
    pub(super) gid: Option<Spanned<String>>,
    pub(super) uri: Option<Spanned<String>>,
    pub(super) label: Option<Spanned<String>>,
    pub(super) reservations: Option<u64>,
    pub(super) dma_entries: Option<u64>,
    pub(super) pinned_bytes: Option<u64>,
}

/// One `[[rate]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRate {
    pub(super) uid: Option<Spanned<u32>>,
    pub(super) gid: Option<Spanned<String>>,
    pub(super) uri: Option<Spanned<String>>,
    pub(super) label: Option<Spanned<String>>,
    pub(super) commands_per_s: Option<Spanned<u32>>,
    pub(super) commands_burst: Option<Spanned<u32>>,
    pub(super) reads_per_s: Option<Spanned<u32>>,
    pub(super) reads_burst: Option<Spanned<u32>>,
}

/// `[hardening]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHardening {
    pub(super) seccomp: Option<Spanned<String>>,
    pub(super) landlock: Option<Spanned<String>>,
}

/// Reads the text. The error names the line and the key.
pub(super) fn parse(source: &Source<'_>) -> Result<RawConfig, ConfigError> {
    toml::from_str(source.text).map_err(|error| {
        let span = error.span();
        let key = source.key_at(span.as_ref());
        let message = error.message().trim().replace('\n', " ");
        let way_out = if message.contains("unknown field") {
            "correct the key's spelling or remove it"
        } else if message.contains("missing field") {
            "add the key"
        } else if message.contains("invalid type") {
            "give it a value of the type that is expected"
        } else {
            "correct the line"
        };
        source.error(span, &key, message, way_out)
    })
}
