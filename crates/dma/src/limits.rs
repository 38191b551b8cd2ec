//! What limit stands in the way of locking memory.

use berth_uapi::RlimitMode;
use rustix::process::{Resource, getrlimit, getuid};

use crate::error::DmaError;

/// The kernel's number of the capability that lifts the limit.
const CAP_IPC_LOCK: u32 = 14;

/// The limit on locked memory of this process, and how much of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memlock {
    /// The limit; `None` where there is none for this process.
    pub limit_kib: Option<u64>,
    /// What is locked already, as far as it can be read.
    pub locked_kib: u64,
    /// Whose limit it is.
    pub uid: u32,
    /// Whether it is counted for all processes of the user together, or for this one.
    pub mode: RlimitMode,
}

impl Memlock {
    /// Asks `/proc`. `mode` says how the back end counts.
    pub(crate) fn read(mode: RlimitMode) -> Self {
        let own = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let uid = getuid().as_raw();
        let limit = getrlimit(Resource::Memlock).current.filter(|_| !may_lock_anything(&own));
        let locked_kib = match mode {
            RlimitMode::Process => locked_by(&own),
            RlimitMode::User => locked_by_user(uid).max(locked_by(&own)),
        };
        Self { limit_kib: limit.map(|bytes| bytes / 1024), locked_kib, uid, mode }
    }

    /// Why so many bytes more can't be locked, if that is so.
    pub(crate) fn refuses(&self, length: u64) -> Option<DmaError> {
        let limit_kib = self.limit_kib?;
        let needs_kib = self.needs(length);
        (needs_kib > limit_kib).then(|| self.error(length, limit_kib))
    }

    /// Explains an `ENOMEM`: the kernel counts what can't be read here, so that it may have refused
    /// less than the limit.
    pub(crate) fn explain(&self, length: u64) -> Option<DmaError> {
        Some(self.error(length, self.limit_kib?))
    }

    fn needs(&self, length: u64) -> u64 {
        self.locked_kib.saturating_add(length.div_ceil(1024))
    }

    fn error(&self, length: u64, limit_kib: u64) -> DmaError {
        let Self { locked_kib, uid, .. } = *self;
        DmaError::Memlock { length, needs_kib: self.needs(length), limit_kib, locked_kib, uid }
    }
}

fn may_lock_anything(status: &str) -> bool {
    let effective = field(status, "CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    effective.is_some_and(|capabilities| capabilities & (1 << CAP_IPC_LOCK) != 0)
}

/// What a process has locked. Pinned memory shows in one or both counters, by back end and mode.
fn locked_by(status: &str) -> u64 {
    let number = |name| field(status, name).and_then(|text| text.parse::<u64>().ok());
    number("VmLck:").unwrap_or(0).max(number("VmPin:").unwrap_or(0))
}

/// What the processes of a user have locked that this one may look at.
fn locked_by_user(uid: u32) -> u64 {
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let statuses = processes.flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.parse::<u32>().ok()?;
        std::fs::read_to_string(entry.path().join("status")).ok()
    });
    let of_user = statuses
        .filter(|status| field(status, "Uid:").and_then(|text| text.parse().ok()) == Some(uid));
    of_user.map(|status| locked_by(&status)).sum()
}

/// The first word after `name` in a file of `name: value` lines.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tvmm\nVmLck:\t       4 kB\nVmPin:\t    1024 kB\nCapEff:\t";

    #[test]
    fn tells_need_and_limit() {
        let memlock = Memlock {
            limit_kib: Some(8192),
            locked_kib: locked_by(STATUS),
            uid: 1000,
            mode: RlimitMode::User,
        };
        let error = memlock.refuses(16 << 20).expect("a limit");
        let (needs_kib, limit_kib, locked_kib) = (1024 + 16384, 8192, 1024);
        let length = 16 << 20;
        let wanted = DmaError::Memlock { length, needs_kib, limit_kib, locked_kib, uid: 1000 };
        assert_eq!(error, wanted);
        let text = error.to_string();
        assert!(text.contains("17408 KiB") && text.contains("already has 1024"), "{text}");
        assert_eq!(memlock.refuses(7 << 20), None);
    }

    #[test]
    fn is_not_blamed_on_who_may_lock_anything() {
        assert!(may_lock_anything(&format!("{STATUS}0000000000004000\n")));
        assert!(!may_lock_anything(&format!("{STATUS}0000000000000000\n")));
        let memlock = Memlock { limit_kib: None, locked_kib: 0, uid: 0, mode: RlimitMode::User };
        assert_eq!((memlock.refuses(u64::MAX), memlock.explain(1)), (None, None));
    }

    #[test]
    fn counts_what_is_this_users() {
        let own = Memlock::read(RlimitMode::Process);
        assert!(Memlock::read(RlimitMode::User).locked_kib >= own.locked_kib);
        assert_eq!(own.uid, getuid().as_raw());
    }
}
