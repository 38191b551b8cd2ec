//! Which processes are watched for which reservation, and until when: a holder may live much longer
//! than what it held.

use std::{
    collections::{HashMap, hash_map::Entry},
    os::fd::AsFd,
    sync::{Mutex, OnceLock},
};

use berth_ownership::{HolderProcess, ReservationId};
use rustix::fs::{FsWord, fstat, fstatfs};
use tokio_util::sync::CancellationToken;

use super::runtime::lock;

/// `PIDFS_MAGIC` of `linux/magic.h`.
const PIDFS: FsWord = 0x5049_4446;

/// What tells a process from every other of this boot, by a descriptor of it.
///
/// # Kernel
/// The inode of a pidfd on pidfs (6.9). Before that all pidfds have the same one; then it is `None`.
pub(crate) fn identity(pidfd: impl AsFd) -> Option<u64> {
    static HAS_PIDFS: OnceLock<bool> = OnceLock::new();
    let is_pidfs = || fstatfs(&pidfd).is_ok_and(|found| found.f_type == PIDFS);
    HAS_PIDFS.get_or_init(is_pidfs).then(|| fstat(&pidfd).ok().map(|found| found.st_ino))?
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Watched(Mutex<HashMap<ReservationId, OfOne>>);

#[derive(Debug, Default)]
struct OfOne {
    over: CancellationToken,
    processes: HashMap<HolderProcess, Option<u64>>,
}

impl Watched {
    /// A process is to be watched until it ends or the reservation is over, of which the token
    /// tells; `None` where it is watched already. The identity is its [`identity`], if known.
    pub(crate) fn begin(
        &self,
        id: &ReservationId,
        process: &HolderProcess,
        identity: Option<u64>,
    ) -> Option<CancellationToken> {
        let mut table = lock(&self.0);
        let one = table.entry(id.clone()).or_default();
        match one.processes.entry(process.clone()) {
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => {
                place.insert(identity);
                Some(one.over.clone())
            }
        }
    }

    /// Whether a process that is watched is the one of this identity.
    pub(crate) fn is(&self, id: &ReservationId, process: &HolderProcess, identity: u64) -> bool {
        let table = lock(&self.0);
        table.get(id).and_then(|one| one.processes.get(process)) == Some(&Some(identity))
    }

    /// Tells when the reservation is over.
    pub(crate) fn until(&self, id: &ReservationId) -> CancellationToken {
        lock(&self.0).entry(id.clone()).or_default().over.clone()
    }

    /// A process is watched no more.
    pub(crate) fn end(&self, id: &ReservationId, process: &HolderProcess) {
        if let Some(one) = lock(&self.0).get_mut(id) {
            one.processes.remove(process);
        }
    }

    /// The reservation is over: whoever watches for it stops.
    pub(crate) fn over(&self, id: &ReservationId) {
        if let Some(one) = lock(&self.0).remove(id) {
            one.over.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

    use super::*;

    #[test]
    fn who_is_watched_is_watched_once_until_it_is_over() {
        let (watched, id) = (Watched::default(), ReservationId::new("r-1"));
        let process = HolderProcess::new(7, 1);
        let token = watched.begin(&id, &process, Some(5)).expect("not yet");
        assert!(watched.begin(&id, &process, Some(5)).is_none());
        assert!(watched.is(&id, &process, 5) && !watched.is(&id, &process, 6));
        watched.end(&id, &process);
        assert!(!watched.is(&id, &process, 5));
        let again = watched.begin(&id, &process, Some(5)).expect("not any more");
        let also = watched.until(&id);
        assert!(!token.is_cancelled());
        watched.over(&id);
        assert!([token, again, also].iter().all(CancellationToken::is_cancelled));
        let anew = watched.begin(&id, &process, Some(5)).expect("a new life");
        assert!(!anew.is_cancelled());
        assert_eq!(lock(&watched.0).len(), 1);
    }

    #[test]
    fn a_process_has_one_identity_and_another_has_another() {
        let of = |pid| pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = getpid();
        let (one, again) = (identity(of(own)), identity(of(own)));
        assert_eq!(one, again);
        let other = identity(of(Pid::from_child(&child)));
        assert!(one.is_none() || one != other, "{one:?}");
        assert_eq!(one.is_none(), other.is_none());
        child.kill().and_then(|()| child.wait()).unwrap();
    }
}
