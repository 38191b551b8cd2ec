//! The clocks: wall time for records and epochs, boot time for leases.

use berth_ownership::{BootId, Time, UnixMs};
use rustix::time::{ClockId, clock_gettime};

use crate::view::Boot;

/// Reads the clocks of this boot.
#[derive(Debug, Clone)]
pub struct Clock {
    boot_id: BootId,
}

impl Clock {
    /// The clocks of a boot.
    #[must_use]
    pub fn new(boot_id: &str) -> Self {
        Self { boot_id: BootId::new(boot_id) }
    }

    /// This boot.
    #[must_use]
    pub fn boot_id(&self) -> &BootId {
        &self.boot_id
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Time {
        Time {
            unix_ms: UnixMs(millis(ClockId::Realtime)),
            boot_ms: millis(ClockId::Boottime),
            boot_id: self.boot_id.clone(),
        }
    }
}

fn millis(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// How far the offset between the clocks may wander before times are shown by a new one.
const OFFSET_SLACK_MS: u64 = 500;

impl Clock {
    /// How boot time relates to wall time: as `before`, unless the wall clock was set since.
    #[must_use]
    pub(super) fn boot(&self, before: Option<&Boot>) -> Boot {
        let now = self.now();
        let offset_ms =
            i64::try_from(i128::from(now.unix_ms.0) - i128::from(now.boot_ms)).unwrap_or(0);
        match before {
            Some(boot) if boot.offset_ms.abs_diff(offset_ms) <= OFFSET_SLACK_MS => boot.clone(),
            Some(_) | None => Boot { id: self.boot_id.as_str().into(), offset_ms },
        }
    }
}
