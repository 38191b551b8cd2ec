//! Measures on this kernel: starts `berth-bench` on the two disks, and tells the host what it says.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
};

use anyhow::{Context, Result, ensure};

use super::{
    runner::{Reporter, forward},
    sysfs,
};
use crate::{
    topology::{NVME0, NVME1},
    wire::{GuestConfig, Message, Mode},
};

/// What its lines are sent under.
const NAME: &str = "bench";
/// What is measured lies in memory: the guest has nothing else.
const MEMORY: &str = "/dev/shm";
const RESULTS: &str = "/dev/shm/results.json";

/// Runs it and reports.
///
/// # Errors
/// The host can't be told.
pub fn run(config: &GuestConfig) -> Result<()> {
    let mut reporter = Reporter::open()?;
    match measure(config, &mut reporter) {
        Ok(()) => reporter.send(&Message::End),
        Err(error) => reporter.send(&Message::Broken { reason: format!("{error:#}") }),
    }
}

/// What was measured is sent also where something else failed.
fn measure(config: &GuestConfig, reporter: &mut Reporter) -> Result<()> {
    let Mode::Bench { words } = &config.mode else { anyhow::bail!("not asked to measure") };
    let mut say = |line: String| reporter.send(&Message::Log { name: NAME.to_owned(), line });
    // Both have a reset of their own, and a group.
    for device in [NVME0, NVME1] {
        sysfs::to_vfio(device)?;
        say(format!("{device} is on vfio-pci"))?;
    }
    let mut child = command(&config.bin_dir, words).spawn().context("start berth-bench")?;
    let (sender, lines) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        forward(output, sender.clone());
    }
    if let Some(output) = child.stderr.take() {
        forward(output, sender);
    }
    for line in lines {
        say(line)?;
    }
    let status = child.wait().context("wait for berth-bench")?;
    let text = fs::read_to_string(RESULTS);
    if let Ok(text) = text {
        reporter.send(&Message::Rows { text })?;
    }
    ensure!(status.success(), "berth-bench ended with {status}");
    Ok(())
}

fn command(programs: &Path, words: &[String]) -> Command {
    let mut command = Command::new(programs.join("berth-bench"));
    command.args(words).arg("--programs").arg(programs).arg("--peers").arg(programs.join("peers"));
    command.args(["--disk", MEMORY, "--memory", MEMORY, "--json", RESULTS]);
    command.args(["--device", NVME0, "--beside", NVME1]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
