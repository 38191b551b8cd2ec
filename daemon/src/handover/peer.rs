//! Who is at the other end: uid and process, as the kernel says.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use berth_ownership::HolderProcess;
use rustix::{io::Errno, net::sockopt::socket_peercred};

use crate::{
    acts::{holder::process_of, revoke::start_time},
    config::Access,
    model::Role,
};

/// The peer of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its uid when it connected.
    pub(super) uid: u32,
    /// What it may at this socket; `None` shuts it out.
    pub(super) role: Option<Role>,
    /// Its process.
    pub(super) process: HolderProcess,
    pidfd: OwnedFd,
}

impl Peer {
    /// Asks the kernel who connected.
    ///
    /// # Errors
    /// ESRCH when the process is gone already, or its pid is another's by now.
    pub(super) fn of(socket: impl AsFd, access: &Access) -> Result<Self, Errno> {
        let credentials = socket_peercred(&socket)?;
        let uid = credentials.uid.as_raw();
        let pid = credentials.pid.as_raw_nonzero().get();
        let (process, opened) = process_of(pid)?;
        let pidfd = match berth_uapi::peer_pidfd(&socket) {
            // The kernel's own descriptor can't be of a later process with the same pid; as it
            // names this pid and runs, what was read by the pid was about the same process.
            Ok(pidfd) if pid_of(&pidfd) == Some(pid) => pidfd,
            Ok(_) => return Err(Errno::SRCH),
            // Before 6.5: a pid that changed hands since the connect shows by its start time.
            Err(error) if error.errno == Errno::NOPROTOOPT => opened,
            Err(error) => return Err(error.errno),
        };
        if start_time(pid) != Some(process.start_ticks) {
            return Err(Errno::SRCH);
        }
        Ok(Self { uid, role: access.role_of(Some(uid)), process, pidfd })
    }

    /// A duplicate of its pidfd, for the watch.
    ///
    /// # Errors
    /// EMFILE.
    pub(super) fn pidfd(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.pidfd, 3)
    }
}

/// A process that a client names as the holder.
#[derive(Debug)]
pub(super) struct Named {
    /// Whose it is: the uid that its file accesses count as.
    pub(super) uid: u32,
    pub(super) process: HolderProcess,
    pub(super) pidfd: OwnedFd,
}

/// The process that a pidfd names.
///
/// # Errors
/// EINVAL for a descriptor that isn't a pidfd; ESRCH when the process is gone.
pub(super) fn named(pidfd: &OwnedFd) -> Result<Named, Errno> {
    let pid = pid_of(pidfd).ok_or(Errno::INVAL)?;
    let (process, kept) = process_of(pid)?;
    let uid = effective_uid(pid).ok_or(Errno::SRCH)?;
    // Still the process that the client's descriptor names: that one answers -1 once it is gone.
    if pid_of(pidfd) != Some(pid) {
        return Err(Errno::SRCH);
    }
    Ok(Named { uid, process, pidfd: kept })
}

/// The owner of `/proc/PID` won't do: it is root's for a process that can't be dumped, as one that
/// gave its rights up.
fn effective_uid(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The pid that a pidfd names; `None` for another descriptor, or when the process is reaped.
fn pid_of(pidfd: &OwnedFd) -> Option<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(path).ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    pid.trim().parse().ok().filter(|pid| *pid > 0)
}
