//! Measures on this kernel: starts what measures on the two disks, and tells the host what it says.

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
    wire::{GuestConfig, Measuring, Message, Mode},
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
    let Mode::Bench { runs } = &config.mode else { anyhow::bail!("not asked to measure") };
    // Both have a reset of their own, and a group.
    for device in [NVME0, NVME1] {
        sysfs::to_vfio(device)?;
        let line = format!("{device} is on vfio-pci");
        reporter.send(&Message::Log { name: NAME.to_owned(), line })?;
    }
    let mut failed = Vec::new();
    for run in runs {
        if let Err(error) = one(&config.bin_dir, run, reporter) {
            failed.push(format!("{error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn one(programs: &Path, run: &Measuring, reporter: &mut Reporter) -> Result<()> {
    let name = &run.program;
    // What the run before said must not be sent twice; mostly there was none.
    let _ = fs::remove_file(RESULTS);
    let mut child = command(programs, run).spawn().with_context(|| format!("start {name}"))?;
    let (sender, lines) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        forward(output, sender.clone());
    }
    if let Some(output) = child.stderr.take() {
        forward(output, sender);
    }
    for line in lines {
        reporter.send(&Message::Log { name: NAME.to_owned(), line })?;
    }
    let status = child.wait().with_context(|| format!("wait for {name}"))?;
    if let Ok(text) = fs::read_to_string(RESULTS) {
        reporter.send(&Message::Rows { text })?;
    }
    ensure!(status.success(), "{name} ended with {status}");
    Ok(())
}

fn command(programs: &Path, run: &Measuring) -> Command {
    let mut command = Command::new(programs.join(&run.program));
    command.args(&run.words).arg("--peers").arg(programs.join("peers"));
    command.args(["--json", RESULTS, "--device", NVME0]);
    if run.beside {
        command.arg("--programs").arg(programs).args(["--disk", MEMORY, "--memory", MEMORY]);
        command.args(["--beside", NVME1]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
