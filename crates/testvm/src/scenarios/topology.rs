//! The machine is the one that the other scenarios count on.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{
    guest::{Ctx, Outcome, Scenario, eventually, sysfs, unpriv, wait_for},
    topology::{EDU_ROOT, HOTPLUG_BUS, HOTPLUG_SLOT, IGB, NVME0, SEATS},
    wire::Capability,
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("topology_groups", &[], groups),
    Scenario::new("topology_drivers", &[], drivers),
    Scenario::new("topology_reset_methods", &[Capability::Intremap], reset_methods),
    Scenario::new("topology_hotplug", &[Capability::Intremap], hotplug),
    Scenario::new("topology_unprivileged", &[], unprivileged),
];

/// Every seat has its ids, and the groups are exactly those of the table.
fn groups(ctx: &mut Ctx) -> Result<Outcome> {
    let mut wanted: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for seat in SEATS {
        wanted.entry(seat.group).or_default().push(seat.address.to_owned());
        let id = |name| sysfs::attribute(seat.address, name).context("no such device");
        let ids = (id("vendor")?, id("device")?);
        let expected = (format!("{:#06x}", seat.ids.0), format!("{:#06x}", seat.ids.1));
        ensure!(ids == expected, "{}: ids {ids:?}, not {expected:?}", seat.address);
    }
    for (name, members) in wanted {
        let first = members.first().context("an empty group in the table")?;
        let group = sysfs::group(first).with_context(|| format!("{first} has no group"))?;
        let found = sysfs::group_members(&group)?;
        ctx.say(format!("{name}: group {group}, {found:?}"));
        ensure!(found == members, "{name} (group {group}): {found:?}, not {members:?}");
    }
    Ok(Outcome::Pass)
}

/// Every seat has the host driver that a boot gives it.
fn drivers(ctx: &mut Ctx) -> Result<Outcome> {
    for seat in SEATS {
        let found = sysfs::driver(seat.address);
        ctx.say(format!("{}: {found:?}", seat.address));
        // shpchp may have taken a bridge: that is a capability of the kernel, not of the table.
        let bridge = seat.ids == (0x1b36, 0x000e);
        if bridge {
            ensure!(
                found.is_none() || ctx.has(Capability::Shpchp),
                "the bridge {} is on {found:?}",
                seat.address
            );
            continue;
        }
        let wanted = seat.host_driver;
        ensure!(found.as_deref() == wanted, "{}: {found:?}, not {wanted:?}", seat.address);
    }
    Ok(Outcome::Pass)
}

/// One device that cannot be reset, and devices that can.
fn reset_methods(ctx: &mut Ctx) -> Result<Outcome> {
    let methods = |address| sysfs::attribute(address, "reset_method").unwrap_or_default();
    for seat in SEATS {
        ctx.say(format!("{}: {:?}", seat.address, methods(seat.address)));
    }
    ensure!(methods(EDU_ROOT).is_empty(), "the edu on the root bus has {:?}", methods(EDU_ROOT));
    for address in [IGB, NVME0] {
        ensure!(methods(address).contains("flr"), "{address} has {:?}", methods(address));
    }
    Ok(Outcome::Pass)
}

/// A device that is plugged in gets a group; unplugged, it goes with it.
fn hotplug(ctx: &mut Ctx) -> Result<Outcome> {
    let mut machine = ctx.machine()?;
    machine.plug("edu", "plugged", HOTPLUG_BUS)?;
    let group =
        wait_for("the plugged device's group", ctx.patience(), || sysfs::group(HOTPLUG_SLOT))?;
    ctx.say(format!("{HOTPLUG_SLOT} is in group {group}"));
    ensure!(sysfs::group_members(&group)? == [HOTPLUG_SLOT], "it is not alone in its group");
    // The slot's button is ignored for some seconds after a change; asking again does no harm.
    eventually("the device to go", ctx.patience(), || {
        let _ = machine.unplug("plugged");
        sysfs::driver(HOTPLUG_SLOT).is_none() && !sysfs::device_dir(HOTPLUG_SLOT).exists()
    })?;
    let status = machine.execute("query-status", &json!({}))?;
    ensure!(status.get("running").is_some(), "odd answer from QEMU: {status}");
    Ok(Outcome::Pass)
}

/// The unprivileged processes of other scenarios really have no privilege.
fn unprivileged(ctx: &mut Ctx) -> Result<Outcome> {
    let limit = 8 << 20;
    let sleep = std::path::Path::new("/bin/sleep");
    let mut child = unpriv::command(unpriv::HOLDER_UID, Some(limit), sleep)?.arg("600").spawn()?;
    let pid = child.id();
    let comm = format!("/proc/{pid}/comm");
    wait_for("the program to run", ctx.patience(), || {
        std::fs::read_to_string(&comm).ok().filter(|name| name.trim() == "sleep")
    })?;
    unpriv::ensure_powerless(pid)?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find(|l| l.starts_with("Max locked memory")).context("no memlock")?;
    ctx.say(line);
    ensure!(line.split_whitespace().nth(3) == Some("8388608"), "memlock: {line}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains("Uid:\t60001\t60001\t60001\t60001"), "it is not uid 60001");
    child.kill()?;
    child.wait()?;
    Ok(Outcome::Pass)
}
