//! What a device shows of its health.

use serde::{Deserialize, Serialize};

/// What a device shows of its health, as far as it can be asked without waking it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// `power_state`: `D0`, `D1`, `D2`, `D3hot`, `D3cold`, `unknown`, `error`; empty where it isn't told.
    ///
    /// # Kernel
    /// The core's own note, `pdev->current_state`: reading it touches no hardware. A function without
    /// a driver is `unknown`.
    pub power_state: String,
    /// `power/runtime_status`: `active`, `suspended`, `suspending`, `resuming`, `error`,
    /// `unsupported`; empty where it isn't told. Touches no hardware.
    pub runtime_status: String,
    /// What was counted since the device appeared; `None` without Advanced Error Reporting.
    pub aer: Option<AerCounters>,
    /// Whether the configuration space answers; `None` where it wasn't asked.
    pub answers: Option<bool>,
    /// The link to the port above; `None` where there is none, or it wasn't asked.
    pub link: Option<LinkState>,
}

impl Health {
    /// Whether the device sleeps, so that asking it more would wake it.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        matches!(self.runtime_status.as_str(), "suspended" | "suspending" | "resuming")
            || self.power_state.starts_with("D3")
    }
}

/// Errors that Advanced Error Reporting counted, by severity.
///
/// # Kernel
/// `aer_dev_correctable`, `aer_dev_nonfatal`, `aer_dev_fatal`: counters of the core, 0 when the device
/// appears. Reading them touches no hardware.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AerCounters {
    /// Corrected by the hardware.
    pub correctable: u64,
    /// Uncorrectable: a transaction was lost.
    pub nonfatal: u64,
    /// Uncorrectable: the link isn't reliable any more.
    pub fatal: u64,
}

/// A width and a speed of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkRate {
    /// Lanes; 0 where that is unknown.
    pub width: u8,
    /// Mega-transfers a second: 2500, 5000, 8000, 16000, …; 0 where that is unknown.
    pub speed: u32,
}

/// A link as it runs, and as it could.
///
/// # Kernel
/// Each is a read of the link's registers, so the device and the port above have to be awake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkState {
    /// How it runs: `current_link_width`, `current_link_speed`.
    pub current: LinkRate,
    /// What the device could do: `max_link_width`, `max_link_speed`.
    pub device: LinkRate,
    /// What the port above could do; `None` where it isn't told.
    pub port: Option<LinkRate>,
}

impl LinkState {
    /// The best that device and port can do together: a card in a slot that is too narrow for it
    /// is no fault of either.
    #[must_use]
    pub fn reachable(&self) -> LinkRate {
        let port = self.port.unwrap_or_default();
        LinkRate {
            width: lesser(self.device.width, port.width),
            speed: lesser(self.device.speed, port.speed),
        }
    }
}

/// The lesser of two, of which 0 is unknown.
fn lesser<T: Ord + Default>(one: T, other: T) -> T {
    let unknown = T::default();
    match (one == unknown, other == unknown) {
        (true, _) => other,
        (_, true) => one,
        _ => one.min(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(width: u8, speed: u32) -> LinkRate {
        LinkRate { width, speed }
    }

    #[test]
    fn a_link_reaches_what_both_of_its_ends_can_do() {
        let wide = rate(16, 16_000);
        for (port, reachable) in [
            (None, wide),
            (Some(rate(0, 0)), wide),
            (Some(rate(8, 8_000)), rate(8, 8_000)),
            (Some(rate(32, 8_000)), rate(16, 8_000)),
            (Some(rate(8, 32_000)), rate(8, 16_000)),
        ] {
            let link = LinkState { current: rate(1, 2_500), device: wide, port };
            assert_eq!(link.reachable(), reachable, "{port:?}");
        }
        let unknown = LinkState { port: Some(rate(8, 8_000)), ..LinkState::default() };
        assert_eq!(unknown.reachable(), rate(8, 8_000));
    }

    #[test]
    fn what_sleeps_is_left_alone() {
        for (runtime_status, power_state, asleep) in [
            ("active", "D0", false),
            ("active", "unknown", false),
            ("", "", false),
            ("unsupported", "D0", false),
            ("suspended", "D3cold", true),
            ("suspended", "D0", true),
            ("resuming", "D3hot", true),
            ("active", "D3hot", true),
        ] {
            let health = Health {
                power_state: power_state.to_owned(),
                runtime_status: runtime_status.to_owned(),
                ..Health::default()
            };
            assert_eq!(health.is_asleep(), asleep, "{runtime_status} {power_state}");
        }
    }
}
