//! The file descriptor store of systemd.

use std::{
    env, io,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::FdStore;
use crate::notify;

/// How long systemd may take to answer. It is busy while it reloads.
const PATIENCE: Duration = Duration::from_secs(30);

/// The file descriptor store of the unit that this process is the main process of.
///
/// # Source
/// <https://systemd.io/FILE_DESCRIPTOR_STORE/>
#[derive(Debug)]
pub struct SystemdStore {
    room: Option<usize>,
}

impl SystemdStore {
    /// The store, where systemd has one for this process: it listens, and doesn't say that there is
    /// no room. Before 254 it doesn't say how much room there is.
    #[must_use]
    pub fn of_this_service() -> Option<Self> {
        env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        // Who isn't systemd may listen, too, and keeps nothing.
        env::var_os("INVOCATION_ID")?;
        let said = env::var("FDSTORE").ok();
        let room = said.map(|text| text.parse().unwrap_or(0));
        (room != Some(0)).then_some(Self { room })
    }
}

/// The service manager's process: the one that started this one.
#[must_use]
pub fn manager() -> Option<i32> {
    rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get())
}

impl FdStore for SystemdStore {
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        // It would let go of a descriptor that reports an error or a hang-up.
        let lines = ["FDSTORE=1", &format!("FDNAME={name}"), "FDPOLL=0"];
        notify::service_manager_with(&lines, &[fd])
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        notify::service_manager(&["FDSTOREREMOVE=1", &format!("FDNAME={name}")])
    }

    fn settle(&self) -> io::Result<()> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        notify::service_manager_with(&["BARRIER=1"], &[writer.as_fd()])?;
        drop(writer);
        // It closes its end once it came that far.
        let mut fds = [PollFd::new(&reader, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&patience))? {
            0 => Err(io::Error::new(io::ErrorKind::TimedOut, "the service manager doesn't answer")),
            _ => Ok(()),
        }
    }

    fn room(&self) -> Option<usize> {
        self.room
    }
}
