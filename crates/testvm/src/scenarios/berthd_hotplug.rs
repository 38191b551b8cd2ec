//! Devices that come and go while `berthd` runs, by the machine's own hot-plug and by hand. No scan is
//! due meanwhile, so what is seen was told by the kernel. Decided by sysfs, by the kernel letting go,
//! and by what the next holder gets.

use std::{fs, path::PathBuf, thread};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::berthd_tools::{Before, is_free, is_refused, moves, reserve, text};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::{Daemon, Options},
        eventually,
        holder::Holder,
        sysfs,
        unpriv::HOLDER_UID,
        wait_for,
    },
    topology::{EDU_SPARE, HOTPLUG_BUS, HOTPLUG_SLOT},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_hotplug_iommufd", IOMMUFD, iommufd).within(400),
    Scenario::new("berthd_hotplug_type1", TYPE1, type1).within(400),
    Scenario::new("berthd_by_hand_iommufd", IOMMUFD, by_hand_iommufd).within(300),
    Scenario::new("berthd_by_hand_type1", TYPE1, by_hand_type1).within(300),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const IOVA: u64 = 0x40_0000;

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    hotplug(ctx, "iommufd")
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    hotplug(ctx, "type1")
}

fn by_hand_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    by_hand(ctx, "iommufd")
}

fn by_hand_type1(ctx: &mut Ctx) -> Result<Outcome> {
    by_hand(ctx, "type1")
}

/// No scan is due: what is seen was told by the kernel.
pub(super) fn start(ctx: &Ctx) -> Result<Daemon> {
    let file = ctx.dir().join("berthd.toml");
    fs::write(&file, "[timeouts]\nrescan_ms = 3600000\n")?;
    let arguments = vec!["--config".into(), file.into()];
    Daemon::start_with(ctx, Options { arguments, ..Options::default() })
}

/// Added, removed while reserved, replaced by another model, removed while attached and while handed
/// over.
fn hotplug(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let daemon = start(ctx)?;
    plugged(ctx, &daemon, "edu", "first")?;
    let reserved = reserve_slot(&daemon, backend, "held")?;
    unplugged(ctx, "first")?;
    is_lost(ctx, &daemon, &reserved)?;

    // Another model where a device was that somebody had reserved.
    plugged(ctx, &daemon, "e1000e", "second")?;
    ensure!(state(&daemon, &reserved)? == "LOST", "the next device was inherited");
    let attach = daemon.cli(&["attach", &reserved])?;
    ensure!(attach.code == Some(3), "a lost reservation was attached: {}", attach.stdout);
    unplugged(ctx, "second")?;
    daemon.cli(&["release", &reserved])?.ok()?;

    // What berthd has open it closes, so that the kernel can go on.
    plugged(ctx, &daemon, "edu", "third")?;
    let held = reserve_slot(&daemon, backend, "held")?;
    daemon.cli(&["attach", &held])?.ok()?;
    unplugged(ctx, "third")?;
    is_lost(ctx, &daemon, &held)?;
    daemon.cli(&["release", &held])?.ok()?;

    // What a holder has open keeps the kernel waiting, and the holder is named.
    plugged(ctx, &daemon, "edu", "fourth")?;
    let bound = reserve_slot(&daemon, backend, "bound")?;
    daemon.cli(&["attach", &bound])?.ok()?;
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    holder.fetch(&bound)?;
    let memory = holder.memory(1)?;
    holder.map(memory, IOVA)?;
    moves(&mut holder, HOTPLUG_SLOT, memory, IOVA, 41)?;
    asked_to_go(ctx, "fourth")?;
    is_named(ctx, &daemon, HOTPLUG_SLOT, holder.pid())?;
    ensure!(sysfs::device_dir(HOTPLUG_SLOT).exists(), "it went though it is open");
    holder.close()?;
    unplugged(ctx, "fourth")?;
    is_lost(ctx, &daemon, &bound)?;
    daemon.cli(&["release", &bound])?.ok()?;

    // Nothing is left of all that: the next one is anybody's.
    plugged(ctx, &daemon, "edu", "fifth")?;
    let next = reserve_slot(&daemon, backend, "held")?;
    daemon.cli(&["attach", &next])?.ok()?;
    daemon.cli(&["release", &next])?.ok()?;
    is_free(HOTPLUG_SLOT)?;
    unplugged(ctx, "fifth")?;
    Ok(Outcome::Pass)
}

