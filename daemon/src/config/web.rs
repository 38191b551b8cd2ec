//! `[web]`: sessions of browsers on the page.

use super::{
    ConfigError,
    error::Source,
    limits::{HOUR_MS, Range},
    raw::RawWeb,
};

/// How long sessions of browsers last, and how many there are.
///
/// # Units
/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Web {
    /// How long a link opens a session.
    pub link_ms: u64,
    /// How long a session lasts that nothing is changed by.
    pub idle_ms: u64,
    /// How long it lasts at most.
    pub session_ms: u64,
    /// Sessions at a time, with the links that may still become one.
    pub sessions: usize,
}

impl Default for Web {
    fn default() -> Self {
        Self { link_ms: 60_000, idle_ms: HOUR_MS / 2, session_ms: 8 * HOUR_MS, sessions: 32 }
    }
}

/// The settings of the file.
pub(super) fn resolve(raw: &RawWeb, source: &Source<'_>) -> Result<Web, ConfigError> {
    let range = Range { source, section: "web" };
    let default = Web::default();
    let sessions = u64::try_from(default.sessions).unwrap_or(u64::MAX);
    let sessions = range.get(raw.sessions.as_ref(), "sessions", sessions, 1..=1024)?;
    let day = 24 * HOUR_MS;
    Ok(Web {
        link_ms: range.get(raw.link_ms.as_ref(), "link_ms", default.link_ms, 1_000..=60_000)?,
        idle_ms: range.get(raw.idle_ms.as_ref(), "idle_ms", default.idle_ms, 1_000..=day)?,
        session_ms: range.get(
            raw.session_ms.as_ref(),
            "session_ms",
            default.session_ms,
            1_000..=day,
        )?,
        sessions: usize::try_from(sessions).unwrap_or(usize::MAX),
    })
}
