//! Who is alive: a device that outlives its holder's process is the holder's still in what came of
//! it, and drains anywhere else. Decided by bytes that the device moved, errnos and sysfs.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::berthd_tools::{Before, is_free, is_refused, moves, reserve};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        cgroup::Cgroups,
        daemon::Daemon,
        gift,
        holder::Holder,
        probe, sysfs,
        unpriv::{HOLDER_UID, STRANGER_UID},
        wait_for,
    },
    topology::EDU_ROOT,
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_drains_iommufd", IOMMUFD, drains_iommufd).within(240),
    Scenario::new("berthd_drains_type1", TYPE1, drains_type1).within(240),
    Scenario::new("berthd_drains_unseen_iommufd", IOMMUFD, unseen_iommufd).within(240),
    Scenario::new("berthd_drains_unseen_type1", TYPE1, unseen_type1).within(240),
    Scenario::new("berthd_child_holds_iommufd", IOMMUFD, child_iommufd).within(240),
    Scenario::new("berthd_child_holds_type1", TYPE1, child_type1).within(240),
];

pub(super) const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
pub(super) const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const IOVA: u64 = 0x60_0000;

fn drains_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    drains(ctx, "iommufd")
}

fn drains_type1(ctx: &mut Ctx) -> Result<Outcome> {
    drains(ctx, "type1")
}

fn unseen_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    unseen(ctx, "iommufd")
}

fn unseen_type1(ctx: &mut Ctx) -> Result<Outcome> {
    unseen(ctx, "type1")
}

fn child_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    child(ctx, "iommufd")
}

fn child_type1(ctx: &mut Ctx) -> Result<Outcome> {
    child(ctx, "type1")
}

pub(super) fn bound(daemon: &Daemon, backend: &str) -> Result<String> {
    let words = ["--device", EDU_ROOT, "--policy", "exclusive", "--backend", backend];
    let id = reserve(daemon, &words)?;
    daemon.cli(&["attach", &id])?.ok()?;
    Ok(id)
}

/// A holder that has fetched, and has moved a page by its device.
pub(super) fn driving(
    ctx: &Ctx,
    daemon: &Daemon,
    id: &str,
    cgroups: &mut Cgroups,
) -> Result<Holder> {
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    cgroups.put(holder.pid(), "vm1")?;
    holder.fetch(id)?;
    let memory = holder.memory(1)?;
    holder.map(memory, IOVA)?;
    moves(&mut holder, EDU_ROOT, memory, IOVA, 11)?;
    Ok(holder)
}

/// Waits until the reservation is in a state with this process as the one that has it.
pub(super) fn is_with(
    ctx: &Ctx,
    daemon: &Daemon,
    id: &str,
    state: &str,
    pid: u32,
) -> Result<Value> {
    wait_for(&format!("{id} to be {state} by process {pid}"), ctx.patience(), || {
        let shown = daemon.cli(&["reservation", "show", id]).ok()?.ok().ok()?;
        let process = &shown["claims"][0]["processes"][0];
        (shown["state"] == state && process["pid"] == pid).then(|| process.clone())
    })
}

pub(super) fn is_reserved(ctx: &Ctx, daemon: &Daemon, id: &str) -> Result<()> {
    wait_for(&format!("{id} to be a hold again"), ctx.patience(), || {
        let shown = daemon.cli(&["reservation", "show", id]).ok()?.ok().ok()?;
        (shown["state"] == "RESERVED" && shown["claims"] == json!([])).then_some(())
    })
}

pub(super) fn name_of(pid: u32) -> Result<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    Ok(name.with_context(|| format!("process {pid} is gone"))?.trim_end().to_owned())
}

/// Nobody gets the device, by `berthd` or past it.
pub(super) fn is_taken(daemon: &Daemon, id: &str, says: &str) -> Result<()> {
    let words = ["reserve", "--holder", "vm2", "--device", EDU_ROOT, "--policy", "exclusive"];
    is_refused(&daemon.cli(&words)?, "GROUP_OWNED", &[id])?;
    is_refused(&daemon.cli(&["release", id])?, "HOLDER_DRAINING", &[says])?;
    let stranger = probe::stranger(EDU_ROOT);
    ensure!(stranger.is_kept_out(), "a stranger gets it: {stranger:?}");
    ensure!(sysfs::driver(EDU_ROOT).as_deref() == Some("vfio-pci"), "it was given back");
    Ok(())
}

