//! QMP: commands to the running machine, also on behalf of the guest.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A connection that is past the greeting.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Connects, waiting until QEMU has made its socket.
    ///
    /// # Errors
    /// QEMU doesn't answer within `patience`.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + patience;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Err(error) => {
                    return Err(error).with_context(|| format!("connect to {}", socket.display()));
                }
            }
        };
        let writer = stream.try_clone()?;
        let mut qmp = Self { reader: BufReader::new(stream), writer };
        let mut greeting = String::new();
        qmp.reader.read_line(&mut greeting).context("read QEMU's greeting")?;
        qmp.raw(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(qmp)
    }

    /// Sends one command as it stands and gives the line that answers it; events are left out.
    ///
    /// # Errors
    /// The connection ended.
    pub fn raw(&mut self, command: &str) -> Result<String> {
        self.writer.write_all(command.trim().as_bytes())?;
        self.writer.write_all(b"\n")?;
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).context("read QEMU's answer")? == 0 {
                bail!("QEMU closed its QMP socket");
            }
            let answer: Value = serde_json::from_str(&line).context("parse QEMU's answer")?;
            if answer.get("return").is_some() || answer.get("error").is_some() {
                return Ok(line.trim().to_owned());
            }
        }
    }
}

/// Serves the guest's QMP port until either side goes away.
pub fn serve_guest(guest: UnixStream, mut qmp: Qmp) {
    let Ok(mut writer) = guest.try_clone() else { return };
    for line in BufReader::new(guest).lines() {
        let Ok(line) = line else { return };
        if line.trim().is_empty() {
            continue;
        }
        let answer = qmp.raw(&line).unwrap_or_else(|error| {
            let desc = format!("{error:#}");
            serde_json::json!({"error": {"class": "HostSide", "desc": desc}}).to_string()
        });
        if writer.write_all(format!("{answer}\n").as_bytes()).is_err() {
            return;
        }
    }
}
