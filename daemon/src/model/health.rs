//! What is known of the health of devices, and what a site makes of it.

use std::time::Duration;

use berth_host::Health;

/// What a site makes of the condition of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConditionRules {
    /// Whether degraded devices are refused to new reservations, not only warned of.
    pub refuse_degraded: bool,
    /// Whether failed ones are.
    pub refuse_failed: bool,
    /// How often devices are looked at.
    pub poll: Duration,
    /// After how long without new errors those before don't count any more.
    pub quiet: Duration,
}

impl Default for ConditionRules {
    fn default() -> Self {
        Self {
            refuse_degraded: false,
            refuse_failed: true,
            poll: Duration::from_secs(10),
            quiet: Duration::from_secs(3600),
        }
    }
}

/// What a device showed when it was looked at last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShownHealth {
    /// As the host has it.
    pub health: Health,
    /// What is worth knowing and stands against nobody.
    pub notes: Vec<String>,
}
