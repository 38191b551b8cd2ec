//! Devices that the host uses: taken only when that is said, given back in working order. And a
//! host whose interrupts aren't remapped.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use berth_uapi::Errno;

use super::berthd_tools::{Before, is_free, is_refused, text};
use crate::{
    guest::{Ctx, Outcome, Scenario, daemon::Daemon, disk, probe, sysfs},
    topology::{E1000E, EDU_ROOT, IGB, NVME1},
    wire::Capability::{self, Intremap, NoIntremap, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_nvme", TYPE1, nvme),
    Scenario::new("berthd_e1000e", TYPE1, e1000e),
    Scenario::new("berthd_igb", TYPE1, igb),
    Scenario::new("berthd_unsafe_interrupts", &[Capability::Daemon, NoIntremap], unsafe_interrupts),
];

const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];

pub(super) fn words(device: &str) -> Vec<&str> {
    vec!["reserve", "--holder", "vm1", "--device", device, "--policy", "exclusive"]
}

pub(super) fn taken(device: &str) -> Vec<&str> {
    let mut all = words(device);
    all.push("--take-from-host");
    all
}

/// Attaches and gives back a reserved device, which has to be reset and on its driver again.
fn round_trip(daemon: &Daemon, device: &str, id: &str) -> Result<()> {
    ensure!(sysfs::driver(device).as_deref() == Some("vfio-pci"), "{device} is not on vfio-pci");
    daemon.cli(&["attach", id])?.ok()?;
    ensure!(probe::stranger(device).is_kept_out(), "{:?}", probe::stranger(device));
    let released = daemon.cli(&["release", id])?.ok()?;
    ensure!(released["givenBack"][0]["reset"] == "VERIFIED", "{device} was not reset: {released}");
    Ok(())
}

/// A mounted disk is never taken, a disk on its driver only when that is said; afterwards the
/// file on it is there again.
fn nvme(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(NVME1);
    let dir = ctx.dir().join("mounted");
    fs::create_dir(&dir)?;
    let disk = disk::block_device(ctx, NVME1)?;
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk))?;
    run(Command::new("mount").arg(&disk).arg(&dir))?;
    fs::write(dir.join("kept"), "written by the host")?;
    let daemon = Daemon::start(ctx)?;
    let point = dir.display().to_string();

    let answer = daemon.cli(&words(NVME1))?;
    is_refused(&answer, "", &[NVME1, "nvme"])?;
    is_refused(&daemon.cli(&taken(NVME1))?, "HOST_USES_DEVICE", &[NVME1, &point])?;
    is_refused(&daemon.cli(&["kernel-dma", "release", NVME1])?, "HOST_USES_DEVICE", &[&point])?;
    before.is_back()?;
    ensure!(fs::read_to_string(dir.join("kept"))? == "written by the host", "the disk is gone");

    run(Command::new("umount").arg(&dir))?;
    is_refused(&daemon.cli(&words(NVME1))?, "KERNEL_DMA", &[NVME1, "nvme", "--take-from-host"])?;
    before.is_back()?;
    let id = text(&daemon.cli(&taken(NVME1))?.ok()?, "id")?;
    round_trip(&daemon, NVME1, &id)?;
    before.is_back()?;
    let disk = disk::block_device(ctx, NVME1)?;
    run(Command::new("mount").arg(&disk).arg(&dir))?;
    let kept = fs::read_to_string(dir.join("kept"));
    run(Command::new("umount").arg(&dir))?;
    ensure!(kept? == "written by the host", "another disk came back");
    run(Command::new("mount").arg(&disk).arg(&dir))?;
    as_printed(&daemon, &before)?;
    let disk = disk::block_device(ctx, NVME1)?;
    run(Command::new("mount").arg(&disk).arg(&dir))?;
    let kept = fs::read_to_string(dir.join("kept"));
    run(Command::new("umount").arg(&dir))?;
    ensure!(kept? == "written by the host", "another disk came back from what was printed");
    Ok(Outcome::Pass)
}

/// The command that an explanation of a mounted disk prints, run by a shell as it is printed: then the
/// disk can be reserved.
fn as_printed(daemon: &Daemon, before: &Before) -> Result<()> {
    let explained = daemon.cli(&["explain", NVME1])?.ok()?;
    let findings = explained["findings"].as_array().context("findings")?;
    let found = findings.iter().find(|it| it["code"] == "HOST_DRIVER").context("HOST_DRIVER")?;
    let command = found["fixes"][0].as_str().context("a fix")?;
    ensure!(command.starts_with("umount "), "the disk would go from under its mount: {command}");
    run(&mut daemon.shell(command))?;
    let id = text(&daemon.cli(&words(NVME1))?.ok()?, "id")?;
    round_trip(daemon, NVME1, &id)?;
    before.is_back()
}

/// A network card goes when its driver is released on purpose, and comes back.
fn e1000e(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(E1000E);
    let daemon = Daemon::start(ctx)?;
    let way_out = format!("berth kernel-dma release {E1000E}");
    is_refused(&daemon.cli(&words(E1000E))?, "KERNEL_DMA", &[E1000E, "e1000e", &way_out])?;
    before.is_back()?;
    daemon.cli(&["kernel-dma", "release", E1000E])?.ok()?;
    ensure!(sysfs::driver(E1000E).is_none(), "e1000e is still on {E1000E}");
    let id = text(&daemon.cli(&words(E1000E))?.ok()?, "id")?;
    daemon.cli(&["attach", &id])?.ok()?;
    daemon.cli(&["release", &id])?.ok()?;
    if sysfs::driver(E1000E).is_none() {
        is_free(E1000E)?;
        daemon.cli(&["kernel-dma", "set", E1000E])?.ok()?;
    }
    before.is_back()?;
    Ok(Outcome::Pass)
}

fn igb(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(IGB);
    let daemon = Daemon::start(ctx)?;
    let id = text(&daemon.cli(&taken(IGB))?.ok()?, "id")?;
    round_trip(&daemon, IGB, &id)?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

/// Without interrupt remapping the kernel says EPERM; who asked is told why, on either back end.
fn unsafe_interrupts(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    sysfs::to_vfio(EDU_ROOT)?;
    let raw = probe::bind_cdev(EDU_ROOT).map(drop);
    sysfs::to_host(EDU_ROOT, None)?;
    ctx.say(format!("a BIND by hand: {raw:?}"));
    if ctx.has(Capability::Cdev) {
        ensure!(raw == Err(Errno::PERM), "{raw:?}");
    }
    let daemon = Daemon::start(ctx)?;
    let iommufd = ctx.has(Capability::Iommufd) && ctx.has(Capability::Cdev);
    let backends = [("type1", true), ("iommufd", iommufd)];
    for (backend, _) in backends.iter().filter(|(_, there)| *there) {
        let mut all = words(EDU_ROOT);
        all.extend(["--backend", backend]);
        let reserved = daemon.cli(&all)?;
        if reserved.code == Some(0) {
            let id = text(&reserved.ok()?, "id")?;
            let answer = daemon.cli(&["attach", &id])?;
            is_refused(&answer, "MSI_UNSAFE", &["EPERM", "interrupt", "firmware"])?;
            daemon.cli(&["release", &id])?.ok()?;
        } else {
            is_refused(&reserved, "MSI_UNSAFE", &["EPERM", "interrupt", "firmware"])?;
        }
        before.is_back()?;
    }
    Ok(Outcome::Pass)
}
