//! Who is at the other end: uid and process, as the kernel says.

use std::os::fd::{AsFd, OwnedFd};

use berth_ownership::HolderProcess;
use rustix::{
    io::Errno,
    net::sockopt::socket_peercred,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::acts::{holder::process_of, revoke::start_time};

/// The peer of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its uid when it connected.
    pub(super) uid: u32,
    /// Its process.
    pub(super) process: HolderProcess,
    pidfd: OwnedFd,
}

impl Peer {
    /// Asks the kernel who connected.
    ///
    /// # Errors
    /// ESRCH when the process is gone already, or its pid is another's by now.
    pub(super) fn of(socket: impl AsFd) -> Result<Self, Errno> {
        let credentials = socket_peercred(&socket)?;
        let pid = credentials.pid.as_raw_nonzero().get();
        let (process, pidfd) = process_of(pid)?;
        // The pid was taken at connect(2). A process that started after the pidfd was opened
        // can't be the one meant; one that still has the same start time is.
        if start_time(pid) != Some(process.start_ticks) {
            return Err(Errno::SRCH);
        }
        Ok(Self { uid: credentials.uid.as_raw(), process, pidfd })
    }

    /// A duplicate of its pidfd, for the watch.
    ///
    /// # Errors
    /// EMFILE.
    pub(super) fn pidfd(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.pidfd, 3)
    }
}

/// The process that a client names as the holder by its pidfd, if it is the same user's.
///
/// # Errors
/// EINVAL for a descriptor that isn't a pidfd; ESRCH when the process is gone; EACCES when it is
/// another user's.
pub(super) fn named(pidfd: &OwnedFd, uid: u32) -> Result<(HolderProcess, OwnedFd), Errno> {
    use std::os::{fd::AsRawFd, unix::fs::MetadataExt};
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(path).map_err(|_| Errno::INVAL)?;
    let pid: i32 = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse().ok())
        .ok_or(Errno::INVAL)?;
    let raw = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    let owner = std::fs::metadata(format!("/proc/{pid}")).map_err(|_| Errno::SRCH)?.uid();
    if owner != uid {
        return Err(Errno::ACCESS);
    }
    let (process, _) = process_of(pid)?;
    let kept = pidfd_open(raw, PidfdFlags::empty())?;
    Ok((process, kept))
}