/// A device's descriptor went to a process of another user. It is named when the holder dies, keeps
/// the group from everybody, and frees it by closing the descriptor, or by its end.
fn drains(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let mut daemon = Daemon::start(ctx)?;
    let mut cgroups = Cgroups::below_own()?;
    for (restarts, dies) in [(false, false), (true, false), (false, true)] {
        let id = bound(&daemon, backend)?;
        let mut holder = driving(ctx, &daemon, &id, &mut cgroups)?;
        let mut other = Holder::start(ctx, STRANGER_UID, daemon.handover())?;
        cgroups.put(other.pid(), "other")?;
        gift::pass(ctx, &mut holder, &mut other, EDU_ROOT)?;
        holder.kill()?;
        let process = is_with(ctx, &daemon, &id, "DRAINING", other.pid())?;
        ensure!(process["name"] == name_of(other.pid())?.as_str(), "{process}");
        is_taken(&daemon, &id, &other.pid().to_string())?;
        if restarts {
            daemon.kill()?;
            daemon.start_again()?;
            is_with(ctx, &daemon, &id, "DRAINING", other.pid())?;
            is_taken(&daemon, &id, &other.pid().to_string())?;
        }
        if dies {
            other.kill()?;
        } else {
            other.close()?;
        }
        is_reserved(ctx, &daemon, &id)?;
        ensure!(dies || other.memory(1).is_ok(), "it was ended");
        daemon.cli(&["release", &id])?.ok()?;
        before.is_back()?;
        is_free(EDU_ROOT)?;
    }
    Ok(Outcome::Pass)
}

/// A holder dies whose device's descriptor is in a socket, and in no process: its device drains as
/// its own, also over a restart of the daemon, and nobody gets it before the descriptor is closed.
fn unseen(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let mut daemon = Daemon::start(ctx)?;
    let mut cgroups = Cgroups::below_own()?;
    for restarts in [false, true] {
        let id = bound(&daemon, backend)?;
        let mut holder = driving(ctx, &daemon, &id, &mut cgroups)?;
        let pid = holder.pid();
        let under_way = gift::under_way(ctx, &mut holder, EDU_ROOT)?;
        if restarts {
            daemon.kill()?;
        }
        holder.kill()?;
        if restarts {
            daemon.start_again()?;
        }
        is_with(ctx, &daemon, &id, "DRAINING", pid)?;
        is_taken(&daemon, &id, "no process shows it")?;
        drop(under_way);
        is_reserved(ctx, &daemon, &id)?;
        daemon.cli(&["release", &id])?.ok()?;
        before.is_back()?;
        is_free(EDU_ROOT)?;
    }
    Ok(Outcome::Pass)
}

pub(super) fn end(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("odd pid")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

/// A child that left its parent and its session has the device when the holder dies. In the
/// holder's control group it is the holder; in another one it is anybody.
fn child(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start(ctx)?;
    let mut cgroups = Cgroups::below_own()?;
    for (group, state) in [("vm1", "HELD"), ("vm2", "DRAINING")] {
        let id = bound(&daemon, backend)?;
        let mut holder = driving(ctx, &daemon, &id, &mut cgroups)?;
        let known = sleepers()?;
        let forks = holder.start_with(EDU_ROOT, &["setsid", "--fork", "sleep", "100000"])?;
        let child = wait_for("the child", ctx.patience(), || {
            sleepers().ok()?.into_iter().find(|pid| !known.contains(pid))
        })?;
        ensure!(child != forks, "it is no child's child");
        cgroups.put(child, group)?;
        holder.kill()?;
        let process = is_with(ctx, &daemon, &id, state, child)?;
        ensure!(process["name"] == "sleep", "{process}");
        is_taken(&daemon, &id, &child.to_string())?;
        end(child)?;
        is_reserved(ctx, &daemon, &id)?;
        daemon.cli(&["release", &id])?.ok()?;
        before.is_back()?;
        is_free(EDU_ROOT)?;
    }
    Ok(Outcome::Pass)
}

fn sleepers() -> Result<Vec<u32>> {
    let all = fs::read_dir("/proc")?.flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| name_of(*pid).is_ok_and(|name| name == "sleep")).collect())
}
