//! A helper that a process of ours starts, because this one can't.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Command, Stdio},
    sync::Arc,
};

use berth_host::{Act, ActOutcome, HostError, Privileged};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};

use super::{Asked, Deadlines, spare::Spare};
use crate::{packet, spawner::START, wire::helper_error};

/// Does acts by having a `berth-helper` started for each by [`crate::spawner`].
#[derive(Debug, Clone)]
pub struct Spawned {
    control: Arc<OwnedFd>,
    deadlines: Deadlines,
    spare: Spare<OwnedFd>,
}

impl Spawned {
    /// Starts the spawner: `command` with the control socket as its standard input.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(mut command: Command, deadlines: Deadlines) -> io::Result<Self> {
        let (ours, theirs) = pair()?;
        command.env_clear().current_dir("/").process_group(0);
        // It ends with the control socket; nobody needs to hear of it.
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).spawn()?;
        Ok(Self::with(ours, deadlines))
    }

    /// Asks a spawner at the other end of `control`.
    #[must_use]
    pub fn with(control: OwnedFd, deadlines: Deadlines) -> Self {
        Self { control: Arc::new(control), deadlines, spare: Spare::default() }
    }

    fn next(&self) -> Result<OwnedFd, Errno> {
        let (ours, theirs) = pair()?;
        packet::send(&*self.control, START, Some(&theirs))?;
        Ok(ours)
    }
}

fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

impl Privileged for Spawned {
    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError> {
        let (socket, outcome) = Asked::new(act, self.deadlines).done_by(&self.spare, || {
            self.next().map_err(|errno| {
                let message = format!(
                    "ask the process that starts helpers: {errno}; restart berthd, which starts it"
                );
                helper_error(act, message, false)
            })
        })?;
        drop(socket);
        // Where that fails the next act says why.
        self.spare.put(|| self.next().ok());
        outcome
    }
}
