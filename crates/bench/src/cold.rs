//! `cold_start_10k`: from the start of `berthd` to `ready` on a tree of 10,000 devices and groups,
//! with 10,000 reservations on record.
//!
//! The tree lies in memory, as sysfs does; the database on a disk. Included are the database, the
//! scan, the comparison of record and machine, and the look at every reservation. A tree has no
//! VFIO, so that reservations are held by the ledger and no kernel hold is taken.

mod record;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use berth_host::linux::testing::build_large;
use berth_measure::{Question, Row, Target, compare, median};

use crate::{
    Places,
    daemon::{Machine, Running, Start},
    ledger::runtime,
};

const DEVICES: u32 = 10_000;

/// Runs it.
///
/// # Errors
/// Of either side.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let memory = tempfile::tempdir_in(&places.memory).context("make a directory in memory")?;
    let disk = tempfile::tempdir_in(&places.disk).context("make a directory on the disk")?;
    let tree = memory.path().join("tree");
    build_large(&tree, DEVICES).context("build the tree")?;
    let reserved = runtime()?.block_on(record::make(&tree, &disk.path().join("state")))?;
    eprintln!("{DEVICES} devices, {reserved} reservations");
    let mut starts: Vec<Start> = Vec::new();
    let mut ours = || {
        let running = Running::start(&places.programs, Machine::Tree(&tree), disk.path())?;
        let one = running.cost()?;
        running.stop()?;
        starts.push(one);
        Ok(one.ready_ms)
    };
    let scan = places.peers.join("scan");
    let mut peer = || timed(Command::new(&scan).arg(&tree));
    let mut rows =
        vec![compare(&question("raw C scan", Target::AtMost(1.3)), &mut ours, &mut peer)?];
    let option = format!("sysfs.path={}", tree.join("sys/bus/pci").display());
    let mut lspci =
        || timed(Command::new("lspci").args(["-A", "linux-sysfs", "-O", &option, "-n"]));
    if lspci().is_ok() {
        let target = Target::AtMost(0.5);
        rows.push(compare(&question("lspci -n", target), &mut ours, &mut lspci)?);
    } else {
        eprintln!("cold_start_10k: lspci can't be run here; by hand: apt-get install pciutils");
    }
    let of = |value: fn(&Start) -> f64| median(&starts.iter().map(value).collect::<Vec<_>>());
    let note = format!(
        "{DEVICES} devices and groups, {reserved} reservations; berthd at ready: {:.0} MiB \
         resident (peak {:.0}), {:.0} ms of CPU",
        of(|start| start.resident_mib),
        of(|start| start.peak_mib),
        of(|start| start.cpu_ms),
    );
    eprintln!("{note}");
    if let Some(row) = rows.first_mut() {
        row.notes.push(note);
    }
    Ok(rows)
}

fn question(peer: &str, target: Target) -> Question {
    Question { name: "cold_start_10k", case: format!("exec to ready / {peer}"), unit: "ms", target }
}

/// How long a program takes.
///
/// # Units
/// Milliseconds.
fn timed(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    let status = command
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("start {}", Path::new(command.get_program()).display()))?;
    if !status.success() {
        bail!("{} ended with {status}", Path::new(command.get_program()).display());
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
