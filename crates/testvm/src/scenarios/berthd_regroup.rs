//! A group that loses a device and gets it back while something of it is reserved: the kernel's group is
//! the same all along, and so is the reservation. Decided by DMA, and by the next holder.

use anyhow::{Result, ensure};
use berth_uapi::Errno;
use serde_json::Value;

use super::{
    berthd_hotplug::{listed, remove, rescan, start, state},
    berthd_tools::{
        Before, is_blocked_for, is_free, is_refused, moves, release_bridge, reserve, set_bridge,
        text,
    },
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario, daemon::Daemon, eventually, holder::Holder, sysfs,
        unpriv::HOLDER_UID,
    },
    topology::{MIXED_BRIDGE, MIXED_EDU, MIXED_NIC, PAIR_A, PAIR_B, PAIR_BRIDGE},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Shpchp, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_regroup_iommufd", IOMMUFD, iommufd).within(300),
    Scenario::new("berthd_regroup_type1", TYPE1, type1).within(300),
    Scenario::new("berthd_regroup_driver", TYPE1, driver_waits).within(300),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const IOVA: u64 = 0x40_0000;
/// What the IOMMU sees of everything behind the PCIe to PCI bridge.
const ALIAS: &str = "0000:03:00.0";

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    regroup(ctx, "iommufd")
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    regroup(ctx, "type1")
}

fn regroup(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = [PAIR_A, PAIR_B, PAIR_BRIDGE].map(Before::of);
    let mut daemon = start(ctx)?;
    release_bridge(ctx, &daemon)?;
    let (group, number) = (group_of(&daemon)?, sysfs::group(PAIR_A));
    let words = ["--device", PAIR_A, "--policy", "shared", "--backend", backend];
    let id = reserve(&daemon, &[&words[..], &["--delivery", "bound"]].concat())?;
    daemon.cli(&["attach", &id])?.ok()?;
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    holder.fetch(&id)?;
    let memory = holder.memory(1)?;
    holder.map(memory, IOVA)?;
    moves(&mut holder, PAIR_A, memory, IOVA, 43)?;

    remove(PAIR_B)?;
    eventually("the device to be seen gone", ctx.patience(), || {
        daemon.cli(&["device", "show", PAIR_B]).is_ok_and(|answer| answer.code != Some(0))
    })?;
    goes_on(&daemon, &id, &group)?;
    // Both have the bridge's requester id. Linux 7.3 takes that out of the IOMMU's table with the first
    // that goes, 6.12 doesn't.
    if let Err(cut_off) = moves(&mut holder, PAIR_A, memory, IOVA, 44) {
        ctx.say(format!("the kernel cut {PAIR_A} off: {cut_off}"));
        is_blocked_for(ctx, &mut holder, (PAIR_A, ALIAS), memory, IOVA)?;
    }

    // It comes back while there is no daemon.
    daemon.kill()?;
    rescan()?;
    daemon.start_again()?;
    listed(ctx, &daemon, PAIR_B)?;
    ensure!(sysfs::group(PAIR_B) == number, "{PAIR_B} came back into another group");
    goes_on(&daemon, &id, &group)?;
    moves(&mut holder, PAIR_A, memory, IOVA, 45)?;
    let words = ["reserve", "--holder", "vm2", "--device", PAIR_B, "--policy", "group"];
    is_refused(&daemon.cli(&words)?, "GROUP_OWNED", &[&id])?;

    drop(holder);
    daemon.cli(&["release", &id])?.ok()?;
    ensure!(group_of(&daemon)? == group, "the group has another id than before");
    set_bridge(ctx, &daemon)?;
    if !ctx.has(Shpchp) {
        is_free(PAIR_A)?;
        is_free(PAIR_B)?;
    }
    before.iter().try_for_each(Before::is_back)?;
    Ok(Outcome::Pass)
}

/// What comes back into a group that is reserved gets no host driver before that is over.
fn driver_waits(ctx: &mut Ctx) -> Result<Outcome> {
    let before = [MIXED_EDU, MIXED_NIC, MIXED_BRIDGE].map(Before::of);
    let daemon = start(ctx)?;
    let words = ["--device", MIXED_EDU, "--policy", "group", "--backend", "type1"];
    let id = reserve(&daemon, &[&words[..], &["--take-from-host"]].concat())?;
    remove(MIXED_NIC)?;
    rescan()?;
    listed(ctx, &daemon, MIXED_NIC)?;
    eventually("the reservation to be without it", ctx.patience(), || {
        daemon.cli(&["reservation", "show", &id]).is_ok_and(|answer| {
            let devices = answer.json["targets"].to_string();
            devices.contains(MIXED_EDU) && !devices.contains(MIXED_NIC)
        })
    })?;
    ensure!(state(&daemon, &id)? == "RESERVED", "{}", state(&daemon, &id)?);
    // `drivers_probe_store` has this for whatever keeps a driver away.
    let refused = sysfs::reprobe(MIXED_NIC);
    ensure!(refused == Err(Errno::INVAL), "probing beside what is reserved: {refused:?}");
    let driver = sysfs::driver(MIXED_NIC);
    ensure!(driver.is_none(), "{MIXED_NIC} is on {driver:?} beside what is reserved");
    daemon.cli(&["release", &id])?.ok()?;
    sysfs::reprobe(MIXED_NIC)?;
    before.iter().try_for_each(Before::is_back)?;
    Ok(Outcome::Pass)
}

fn group_of(daemon: &Daemon) -> Result<String> {
    let group: Value = daemon.cli(&["group", "show", PAIR_A])?.ok()?;
    text(&group, "stableId")
}

fn goes_on(daemon: &Daemon, id: &str, group: &str) -> Result<()> {
    let (state, now) = (state(daemon, id)?, group_of(daemon)?);
    ensure!(state == "HELD" && now == group, "{id} is {state}, of {now}, which was {group}");
    println!("{id} is {state} of {group}");
    Ok(())
}
