//! One boot: QEMU as a child, the guest's messages as a channel.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use super::{
    kernel::Kernel,
    machine::{self, Accel, Console, RunFiles},
    packages,
    qmp::{self, Qmp},
};
use crate::wire::{Message, Profile};

/// How long QEMU may take to open its sockets.
const QEMU_START: Duration = Duration::from_secs(60);

/// A running guest. Dropping it kills QEMU.
#[derive(Debug)]
pub struct Session {
    child: Child,
    messages: Receiver<Message>,
    started: Instant,
    files: RunFiles,
}

impl Session {
    /// Boots `kernel`; the initramfs is in `files` already.
    ///
    /// # Errors
    /// QEMU doesn't start; its own messages are part of the error.
    pub fn boot(
        qemu: &Path,
        kernel: &Kernel,
        profile: Profile,
        accel: Accel,
        console: Console,
        files: RunFiles,
    ) -> Result<Self> {
        files.make_disks()?;
        let results = UnixListener::bind(files.results())?;
        let guest_qmp = UnixListener::bind(files.guest_qmp())?;
        let mut command =
            tied_to_us(&machine::command(qemu, kernel, profile, accel, console, &files));
        let log = fs::File::create(files.qemu_log())?;
        if console == Console::Log {
            command.stdin(Stdio::null()).stdout(log.try_clone()?);
        }
        let started = Instant::now();
        let child = command.stderr(log).spawn().context("start QEMU")?;
        let (sender, messages) = mpsc::channel();
        let mut session = Self { child, messages, started, files };
        let results = session.accept(&results)?;
        let guest_qmp = session.accept(&guest_qmp)?;
        let qmp = Qmp::connect(&session.files.qmp(), QEMU_START)?;
        thread::spawn(move || qmp::serve_guest(guest_qmp, qmp));
        thread::spawn(move || {
            for line in BufReader::new(results).lines() {
                let Ok(line) = line else { return };
                let message = serde_json::from_str(&line).unwrap_or_else(|error| {
                    let reason =
                        format!("the guest sent a line that is no message ({error}): {line}");
                    Message::Broken { reason }
                });
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Ok(session)
    }

    /// Waits for QEMU to connect to one of our sockets.
    fn accept(&mut self, listener: &UnixListener) -> Result<UnixStream> {
        listener.set_nonblocking(true)?;
        let deadline = Instant::now() + QEMU_START;
        loop {
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("QEMU ended at once ({status}): {}", self.qemu_messages());
            }
            if Instant::now() > deadline {
                bail!("QEMU did not connect within {} s", QEMU_START.as_secs());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn qemu_messages(&self) -> String {
        fs::read_to_string(self.files.qemu_log()).unwrap_or_default()
    }

    /// When QEMU was started.
    #[must_use]
    pub const fn started(&self) -> Instant {
        self.started
    }

    /// The next message of the guest.
    ///
    /// # Errors
    /// Nothing came within `patience`, or the guest ended without one: panics are named, and the
    /// end of the console is shown.
    pub fn next(&mut self, patience: Duration) -> Result<Message> {
        match self.messages.recv_timeout(patience) {
            Ok(message) => Ok(message),
            Err(RecvTimeoutError::Timeout) => Err(anyhow!(
                "nothing from the guest for {} s; end of its console:\n{}",
                patience.as_secs(),
                self.console_end()
            )),
            Err(RecvTimeoutError::Disconnected) => {
                let console = self.console();
                let what = if console.contains("Kernel panic") {
                    "the guest's kernel panicked"
                } else {
                    "the guest ended before its last scenario"
                };
                let qemu = self.qemu_messages();
                Err(anyhow!("{what}; end of its console:\n{}\n{qemu}", self.console_end()))
            }
        }
    }

    fn console(&self) -> String {
        let bytes = fs::read(self.files.console()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn console_end(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Waits until the guest has powered itself off, and says whether its kernel panicked.
    ///
    /// # Errors
    /// It didn't within `patience`, or it panicked on the way.
    pub fn powered_off(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("the guest did not power off; end of its console:\n{}", self.console_end());
            }
            thread::sleep(Duration::from_millis(10));
        }
        if self.console().contains("Kernel panic") {
            bail!("the guest's kernel panicked at the end:\n{}", self.console_end());
        }
        Ok(())
    }

    /// Waits for QEMU without a limit: for the shell.
    ///
    /// # Errors
    /// QEMU fails.
    pub fn wait(&mut self) -> Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!("QEMU ended with {status}: {}", self.qemu_messages());
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both fail only when QEMU has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where util-linux is installed, has the kernel kill QEMU if we are killed ourselves.
fn tied_to_us(command: &Command) -> Command {
    let Some(setpriv) = packages::find_program("setpriv") else {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        return same;
    };
    let mut tied = Command::new(setpriv);
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    tied
}
