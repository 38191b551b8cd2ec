//! The daemon's side: a process per request, and a deadline for each answer.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use berth_host::{Act, ActOutcome, HostError, Privileged};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};

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

/// Does acts by starting `berth-helper` for each.
#[derive(Debug, Clone)]
pub struct Forked {
    program: PathBuf,
    root: PathBuf,
    deadlines: Deadlines,
}

impl Forked {
    /// Starts `program` for acts on the tree at `root`.
    pub fn new(
        program: impl Into<PathBuf>,
        root: impl Into<PathBuf>,
        deadlines: Deadlines,
    ) -> Self {
        Self { program: program.into(), root: root.into(), deadlines }
    }

    /// Starts the `berth-helper` that lies beside this process's own program, or one directory
    /// above it, where test programs have it.
    ///
    /// # Errors
    /// ENOENT when there is none.
    pub fn beside_exe(root: impl Into<PathBuf>, deadlines: Deadlines) -> io::Result<Self> {
        let exe = std::env::current_exe()?;
        let program = exe
            .ancestors()
            .skip(1)
            .take(2)
            .map(|dir| dir.join("berth-helper"))
            .find(|program| program.is_file())
            .ok_or_else(|| {
                let message = format!("no berth-helper beside {}", exe.display());
                io::Error::new(io::ErrorKind::NotFound, message)
            })?;
        Ok(Self::new(program, root, deadlines))
    }

    fn start(&self) -> io::Result<(Child, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Its own process group: a ^C on the daemon's terminal must not cut an act short.
        let child = Command::new(&self.program)
            .arg("--sysfs-root")
            .arg(&self.root)
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok((child, ours))
    }

    fn ask(&self, socket: &OwnedFd, act: &Act) -> Result<ActOutcome, HostError> {
        let failed =
            |what: &str, errno: Errno| helper_error(act, format!("{what}: {errno}"), false);
        let request = Request { v: VERSION, act: act.clone() };
        let bytes = serde_json::to_vec(&request)
            .map_err(|error| helper_error(act, error.to_string(), false))?;
        packet::send(socket, &bytes, None).map_err(|errno| failed("send request", errno))?;
        let deadline = self.deadlines.of(act);
        if !readable(socket, deadline).map_err(|errno| failed("wait for answer", errno))? {
            let message = format!(
                "no answer within {} ms; the kernel may still be at it",
                deadline.as_millis()
            );
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
}

impl Privileged for Forked {
    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError> {
        let (child, socket) = self.start().map_err(|error| {
            helper_error(act, format!("start {}: {error}", self.program.display()), false)
        })?;
        let outcome = self.ask(&socket, act);
        reap(child);
        outcome
    }
}

/// Waits until a socket has something to read, its peer closed, or time is up.
fn readable(socket: &OwnedFd, within: Duration) -> Result<bool, Errno> {
    let end = Instant::now() + within;
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

/// Collects the process: at once where it ends at once, else by a thread that waits for it, so
/// that one in the kernel's hands blocks nobody.
fn reap(mut child: Child) {
    const PATIENCE: Duration = Duration::from_millis(20);
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let waiting = thread::Builder::new().name("berth-reaper".to_owned()).spawn(move || {
        let _ = child.wait();
    });
    // Without a thread it stays a zombie until this process ends; that does no harm to the act.
    drop(waiting);
}
