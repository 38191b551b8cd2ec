//! What is in force of the configuration.

use std::path::PathBuf;

/// What is in force of the configuration, and what isn't.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigState {
    /// The file; `None` where there is none.
    pub file: Option<PathBuf>,
    /// Since when it is in force.
    pub since_unix_ms: u64,
    /// When a later one was refused, and why.
    pub refused: Option<(u64, String)>,
    /// What it says otherwise than what runs, and a restart would change.
    pub needs_restart: Vec<String>,
}
