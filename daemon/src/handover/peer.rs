//! Who is at the other end: uid and process, as the kernel says.

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::OnceLock,
};

use berth_ownership::HolderProcess;
use rustix::{io::Errno, net::UCred};

use super::House;
use crate::{
    acts::{holder::process_of, revoke::start_time, watched::identity},
    listen::ground,
    model::{Payer, PeerId, Quotas, Role},
};

/// What a peer may, and on what ground.
#[derive(Debug)]
pub(super) struct PeerStanding {
    pub(super) role: Option<Role>,
    pub(super) tenant: Option<String>,
    pub(super) ground: String,
}

/// The peer of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its uid when it connected.
    pub(super) uid: u32,
    /// What it may at this socket, by rules that may change.
    house: House,
    /// Its gid, and the others where something asks for them.
    gids: Vec<u32>,
    pid: i32,
    pidfd: OwnedFd,
    /// Found out when it is asked for, as that means to read `/proc`.
    process: OnceLock<HolderProcess>,
}

impl Peer {
    /// Asks the kernel which process connected as this caller.
    ///
    /// # Errors
    /// ESRCH when the process is gone already, or its pid is another's by now.
    pub(super) fn of(
        socket: impl AsFd,
        credentials: &UCred,
        house: &House,
        quotas: &Quotas,
    ) -> Result<Self, Errno> {
        let uid = credentials.uid.as_raw();
        let mut gids = vec![credentials.gid.as_raw()];
        if house.access.get().asks_for_groups() || quotas.asks_for_groups() {
            gids.extend(berth_uapi::peer_groups(&socket).map_err(|error| error.errno)?);
        }
        let house = house.clone();
        let pid = credentials.pid.as_raw_nonzero().get();
        match berth_uapi::peer_pidfd(&socket) {
            Ok(pidfd) => Ok(Self { uid, house, gids, pid, pidfd, process: OnceLock::new() }),
            // Before 6.5: a pid that changed hands since the connect shows by its start time.
            Err(error) if error.errno == Errno::NOPROTOOPT => {
                let (process, pidfd) = process_of(pid)?;
                if start_time(pid) != Some(process.start_ticks) {
                    return Err(Errno::SRCH);
                }
                Ok(Self { uid, house, gids, pid, pidfd, process: process.into() })
            }
            Err(error) => Err(error.errno),
        }
    }

    /// Its process.
    ///
    /// # Errors
    /// ESRCH when it is gone.
    pub(super) fn process(&self) -> Result<&HolderProcess, Errno> {
        if let Some(process) = self.process.get() {
            return Ok(process);
        }
        let (process, _) = process_of(self.pid)?;
        // The kernel's own descriptor can't be of a later process with the same pid; as it still names
        // this pid, what was read by the pid was about the same process.
        if pid_of(&self.pidfd) != Some(self.pid) {
            return Err(Errno::SRCH);
        }
        Ok(self.process.get_or_init(|| process))
    }

    /// What tells its process from all others, where the kernel has that.
    pub(super) fn identity(&self) -> Option<u64> {
        identity(&self.pidfd)
    }

    /// Its pid when it connected, to name it by.
    pub(super) const fn pid(&self) -> i32 {
        self.pid
    }

    /// Whose quotas count for what it asks.
    pub(super) fn payer(&self) -> Payer {
        let (identity, gids) = (format!("uid:{}", self.uid), self.gids.clone());
        Payer { identity, gids, tenant: self.standing().tenant }
    }

    /// Its role now, by which rule, and the label that it is confined to.
    pub(super) fn standing(&self) -> PeerStanding {
        let access = self.house.access.get();
        let (role, rule) = access.grant(PeerId::Unix { uid: self.uid, gids: &self.gids });
        let tenant = access.tenant(rule).map(str::to_owned);
        PeerStanding { role, tenant, ground: ground(rule) }
    }

    /// What it may at this socket; `None` shuts it out.
    pub(super) fn role(&self) -> Option<Role> {
        self.standing().role
    }

    /// The socket that it came to.
    pub(super) fn at(&self) -> &str {
        &self.house.at
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
    /// Whose it is.
    pub(super) uid: u32,
    pub(super) process: HolderProcess,
    pub(super) pidfd: OwnedFd,
}

/// Why a descriptor doesn't name a holder.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It isn't a pidfd, or its process is gone.
    NoProcess(Errno),
    /// The process is of several users: its user may not say what becomes of it.
    SeveralUsers(i32),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProcess(errno) => write!(f, "no living process: {errno}"),
            Self::SeveralUsers(pid) => write!(
                f,
                "the real, effective, saved and file system uid of process {pid} aren't all the same"
            ),
        }
    }
}

/// The process that a pidfd names.
///
/// # Errors
/// EINVAL for a descriptor that isn't a pidfd; ESRCH when the process is gone; a process of several
/// users.
pub(super) fn named(pidfd: &OwnedFd) -> Result<Named, Unfit> {
    let pid = pid_of(pidfd).ok_or(Unfit::NoProcess(Errno::INVAL))?;
    let (process, kept) = process_of(pid).map_err(Unfit::NoProcess)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    let uids = status.ok().and_then(|status| uids(&status));
    // Still the process that the client's descriptor names: that one answers -1 once it is gone.
    let uids = uids.filter(|_| pid_of(pidfd) == Some(pid)).ok_or(Unfit::NoProcess(Errno::SRCH))?;
    let [uid, others @ ..] = uids;
    if others.iter().any(|other| *other != uid) {
        return Err(Unfit::SeveralUsers(pid));
    }
    Ok(Named { uid, process, pidfd: kept })
}

/// The real, effective, saved and file system uid. The owner of `/proc/PID` won't do: it is root's
/// for a process that can't be dumped, as one that gave its rights up.
fn uids(status: &str) -> Option<[u32; 4]> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let uids: Result<Vec<u32>, _> = line.split_ascii_whitespace().map(str::parse).collect();
    uids.ok()?.try_into().ok()
}

/// The pid that a pidfd names; `None` for another descriptor, or when the process is reaped.
fn pid_of(pidfd: &OwnedFd) -> Option<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(path).ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    pid.trim().parse().ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_several_users_is_told_from_one_of_one() {
        let status =
            |uids: &str| format!("Name:\tUid: 1 1 1 1\nUmask:\t0022\nUid:\t{uids}\nGid:\t0\n");
        assert_eq!(uids(&status("7\t7\t7\t7")), Some([7; 4]));
        assert_eq!(uids(&status("0\t7\t0\t7")), Some([0, 7, 0, 7]));
        for bad in ["", "7", "7 7 7", "7 7 7 7 7", "7 7 7 -1"] {
            assert_eq!(uids(&status(bad)), None, "{bad}");
        }
    }
}
