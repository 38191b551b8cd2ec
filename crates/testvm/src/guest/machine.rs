//! The guest's own machine, by QMP over a virtio-serial port: plugging devices in and out.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::wire::QMP_PORT;

/// Finds the device node of a virtio-serial port by its name: there is no udev that would make a
/// link.
///
/// # Errors
/// The machine has no such port.
pub fn port(name: &str) -> Result<PathBuf> {
    let dir = "/sys/class/virtio-ports";
    for entry in fs::read_dir(dir).with_context(|| format!("read {dir}"))?.flatten() {
        let found = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if found.trim() == name {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    bail!("the machine has no virtio-serial port {name}")
}

/// A connection to the machine.
#[derive(Debug)]
pub struct Machine {
    reader: BufReader<File>,
    writer: File,
}

impl Machine {
    pub(super) fn open() -> Result<Self> {
        let path = port(QMP_PORT)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        Ok(Self { writer: file.try_clone()?, reader: BufReader::new(file) })
    }

    /// Runs one QMP command and gives what it returns.
    ///
    /// # Errors
    /// QEMU refuses it.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        self.writer.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).context("parse QEMU's answer")?;
        match answer.get("error") {
            Some(error) => bail!("{request}: {error}"),
            None => Ok(answer.get("return").cloned().unwrap_or(Value::Null)),
        }
    }

    /// Has a device report a PCIe error, by the bit of its error status register; `correctable` says of
    /// which one.
    ///
    /// # Errors
    /// QEMU refuses it.
    pub fn inject_aer(&mut self, id: &str, correctable: bool, status: u32) -> Result<()> {
        let which = if correctable { "-c " } else { "" };
        let line = format!("pcie_aer_inject_error {which}{id} {status:#x}");
        let arguments = json!({"command-line": line});
        let answer = self.execute("human-monitor-command", &arguments)?;
        let said = answer.as_str().unwrap_or_default().trim();
        // It says what it did, or why it didn't, on the same line.
        ensure!(said.starts_with("OK"), "{line}: {said}");
        Ok(())
    }

    /// Plugs a device in; the kernel sees it a moment later.
    ///
    /// # Errors
    /// QEMU refuses it.
    pub fn plug(&mut self, driver: &str, id: &str, bus: &str) -> Result<()> {
        let arguments = json!({"driver": driver, "id": id, "bus": bus, "addr": "0"});
        self.execute("device_add", &arguments).map(drop)
    }

    /// Asks for a device to be pulled out; it goes when the kernel has let go of it.
    ///
    /// # Errors
    /// QEMU refuses it.
    pub fn unplug(&mut self, id: &str) -> Result<()> {
        self.execute("device_del", &json!({"id": id})).map(drop)
    }
}
