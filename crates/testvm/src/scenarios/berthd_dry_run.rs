//! What a dry run tells of an NVMe on its host driver: done by a shell it ends where the real call
//! does, undone by a shell the host has its disk again, and the real call writes just that, as `strace`
//! sees it.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    berthd_host_use::taken,
    berthd_tools::{Before, text},
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::{Daemon, Options},
        disk, sysfs,
    },
    topology::NVME1,
    wire::Capability::{self, Intremap, Strace, Type1},
};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario::new("berthd_dry_run", &[Capability::Daemon, Type1, Intremap, Strace], dry_run)
        .within(240)];

/// Last component of the path, and the value.
type Write = (String, String);

fn dry_run(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(NVME1);
    disk::write(ctx, NVME1, 4096, b"written by the host")?;
    let log = ctx.dir().join("writes");
    let mut prefix: Vec<_> =
        ["strace", "-D", "-f", "-qq", "-y", "-s", "64", "-e", "trace=write", "-o"]
            .map(Into::into)
            .into();
    prefix.push(log.clone().into());
    let daemon = Daemon::start_with(ctx, Options { prefix, ..Options::default() })?;
    let reserve = taken(NVME1);

    let told = tried(&daemon, &reserve)?;
    before.is_back()?;
    is_readable(ctx)?;
    by_hand(&told)?;
    let driver = sysfs::driver(NVME1);
    ensure!(driver.as_deref() == Some("vfio-pci"), "by hand {NVME1} comes to {driver:?}");
    undo_by_hand(&told)?;
    before.is_back()?;
    is_readable(ctx)?;

    let reserved = daemon.cli(&reserve)?.ok()?;
    ensure!(sysfs::driver(NVME1) == driver, "the real call leads to {:?}", sysfs::driver(NVME1));
    same(ctx, &told, &written(&log)?)?;
    let id = text(&reserved, "id")?;
    daemon.cli(&["attach", &id])?.ok()?;

    let seen = written(&log)?.len();
    let told = tried(&daemon, &["release", &id])?;
    ensure!(sysfs::driver(NVME1) == driver, "a dry run of the release gave it back");
    daemon.cli(&["release", &id])?.ok()?;
    same(ctx, &told, written(&log)?.get(seen..).unwrap_or_default())?;
    before.is_back()?;
    is_readable(ctx)?;
    // The reset can't be undone, the drivers can.
    undo_by_hand(&told)?;
    ensure!(sysfs::driver(NVME1) == driver, "undone, it is on {:?}", sysfs::driver(NVME1));
    by_hand(&told)?;
    before.is_back()?;
    is_readable(ctx)?;
    Ok(Outcome::Pass)
}

/// What a dry run tells.
fn tried(daemon: &Daemon, words: &[&str]) -> Result<Vec<Value>> {
    let mut words = words.to_vec();
    words.push("--dry-run");
    let told = daemon.cli(&words)?.ok()?;
    let writes = told["writes"].as_array().context("no writes were told")?.clone();
    ensure!(!writes.is_empty(), "{words:?}: nothing is written: {told}");
    Ok(writes)
}

fn is_readable(ctx: &Ctx) -> Result<()> {
    let read = disk::read(ctx, NVME1, 4096, 19)?;
    ensure!(read == b"written by the host", "the disk has {read:?}");
    Ok(())
}

/// `echo VALUE > PATH`, as an administrator does it.
fn echo(value: &str, path: &str) -> Result<()> {
    let line = format!("echo '{}' > {path}", value.trim_end());
    let output = Command::new("sh").args(["-ec", &line]).output().context("sh")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{line}: {said}");
    Ok(())
}

fn by_hand(told: &[Value]) -> Result<()> {
    told.iter().try_for_each(|one| echo(&text(one, "value")?, &text(one, "path")?))
}

fn undo_by_hand(told: &[Value]) -> Result<()> {
    for one in told.iter().rev().filter(|one| one["noUndo"] == "") {
        echo(&text(one, "undo")?, &text(one, "undoPath")?)?;
    }
    Ok(())
}

/// The writes to sysfs that `strace` saw so far of `berthd` and its helpers.
fn written(log: &std::path::Path) -> Result<Vec<Write>> {
    let log = fs::read_to_string(log).context("strace wrote nothing")?;
    let mut found = Vec::new();
    for line in log.lines().filter(|line| !line.contains(" = -1 ")) {
        // PID write(5</sys/bus/pci/drivers_probe>, "0000:08:00.0", 12) = 12
        let Some((_, call)) = line.split_once("write(") else { continue };
        let Some((path, rest)) = call.split_once('<').and_then(|(_, rest)| rest.split_once('>'))
        else {
            continue;
        };
        let value = rest.split('"').nth(1);
        let (true, Some(value)) = (path.starts_with("/sys/"), value) else { continue };
        let name = path.rsplit('/').next().unwrap_or_default();
        found.push((name.to_owned(), value.replace("\\n", "\n")));
    }
    Ok(found)
}

fn same(ctx: &Ctx, told: &[Value], written: &[Write]) -> Result<()> {
    let told: Vec<Write> = told
        .iter()
        .map(|one| {
            let path = text(one, "path")?;
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            Ok((name, text(one, "value")?))
        })
        .collect::<Result<_>>()?;
    ensure!(told == written, "told {told:?}, written {written:?}");
    ctx.say(format!("told and written: {told:?}"));
    Ok(())
}
