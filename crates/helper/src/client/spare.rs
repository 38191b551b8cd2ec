//! A helper that is there before it is asked for: starting one takes longer than most acts.
//!
//! It has no request yet, serves one like any other, and ends when its socket is closed. So there is
//! still one process per act; one at most waits.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What can be asked: a socket, and what belongs to it.
pub(super) trait Waiting: Send + 'static {
    /// Where the request goes.
    fn socket(&self) -> &OwnedFd;
}

impl Waiting for OwnedFd {
    fn socket(&self) -> &OwnedFd {
        self
    }
}

/// Room for one.
#[derive(Debug)]
pub(super) struct Spare<T>(Arc<Mutex<Option<T>>>);

impl<T> Clone for Spare<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Spare<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Waiting> Spare<T> {
    /// The one that waits, unless it has ended meanwhile.
    pub(super) fn take(&self) -> Option<T> {
        // Out of the lock before it is looked at, and dropped.
        let waiting = self.lock().take();
        waiting.filter(|one| is_quiet(one.socket()))
    }

    /// Puts one in, where there is none.
    pub(super) fn put(&self, make: impl FnOnce() -> Option<T>) {
        if self.lock().is_some() {
            return;
        }
        if let Some(one) = make() {
            let mut place = self.lock();
            // Another thread may have been faster; of two, one goes.
            let _surplus = place.replace(one);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing is to be read from one that waits, and its end is open.
fn is_quiet(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn the_one_that_waits_is_taken_once() {
        let spare = Spare::<OwnedFd>::default();
        assert!(spare.take().is_none());
        let (ours, _theirs) = pair();
        spare.put(|| Some(ours));
        spare.put(|| panic!("there is one"));
        assert!(spare.take().is_some());
        assert!(spare.take().is_none());
    }

    #[test]
    fn one_that_has_ended_is_not_asked() {
        let spare = Spare::<OwnedFd>::default();
        let (ours, theirs) = pair();
        spare.put(|| Some(ours));
        drop(theirs);
        assert!(spare.take().is_none());
    }
}
