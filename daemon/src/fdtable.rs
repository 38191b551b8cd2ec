//! Room in the process's table of open files.

use std::os::fd::AsFd;

use rustix::io::{Errno, fcntl_dupfd_cloexec};

/// Descriptors that there is room for from the start: each connection and each holder's process takes
/// one.
const ROOM: i32 = 4096;

/// Makes the table large at once, to be called before the first thread is started. Where the limit of
/// open files is lower, to that. `any` is some descriptor that is open.
///
/// # Errors
/// The process may open nothing more.
///
/// # Kernel
/// `expand_fdtable` of `fs/file.c` doubles a table that is full. Where threads share it, whoever opens
/// one descriptor more waits for `synchronize_rcu`, which takes some 10 ms; the table never shrinks. For
/// 4,096 descriptors it has 33 KiB.
pub fn make_room(any: impl AsFd) -> Result<(), Errno> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let most = limit.and_then(|limit| i32::try_from(limit).ok()).unwrap_or(ROOM).min(ROOM);
    fcntl_dupfd_cloexec(any, most.saturating_sub(1)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `FDSize` of `/proc/PID/status`: how many descriptors the table has room for.
    fn room() -> i32 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        line.trim().parse().unwrap()
    }

    #[test]
    fn there_is_room_afterwards_and_nothing_stays_open() {
        make_room(std::io::stderr()).unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let least = limit.and_then(|it| i32::try_from(it).ok()).unwrap_or(ROOM).min(ROOM);
        assert!(room() >= least, "{} of {least}", room());
        let last = format!("/proc/self/fd/{}", least - 1);
        assert!(!std::path::Path::new(&last).exists(), "{last} is open");
    }
}
