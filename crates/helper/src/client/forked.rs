//! A helper that this process starts by itself.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use berth_host::{Act, ActOutcome, HostError, Privileged};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};

use super::{
    Asked, Deadlines,
    spare::{Spare, Waiting},
};
use crate::wire::helper_error;

/// Does acts by starting `berth-helper` for each.
#[derive(Debug, Clone)]
pub struct Forked {
    program: PathBuf,
    root: PathBuf,
    deadlines: Deadlines,
    spare: Spare<Started>,
}

/// A helper that waits for its request.
#[derive(Debug)]
struct Started {
    /// `None` once somebody else waits for its end.
    child: Option<Child>,
    socket: OwnedFd,
}

impl Waiting for Started {
    fn socket(&self) -> &OwnedFd {
        &self.socket
    }
}

impl Started {
    /// Nothing more is asked: one that has not begun what it was asked doesn't.
    fn leave(&self) {
        // It has ended, where that fails.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Waits for the end of one that was left; that is in the kernel's hands where the act is.
    fn reap(mut self) {
        if let Some(mut child) = self.child.take() {
            // There is no other way for it to fail than to have been waited for.
            let _ = child.wait();
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.leave();
        let Some(mut child) = self.child.take() else { return };
        if matches!(child.try_wait(), Ok(None)) {
            let waiting = thread::Builder::new().name("berth-reaper".to_owned());
            // Without a thread it stays a zombie until this process ends; that does no harm.
            drop(waiting.spawn(move || child.wait()));
        }
    }
}

impl Forked {
    /// Starts `program` for acts on the tree at `root`.
    pub fn new(
        program: impl Into<PathBuf>,
        root: impl Into<PathBuf>,
        deadlines: Deadlines,
    ) -> Self {
        Self { program: program.into(), root: root.into(), deadlines, spare: Spare::default() }
    }

    fn start(&self) -> io::Result<Started> {
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
        Ok(Started { child: Some(child), socket: ours })
    }

    /// Has the next one started, and this one's end waited for, by a thread: both take their time.
    fn start_next(&self, done: Started) {
        let helper = self.clone();
        let starting = thread::Builder::new().name("berth-spare".to_owned());
        // Without a thread, or a process, the next act starts its own, or says why it can't.
        drop(starting.spawn(move || {
            helper.spare.put(|| helper.start().ok());
            done.reap();
        }));
    }
}

/// The `berth-helper` that lies beside this process's own program, or one directory above it, where
/// test programs have it.
///
/// # Errors
/// ENOENT when there is none.
pub fn beside_exe() -> io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let mut beside = exe.ancestors().skip(1).take(2).map(|dir| dir.join("berth-helper"));
    beside.find(|program| program.is_file()).ok_or_else(|| {
        let message = format!("no berth-helper beside {}", exe.display());
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}

impl Privileged for Forked {
    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError> {
        let (started, outcome) = Asked::new(act, self.deadlines).done_by(&self.spare, || {
            self.start().map_err(|error| {
                helper_error(act, format!("start {}: {error}", self.program.display()), false)
            })
        })?;
        started.leave();
        self.start_next(started);
        outcome
    }
}
