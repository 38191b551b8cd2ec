//! What limit stood in the way of locking memory.

use rustix::process::{Resource, getrlimit, getuid};

use crate::error::DmaError;

/// The kernel's number of the capability that lifts the limit.
const CAP_IPC_LOCK: u32 = 14;

/// Explains an `ENOMEM` by the limit on locked memory, where that can be the cause.
///
/// The count behind the limit is kept per process or per user, depending on the back end; what
/// can be read is the process's own, so the need shown is the least it can be.
pub(crate) fn memlock(length: u64) -> Option<DmaError> {
    let limit = getrlimit(Resource::Memlock).current?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    explain(length, limit, &status, getuid().as_raw())
}

fn explain(length: u64, limit: u64, status: &str, uid: u32) -> Option<DmaError> {
    let capabilities = field(status, "CapEff:")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .unwrap_or_default();
    if capabilities & (1 << CAP_IPC_LOCK) != 0 {
        return None;
    }
    let number = |name| field(status, name).and_then(|text| text.parse::<u64>().ok());
    // Pinned memory shows in one or both, by back end and mode.
    let locked_kib = number("VmLck:").unwrap_or(0).max(number("VmPin:").unwrap_or(0));
    let needs_kib = locked_kib.saturating_add(length.div_ceil(1024));
    Some(DmaError::Memlock { length, needs_kib, limit_kib: limit / 1024, uid })
}

/// The first word after `name` in a file of `name: value` lines.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tvmm\nVmLck:\t       4 kB\nVmPin:\t    1024 kB\nCapEff:\t";

    #[test]
    fn tells_need_and_limit() {
        let status = format!("{STATUS}0000000000000000\n");
        let error = explain(16 << 20, 8 << 20, &status, 1000).expect("a limit");
        let (needs_kib, limit_kib) = (1024 + 16384, 8192);
        assert_eq!(error, DmaError::Memlock { length: 16 << 20, needs_kib, limit_kib, uid: 1000 });
        assert!(error.to_string().contains("17408 KiB"), "{error}");
    }

    #[test]
    fn is_not_blamed_on_who_may_lock_anything() {
        let status = format!("{STATUS}0000000000004000\n");
        assert_eq!(explain(1, 0, &status, 0), None);
    }
}
