//! A holder that becomes another program or forks is alive; a process that has a dead holder's number is
//! not it. Decided by what a stranger gets of the device.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{
    berthd_alive::{IOMMUFD, TYPE1, bound, driving, end, is_reserved, is_taken, is_with, name_of},
    berthd_tools::{Before, is_free},
};
use crate::{
    guest::{Ctx, Outcome, Scenario, cgroup::Cgroups, daemon::Daemon, wait_for},
    topology::EDU_ROOT,
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_lives_on_iommufd", IOMMUFD, lives_on_iommufd).within(240),
    Scenario::new("berthd_lives_on_type1", TYPE1, lives_on_type1).within(240),
    Scenario::new("berthd_pid_reuse_iommufd", IOMMUFD, pid_reuse_iommufd).within(240),
    Scenario::new("berthd_pid_reuse_type1", TYPE1, pid_reuse_type1).within(240),
];

/// The highest number that a process may get.
const PID_MAX: &str = "/proc/sys/kernel/pid_max";
const SLEEP: [&str; 2] = ["sleep", "100000"];

fn lives_on_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    lives_on(ctx, "iommufd")
}

fn lives_on_type1(ctx: &mut Ctx) -> Result<Outcome> {
    lives_on(ctx, "type1")
}

fn pid_reuse_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    pid_reuse(ctx, "iommufd")
}

fn pid_reuse_type1(ctx: &mut Ctx) -> Result<Outcome> {
    pid_reuse(ctx, "type1")
}

/// The holder becomes another program; then it forks, its child is put into a control group below
/// its own, and it dies. All the time the device is held, over a restart of the daemon too.
fn lives_on(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let mut daemon = Daemon::start(ctx)?;
    let mut cgroups = Cgroups::below_own()?;
    for forks in [false, true] {
        let id = bound(&daemon, backend)?;
        let mut holder = driving(ctx, &daemon, &id, &mut cgroups)?;
        let pid = if forks {
            let child = holder.start_with(EDU_ROOT, &SLEEP)?;
            cgroups.put(child, "vm1/emulator")?;
            holder.kill()?;
            child
        } else {
            holder.exec_with(EDU_ROOT, &SLEEP)?;
            holder.pid()
        };
        wait_for("sleep to run", ctx.patience(), || (name_of(pid).ok()? == "sleep").then_some(()))?;
        for restarts in [false, true] {
            if restarts {
                daemon.kill()?;
                daemon.start_again()?;
            }
            is_with(ctx, &daemon, &id, "HELD", pid)?;
            is_taken(&daemon, &id, &pid.to_string())?;
        }
        if forks {
            end(pid)?;
        } else {
            holder.kill()?;
        }
        is_reserved(ctx, &daemon, &id)?;
        daemon.cli(&["release", &id])?.ok()?;
        before.is_back()?;
        is_free(EDU_ROOT)?;
    }
    Ok(Outcome::Pass)
}

/// The holder dies while the daemon isn't there, and another process gets its number and its control
/// group: the claims end all the same.
fn pid_reuse(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    while one_with(0)?.1 <= GIVEN_ONCE {}
    let mut daemon = Daemon::start(ctx)?;
    let mut cgroups = Cgroups::below_own()?;
    let id = bound(&daemon, backend)?;
    let mut holder = driving(ctx, &daemon, &id, &mut cgroups)?;
    let pid = holder.pid();
    daemon.kill()?;
    holder.kill()?;
    let mut next = with_number(pid)?;
    cgroups.put(pid, "vm1")?;
    daemon.start_again()?;
    is_reserved(ctx, &daemon, &id)?;
    ensure!(next.try_wait()?.is_none(), "the process with the number was ended");
    daemon.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    is_free(EDU_ROOT)?;
    next.kill()?;
    next.wait()?;
    Ok(Outcome::Pass)
}

/// Numbers up to this are given out once: the kernel leaves them out when it begins anew (kernel/pid.c,
/// `RESERVED_PIDS`).
const GIVEN_ONCE: u32 = 300;

/// A process with this number. The kernel gives them in turn, and begins anew behind the highest.
fn with_number(pid: u32) -> Result<Child> {
    let usual = fs::read_to_string(PID_MAX)?;
    fs::write(PID_MAX, (pid + 64).max(1024).to_string()).context("lower the highest pid")?;
    // Once around, and what others take meanwhile.
    let found = (0..pid + 1024).find_map(|_| one_with(pid).map(|(child, _)| child).transpose());
    fs::write(PID_MAX, usual.trim()).context("put the highest pid back")?;
    found.with_context(|| format!("no process got the number {pid}"))?
}

/// Starts a process, and lets it run if it has this number; its number in any case.
fn one_with(pid: u32) -> Result<(Option<Child>, u32)> {
    let mut child = Command::new(SLEEP[0]).arg(SLEEP[1]).stdin(Stdio::null()).spawn()?;
    let number = child.id();
    if number == pid {
        return Ok((Some(child), number));
    }
    child.kill()?;
    child.wait()?;
    Ok((None, number))
}
