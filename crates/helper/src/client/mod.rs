//! The daemon's side: a process per request, and a deadline for each answer.
//!
//! [`Forked`] starts the process itself, [`Spawned`] has one that was started before do that.
//! [`Connected`] leaves it to the service manager, which has the privileges for it that the daemon then
//! needn't have. Each has the next one started while nothing is asked.

mod connected;
mod forked;
mod spare;
mod spawned;

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use berth_host::{Act, ActOutcome, HostError};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

pub use connected::{Connected, SOCKET};
pub use forked::{Forked, beside_exe};
use spare::{Spare, Waiting};
pub use spawned::Spawned;

use crate::{
    packet::{self, Packet},
    wire::{Answer, MAX_RESPONSE_BYTES, Request, Response, VERSION, helper_error},
};

/// How long to wait for answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For bind, unbind, override and restore.
    ///
    /// # Units
    /// Milliseconds, as the others.
    pub bind_ms: u64,
    /// For reset: the kernel waits up to 60 s for a device to come back.
    pub reset_ms: u64,
    /// For sriov.
    pub sriov_ms: u64,
    /// For the others.
    pub other_ms: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { bind_ms: 10_000, reset_ms: 75_000, sriov_ms: 30_000, other_ms: 10_000 }
    }
}

impl Deadlines {
    fn of(self, act: &Act) -> Duration {
        Duration::from_millis(match act {
            Act::Bind { .. } | Act::Unbind { .. } | Act::Override { .. } | Act::Restore { .. } => {
                self.bind_ms
            }
            Act::Reset { .. } => self.reset_ms,
            Act::Sriov { .. } => self.sriov_ms,
            _ => self.other_ms,
        })
    }
}

/// An act, and the time that it has.
struct Asked<'a> {
    act: &'a Act,
    whole: Duration,
    end: Instant,
}

impl<'a> Asked<'a> {
    fn new(act: &'a Act, deadlines: Deadlines) -> Self {
        let whole = deadlines.of(act);
        Self { act, whole, end: Instant::now() + whole }
    }

    /// Has it done by the helper that waits; by a fresh one where none does, or where the one that did
    /// ended before it read the request. Answers the helper too, which is not asked again.
    fn done_by<T: Waiting>(
        &self,
        spare: &Spare<T>,
        fresh: impl FnOnce() -> Result<T, HostError>,
    ) -> Result<(T, Result<ActOutcome, HostError>), HostError> {
        if let Some(one) = spare.take() {
            match self.ask(one.socket()) {
                Err(Failure { unread: true, .. }) => {}
                outcome => return Ok((one, outcome.map_err(|failure| failure.error))),
            }
        }
        let one = fresh()?;
        let outcome = self.ask(one.socket()).map_err(|failure| failure.error);
        Ok((one, outcome))
    }

    /// Sends it to a helper that listens at the other end, and waits for its answer.
    fn ask(&self, socket: &OwnedFd) -> Result<ActOutcome, Failure> {
        let act = self.act;
        let failed = |what: &str, errno: Errno, unread: bool| Failure {
            error: helper_error(act, format!("{what}: {errno}"), false),
            unread,
        };
        let request = Request { v: VERSION, act: act.clone() };
        let bytes = serde_json::to_vec(&request)
            .map_err(|error| helper_error(act, error.to_string(), false))?;
        packet::send(socket, &bytes, None)
            .map_err(|errno| failed("send request", errno, errno == Errno::PIPE))?;
        if !readable(socket, self.end).map_err(|errno| failed("wait for answer", errno, false))? {
            let whole = self.whole.as_millis();
            let message = format!("no answer within {whole} ms; the kernel may still be at it");
            return Err(helper_error(act, message, true).into());
        }
        // The kernel says so, to the other end, of a socket that is closed with something to be read.
        let packet = packet::receive(socket, MAX_RESPONSE_BYTES)
            .map_err(|errno| failed("receive answer", errno, errno == Errno::CONNRESET))?;
        Ok(answer_in(act, packet)?)
    }
}

/// Why a helper has not answered.
struct Failure {
    error: HostError,
    /// It never had the request: another may have it.
    unread: bool,
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        Self { error, unread: false }
    }
}

fn answer_in(act: &Act, packet: Packet) -> Result<ActOutcome, HostError> {
    if packet.bytes.is_empty() {
        return Err(helper_error(act, "ended without an answer", false));
    }
    let response: Response = serde_json::from_slice(&packet.bytes)
        .map_err(|error| helper_error(act, format!("its answer is not one: {error}"), false))?;
    match response.answer {
        Answer::Ok(done) => done
            .into_outcome(packet.fd)
            .ok_or_else(|| helper_error(act, "its answer lacks data or descriptor", false)),
        Answer::Error(failure) => Err(failure.into_error(act)),
    }
}

/// Waits until a socket has something to read, its peer closed, or time is up.
fn readable(socket: &OwnedFd, end: Instant) -> Result<bool, Errno> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    /// A helper that waits, and ends when it is asked: before or after it reads what it was asked.
    fn one_that_ends(reads: bool) -> OwnedFd {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        std::thread::spawn(move || {
            assert!(readable(&theirs, Instant::now() + Duration::from_secs(60)).unwrap());
            if reads {
                packet::receive(&theirs, 4096).unwrap();
            }
        });
        ours
    }

    /// What came of asking the one that waits, and whether a fresh one was asked for.
    fn ask_one_that(reads: bool) -> (HostError, bool) {
        let spare = Spare::default();
        spare.put(|| Some(one_that_ends(reads)));
        let asked = Asked::new(&Act::OpenIommu, Deadlines::default());
        let mut another = false;
        let done = asked.done_by(&spare, || {
            another = true;
            Ok(one_that_ends(true))
        });
        (done.unwrap().1.unwrap_err(), another)
    }

    #[test]
    fn what_ended_before_it_read_its_request_costs_nothing() {
        assert!(ask_one_that(false).1);
    }

    #[test]
    fn what_may_have_been_done_is_not_asked_for_again() {
        let (error, another) = ask_one_that(true);
        assert!(!another);
        assert!(error.to_string().contains("ended without an answer"), "{error}");
    }
}
