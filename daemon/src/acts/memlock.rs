//! `RLIMIT_MEMLOCK` of holders: what they map for their devices is locked in their name.
//!
//! A process may lock 8 MiB by default, and VFIO pins a guest's whole memory. So the holder's limit
//! is raised at the hand-over to what its reservation says, by the helper. It is never lowered: it
//! ends with the process.

use berth_host::Act;
use berth_ownership::{
    Delivery, HolderProcess, Order, Reason, Refusal, Reservation, ReservationState,
};

use super::{revoke::start_time, tools::Tools};

/// What a VMM maps beside the guest's memory: firmware, option ROMs, a display's memory.
pub(crate) const SLACK_BYTES: u64 = 256 << 20;

/// Raises the limit of the process where the reservation says how much memory it will map, and it
/// may lock less. An order that will be refused raises nothing.
///
/// # Errors
/// `MEMLOCK_LIMIT` with the numbers.
pub(crate) fn raise(
    tools: &Tools,
    record: &Reservation,
    order: &Order,
    process: &HolderProcess,
) -> Result<(), Box<Refusal>> {
    let Some(wanted) = wanted(record, order) else { return Ok(()) };
    let Ok(pid) = i32::try_from(process.pid) else { return Ok(()) };
    let limit = limit_of(pid, process.start_ticks);
    if limit.is_some_and(|limit| limit.allows(wanted)) {
        return Ok(());
    }
    let act = Act::Prlimit { pid, start_time: process.start_ticks, memlock_bytes: wanted };
    match tools.host.perform(&act) {
        Ok(_) => {
            tracing::info!(reservation = %record.id, pid, wanted, "RLIMIT_MEMLOCK raised");
            Ok(())
        }
        Err(error) => {
            tracing::warn!(reservation = %record.id, pid, wanted, %error, "RLIMIT_MEMLOCK stays");
            // Enough for what is stated; what else the VMM maps is a guess.
            match limit {
                Some(limit) if limit.allows(record.memory_bytes) => Ok(()),
                limit => Err(too_low(record, pid, limit, wanted, &error.to_string())),
            }
        }
    }
}

/// What the process must be able to lock; `None` where it maps nothing by itself, says nothing of
/// it, or won't get anything.
fn wanted(record: &Reservation, order: &Order) -> Option<u64> {
    let maps = match record.delivery {
        Delivery::Bound | Delivery::Unbound | Delivery::Node => true,
        Delivery::Held => false,
    };
    let fenced = order.epoch.is_some_and(|epoch| epoch != record.epoch);
    let serves = matches!(
        record.state,
        ReservationState::Reserved | ReservationState::Handed | ReservationState::Held
    );
    (maps && serves && !fenced && record.memory_bytes > 0)
        .then(|| record.memory_bytes.saturating_add(SLACK_BYTES))
}

/// A soft limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Unlimited,
    Bytes(u64),
}

impl Limit {
    fn allows(self, bytes: u64) -> bool {
        match self {
            Self::Unlimited => true,
            Self::Bytes(limit) => limit >= bytes,
        }
    }
}

/// `None` when it can't be read, or the process is another by now.
fn limit_of(pid: i32, start_ticks: u64) -> Option<Limit> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let limit = soft_limit(&text)?;
    (start_time(pid) == Some(start_ticks)).then_some(limit)
}

fn soft_limit(limits: &str) -> Option<Limit> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(Limit::Unlimited),
        number => number.parse().ok().map(Limit::Bytes),
    }
}

fn too_low(
    record: &Reservation,
    pid: i32,
    limit: Option<Limit>,
    wanted: u64,
    why: &str,
) -> Box<Refusal> {
    let has = match limit {
        Some(Limit::Bytes(bytes)) => format!("may lock {bytes} bytes"),
        Some(Limit::Unlimited) | None => "has an unknown RLIMIT_MEMLOCK".to_owned(),
    };
    Refusal::new(
        Reason::MemlockLimit,
        &record.id,
        format!(
            "process {pid} {has} and needs {wanted}: {} of {} and {SLACK_BYTES} for what a VMM \
             maps beside; its RLIMIT_MEMLOCK can't be raised: {why}",
            record.memory_bytes, record.id
        ),
    )
    .with_resolve(vec![
        format!("prlimit --pid {pid} --memlock={wanted}:{wanted}, then fetch again"),
        format!(
            "start the holder with ulimit -l {}, or LimitMEMLOCK={wanted} in its unit",
            wanted.div_ceil(1024)
        ),
        "reserve with less --memory".to_owned(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             15189                15189                processes \n\
                    Max locked memory         8388608              unlimited            bytes     \n";
        assert_eq!(soft_limit(text), Some(Limit::Bytes(8 << 20)));
        let text =
            "Max locked memory         unlimited            unlimited            bytes     \n";
        assert_eq!(soft_limit(text), Some(Limit::Unlimited));
        assert_eq!(soft_limit("Max processes 1 1\n"), None);
        let own = i32::try_from(std::process::id()).unwrap();
        let started = start_time(own).unwrap();
        assert!(limit_of(own, started).is_some());
        assert_eq!(limit_of(own, started + 1), None, "another process by now");
    }

    #[test]
    fn a_limit_allows_what_is_not_more() {
        assert!(Limit::Unlimited.allows(u64::MAX));
        assert!(Limit::Bytes(4096).allows(4096));
        assert!(!Limit::Bytes(4096).allows(4097));
    }
}