/// The same by an administrator: `remove` and `rescan` in sysfs, drivers bound and unbound, an override.
fn by_hand(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_SPARE);
    let mut daemon = start(ctx)?;
    // The same device, but removed meanwhile: nothing of what was reserved goes on.
    let reserved = reserve_spare(&daemon, backend)?;
    remove(EDU_SPARE)?;
    is_lost(ctx, &daemon, &reserved)?;
    rescan()?;
    listed(ctx, &daemon, EDU_SPARE)?;
    ensure!(state(&daemon, &reserved)? == "LOST", "what came back was inherited");
    daemon.cli(&["release", &reserved])?.ok()?;
    before.is_back()?;

    // Removed and back while berthd is away: its own record tells that it is another one.
    let reserved = reserve_spare(&daemon, backend)?;
    daemon.kill()?;
    remove(EDU_SPARE)?;
    rescan()?;
    daemon.start_again()?;
    ensure!(state(&daemon, &reserved)? == "LOST", "it was inherited over a restart");
    daemon.cli(&["release", &reserved])?.ok()?;
    before.is_back()?;

    // Taken off its driver while berthd has it attached.
    let attached = reserve_spare(&daemon, backend)?;
    daemon.cli(&["attach", &attached])?.ok()?;
    let unbinds = thread::spawn(|| sysfs::unbind(EDU_SPARE));
    eventually("the unbind to come back", ctx.patience(), || unbinds.is_finished())?;
    is_lost(ctx, &daemon, &attached)?;
    let seen = daemon.cli(&["device", "show", EDU_SPARE])?.ok()?;
    ensure!(seen["driver"].as_str().unwrap_or_default().is_empty(), "{seen}");
    daemon.cli(&["release", &attached])?.ok()?;
    sysfs::set_driver_override(EDU_SPARE, "")?;

    // A driver that is bound by hand is an event, with the cause.
    sysfs::set_driver_override(EDU_SPARE, "pci-stub")?;
    sysfs::reprobe(EDU_SPARE)?;
    wait_for("the driver to be seen", ctx.patience(), || {
        let seen = daemon.cli(&["device", "show", EDU_SPARE]).ok()?.ok().ok()?;
        (seen["driver"] == "pci-stub").then_some(())
    })?;
    let history = daemon.cli(&["history", EDU_SPARE])?.ok()?.to_string();
    let cause = format!("uevent: bind {EDU_SPARE}");
    ensure!(history.contains(&cause), "nothing of {cause}: {history}");
    ensure!(history.contains("driverOverrides"), "nothing of the override: {history}");
    sysfs::unbind(EDU_SPARE)?;
    sysfs::set_driver_override(EDU_SPARE, "")?;
    eventually("nobody to have it", ctx.patience(), || is_free(EDU_SPARE).is_ok())?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

fn reserve_slot(daemon: &Daemon, backend: &str, delivery: &str) -> Result<String> {
    let words = ["--device", HOTPLUG_SLOT, "--policy", "exclusive", "--backend", backend];
    reserve(daemon, &[&words[..], &["--delivery", delivery]].concat())
}

fn reserve_spare(daemon: &Daemon, backend: &str) -> Result<String> {
    let words = ["--device", EDU_SPARE, "--policy", "exclusive", "--backend", backend];
    reserve(daemon, &[&words[..], &["--delivery", "held"]].concat())
}

pub(super) fn state(daemon: &Daemon, id: &str) -> Result<String> {
    text(&daemon.cli(&["reservation", "show", id])?.ok()?, "state")
}

fn is_lost(ctx: &Ctx, daemon: &Daemon, id: &str) -> Result<()> {
    eventually("the reservation to be lost", ctx.patience(), || {
        state(daemon, id).is_ok_and(|state| state == "LOST")
    })
}

pub(super) fn listed(ctx: &Ctx, daemon: &Daemon, address: &str) -> Result<()> {
    eventually("the device to be listed", ctx.patience(), || {
        daemon.cli(&["device", "show", address]).is_ok_and(|answer| answer.code == Some(0))
    })
}

/// Plugs a device into the empty slot, and waits until `berthd` has it.
fn plugged(ctx: &Ctx, daemon: &Daemon, model: &str, id: &str) -> Result<()> {
    ctx.machine()?.plug(model, id, HOTPLUG_BUS)?;
    wait_for("the device's group", ctx.patience(), || sysfs::group(HOTPLUG_SLOT))?;
    listed(ctx, daemon, HOTPLUG_SLOT)?;
    let group: Value = daemon.cli(&["device", "show", HOTPLUG_SLOT])?.ok()?;
    println!("{model} is {HOTPLUG_SLOT} of {}", group["group"]);
    Ok(())
}

/// Has it pulled out, and waits until the kernel has let go of it.
fn unplugged(ctx: &Ctx, id: &str) -> Result<()> {
    // The slot's button is ignored for some seconds after a change; asking again does no harm.
    eventually("the device to go", ctx.patience(), || {
        let asked = ctx.machine().and_then(|mut machine| machine.unplug(id));
        drop(asked);
        !sysfs::device_dir(HOTPLUG_SLOT).exists()
    })?;
    // The slot is empty for QEMU a moment later.
    eventually("the slot to be empty", ctx.patience(), || {
        let gone = ctx.machine().and_then(|mut machine| machine.unplug(id));
        gone.is_err_and(|error| error.to_string().contains("not found"))
    })
}

/// Has it pulled out while somebody has it open: the driver's link goes, and the device stays.
fn asked_to_go(ctx: &Ctx, id: &str) -> Result<()> {
    eventually("the kernel to wait", ctx.patience(), || {
        let asked = ctx.machine().and_then(|mut machine| machine.unplug(id));
        drop(asked);
        sysfs::driver(HOTPLUG_SLOT).is_none()
    })
}

/// Whether a device is wedged, and says by whom; also to who wants it.
fn is_named(ctx: &Ctx, daemon: &Daemon, address: &str, pid: u32) -> Result<()> {
    let who = format!("({pid})");
    wait_for("the holder to be named", ctx.patience(), || {
        let words = ["reserve", "--holder", "vm2", "--device", address, "--policy", "exclusive"];
        let answer = daemon.cli(&words).ok()?;
        is_refused(&answer, "WEDGED", &[&who]).ok()
    })?;
    let explained = daemon.cli(&["explain", address])?.ok()?.to_string();
    ensure!(explained.contains(&who), "nothing of {who}: {explained}");
    Ok(())
}

pub(super) fn remove(address: &str) -> Result<()> {
    let file = sysfs::device_dir(address).join("remove");
    sysfs::write(&file, "1").with_context(|| file.display().to_string())
}

pub(super) fn rescan() -> Result<()> {
    let file = PathBuf::from("/sys/bus/pci/rescan");
    sysfs::write(&file, "1").with_context(|| file.display().to_string())
}
