//! A helper that the service manager starts for each connection.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use berth_host::{Act, ActOutcome, HostError, Privileged};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use super::{Asked, Deadlines, spare::Spare};
use crate::wire::helper_error;

/// Where the socket is by default.
pub const SOCKET: &str = "/run/berth/helper.sock";

/// Between two tries while the manager is behind with accepting.
const PAUSE: Duration = Duration::from_millis(20);

/// Does acts by connecting to a socket behind which a `berth-helper` is started for each
/// connection: a process that this one neither started nor waits for.
#[derive(Debug, Clone)]
pub struct Connected {
    socket: PathBuf,
    deadlines: Deadlines,
    spare: Spare<OwnedFd>,
}

impl Connected {
    /// Asks at `socket`. Its helpers act on the running machine.
    pub fn new(socket: impl Into<PathBuf>, deadlines: Deadlines) -> Self {
        Self { socket: socket.into(), deadlines, spare: Spare::default() }
    }

    /// Where it asks.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Connects without waiting in the kernel, where a full backlog would hold us for ever.
    fn connect(&self, end: Instant) -> Result<OwnedFd, Errno> {
        let address = SocketAddrUnix::new(&self.socket)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        loop {
            match connect(&socket, &address) {
                Err(Errno::AGAIN) if Instant::now() < end => thread::sleep(PAUSE),
                Err(Errno::INTR) => {}
                answer => return answer.map(|()| socket),
            }
        }
    }

    fn unreachable(&self, act: &Act, errno: Errno) -> HostError {
        let way_out = match errno {
            Errno::NOENT | Errno::CONNREFUSED => "systemctl start berth-helper.socket",
            Errno::ACCESS => "make the socket's SocketUser= the user that berthd runs as",
            Errno::AGAIN => "the service manager doesn't start helpers: systemctl list-jobs",
            _ => "systemctl status berth-helper.socket",
        };
        let message = format!("connect to {}: {errno}; {way_out}", self.socket.display());
        helper_error(act, message, false)
    }
}

impl Privileged for Connected {
    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError> {
        let asked = Asked::new(act, self.deadlines);
        let (socket, outcome) = asked.done_by(&self.spare, || {
            self.connect(asked.end).map_err(|errno| self.unreachable(act, errno))
        })?;
        drop(socket);
        // Where that fails the next act says why.
        self.spare.put(|| self.connect(Instant::now()).ok());
        outcome
    }
}
