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
pub use spawned::Spawned;

use crate::{
    packet,
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

/// Sends an act to a helper that listens at the other end, and waits for its answer until `end`;
/// `whole` is the time that the act was given in all.
fn ask(
    socket: &OwnedFd,
    act: &Act,
    end: Instant,
    whole: Duration,
) -> Result<ActOutcome, HostError> {
    let failed = |what: &str, errno: Errno| helper_error(act, format!("{what}: {errno}"), false);
    let request = Request { v: VERSION, act: act.clone() };
    let bytes = serde_json::to_vec(&request)
        .map_err(|error| helper_error(act, error.to_string(), false))?;
    packet::send(socket, &bytes, None).map_err(|errno| failed("send request", errno))?;
    if !readable(socket, end).map_err(|errno| failed("wait for answer", errno))? {
        let message =
            format!("no answer within {} ms; the kernel may still be at it", whole.as_millis());
        return Err(helper_error(act, message, true));
    }
    let packet = packet::receive(socket, MAX_RESPONSE_BYTES)
        .map_err(|errno| failed("receive answer", errno))?;
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
