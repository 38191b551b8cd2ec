//! A helper that this process starts by itself.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use berth_host::{Act, ActOutcome, HostError, Privileged};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{Deadlines, ask};
use crate::wire::helper_error;

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
}

impl Privileged for Forked {
    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError> {
        let (child, socket) = self.start().map_err(|error| {
            helper_error(act, format!("start {}: {error}", self.program.display()), false)
        })?;
        let whole = self.deadlines.of(act);
        let outcome = ask(&socket, act, Instant::now() + whole, whole);
        reap(child);
        outcome
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
