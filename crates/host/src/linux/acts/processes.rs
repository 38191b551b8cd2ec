//! Acts on processes: each names its process by pid and start time, so that a pid that was used
//! again is never hit.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    process::{self, Pid, PidfdFlags, Resource, Rlimit, Signal},
};

use crate::{
    HostError,
    linux::{
        procs,
        tree::{self, Root, file_error},
    },
};

/// Raises `RLIMIT_MEMLOCK`; a limit that is already as high stays.
pub(super) fn raise_memlock(
    root: &Root,
    pid: i32,
    start_time: u64,
    memlock_bytes: u64,
) -> Result<(), HostError> {
    let (id, _alive) = exactly(root, pid, start_time)?;
    let failed = |errno| file_error("prlimit", format!("process {pid}"), errno);
    let wanted = match memlock(root, pid) {
        Some(limits) if limits.allows(memlock_bytes) => return Ok(()),
        Some(Memlock { hard, .. }) => Rlimit {
            current: Some(memlock_bytes),
            maximum: hard.map(|hard| hard.max(memlock_bytes)),
        },
        None => Rlimit { current: Some(memlock_bytes), maximum: Some(memlock_bytes) },
    };
    process::prlimit(Some(id), Resource::Memlock, wanted).map_err(failed)?;
    // It can't have been another process: the pid was ours before, and still is.
    exactly(root, pid, start_time).map(drop)
}

struct Memlock {
    soft: Option<u64>,
    hard: Option<u64>,
}

impl Memlock {
    fn allows(&self, bytes: u64) -> bool {
        let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= bytes);
        enough(self.soft) && enough(self.hard)
    }
}

fn memlock(root: &Root, pid: i32) -> Option<Memlock> {
    let text = std::fs::read_to_string(root.join(&format!("proc/{pid}/limits"))).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    let mut fields = line.split_whitespace();
    let mut limit = || match fields.next()? {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    };
    Some(Memlock { soft: limit()?, hard: limit()? })
}

/// Sends one of the signals that ending a claim needs.
pub(super) fn kill(root: &Root, pid: i32, start_time: u64, signal: i32) -> Result<(), HostError> {
    let wanted = [Signal::STOP, Signal::CONT, Signal::TERM, Signal::KILL]
        .into_iter()
        .find(|known| known.as_raw() == signal)
        .ok_or_else(|| file_error("send", format!("signal {signal}"), Errno::INVAL))?;
    let (_, pidfd) = exactly(root, pid, start_time)?;
    process::pidfd_send_signal(&pidfd, wanted)
        .map_err(|errno| file_error("kill", format!("process {pid}"), errno))
}

/// The process with this pid and start time, and a pidfd of it.
///
/// # Errors
/// ESRCH when there is none; EINVAL for pids that no holder has.
fn exactly(root: &Root, pid: i32, start_time: u64) -> Result<(Pid, OwnedFd), HostError> {
    let failed = |errno| file_error("find", format!("process {pid}"), errno);
    let id = Pid::from_raw(pid).filter(|_| pid > 1).ok_or_else(|| failed(Errno::INVAL))?;
    let pidfd = process::pidfd_open(id, PidfdFlags::empty()).map_err(failed)?;
    // Looked at after the pidfd was opened: if the pid still is that process's, the pidfd is too.
    match start_time_of(root, pid) {
        Ok(found) if found == start_time => Ok((id, pidfd)),
        _ => Err(failed(Errno::SRCH)),
    }
}

fn start_time_of(root: &Root, pid: i32) -> Result<u64, Errno> {
    procs::start_time_at(tree::open_dir(&root.join(&format!("proc/{pid}")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_limited_and_killed_by_its_start_time_only() {
        let root = Root::new("/");
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start = start_time_of(&root, pid).unwrap();
        let errno = |answer: Result<(), HostError>| answer.unwrap_err().errno();
        let gone = Some(Errno::SRCH.raw_os_error());
        assert_eq!(errno(kill(&root, pid, start + 1, 9)), gone);
        assert_eq!(errno(raise_memlock(&root, pid, start + 1, 1 << 20)), gone);
        assert_eq!(errno(kill(&root, pid, start, 10)), Some(Errno::INVAL.raw_os_error()));
        assert_eq!(errno(kill(&root, 1, start, 9)), Some(Errno::INVAL.raw_os_error()));
        kill(&root, pid, start, 9).unwrap();
        assert!(!child.wait().unwrap().success());
        assert_eq!(errno(kill(&root, pid, start, 9)), gone);
    }

    #[test]
    fn a_limit_that_is_high_enough_stays() {
        let root = Root::new("/");
        let me = std::process::id();
        let pid = i32::try_from(me).unwrap();
        let before = memlock(&root, pid).unwrap();
        raise_memlock(&root, pid, start_time_of(&root, pid).unwrap(), 4096).unwrap();
        let after = memlock(&root, pid).unwrap();
        assert_eq!((before.soft, before.hard), (after.soft, after.hard));
    }
}
