//! What systemd does when something of Berth does not go on: a helper that the kernel keeps, a
//! daemon that stands still.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use super::berthd_tools::{Before, reserve};
use crate::{
    guest::{
        Ctx, Outcome, Scenario, disk, eventually, probe, sysfs,
        systemd::{
            BERTHD, HelperProcess, Installed, cgroup_of, drop_in, helpers, run, show, status,
            systemctl,
        },
        unpriv, wait_for,
    },
    topology::{E1000E, EDU_ROOT, NVME0},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Systemd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("systemd_stuck_helper", IOMMUFD, stuck_helper).within(240),
    Scenario::new("systemd_watchdog", TYPE1, watchdog).within(240),
    Scenario::new("systemd_watchdog_ledger", BASE, watchdog_ledger).within(240),
];

const BASE: &[Capability] = &[Capability::Daemon, Systemd];
const TYPE1: &[Capability] = &[Capability::Daemon, Systemd, Type1, Intremap];
const IOMMUFD: &[Capability] = &[Capability::Daemon, Systemd, Iommufd, Cdev, Type1, Intremap];

/// Long enough that `berthd` waits for its helper all the time, and looks at nothing meanwhile.
const WAITS: &str = "[timeouts]\nact_ms = 3600000\nrescan_ms = 86400000\ndrain_ms = 1000\n";

/// A helper that unbinds a device which somebody has open waits in the kernel, and once it is killed
/// not even that ends it. `berthd`, which waits for its answer, restarts all the same.
fn stuck_helper(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(E1000E);
    sysfs::to_vfio(E1000E)?;
    let berth = Installed::started(ctx, WAITS)?;
    let first = berth.pid()?;
    let foreign = probe::bind_cdev(E1000E).map_err(anyhow::Error::from)?;
    let mut set = berth.cli_command(&["kernel-dma", "set", E1000E, "--driver", "e1000e"]);
    let mut asked = set.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // The kernel takes the link away before it waits for the device's last user.
    let unbinding = || sysfs::driver(E1000E).is_none().then(helpers)?.into_iter().next();
    let stuck = wait_for("a helper that unbinds", ctx.patience(), unbinding)?;
    systemctl(&["kill", "--signal=KILL", &stuck.unit])?;
    is_beyond_signals(ctx, &stuck)?;

    let began = Instant::now();
    systemctl(&["restart", BERTHD])?;
    ctx.say(format!("the restart took {:.1} s", began.elapsed().as_secs_f64()));
    let second = berth.wait_for_another(first)?;
    is_beyond_signals(ctx, &stuck)?;
    unpriv::ensure_powerless(second)?;
    asked.kill()?;
    asked.wait()?;
    // Others go on.
    let other = Before::of(EDU_ROOT);
    let id = reserve(&berth, &["--device", EDU_ROOT, "--policy", "exclusive"])?;
    ensure!(sysfs::driver(EDU_ROOT).as_deref() == Some("vfio-pci"), "{EDU_ROOT} is elsewhere");
    berth.cli(&["release", &id])?.ok()?;
    other.is_back()?;
    is_beyond_signals(ctx, &stuck)?;

    drop(foreign);
    // But for the one that waits for the next act.
    let ended = || helpers().len() <= 1 && helpers().iter().all(|it| it.pid != stuck.pid);
    eventually("all helpers to end", ctx.patience(), ended)?;
    drop(berth);
    sysfs::to_host(E1000E, Some("e1000e"))?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

/// It was killed, and is there all the same, in a cgroup of its own.
fn is_beyond_signals(ctx: &Ctx, helper: &HelperProcess) -> Result<()> {
    let state = || status(helper.pid, "State").ok().filter(|state| state.starts_with('D'));
    let state = wait_for("a helper in state D", ctx.patience(), state)?;
    let cgroup = cgroup_of(helper.pid)?;
    ensure!(cgroup.ends_with(&helper.unit), "{cgroup}");
    ctx.say(format!("process {} is in state {state} in {cgroup}", helper.pid));
    Ok(())
}

/// A daemon that stands still is ended and started again, and has its holds again.
fn watchdog(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let berth = Installed::started(ctx, "")?;
    let id = reserve(&berth, &["--device", EDU_ROOT, "--policy", "exclusive"])?;
    let first = berth.pid()?;
    let began = Instant::now();
    systemctl(&["kill", "--signal=STOP", BERTHD])?;
    let second = berth.wait_for_another(first)?;
    ctx.say(format!("{first} stood still, {second} is up {} s later", began.elapsed().as_secs()));
    by_the_watchdog(&berth)?;
    ensure!(!Path::new(&format!("/proc/{first}")).exists(), "{first} is still there");
    ensure!(probe::stranger(EDU_ROOT).is_kept_out(), "{:?}", probe::stranger(EDU_ROOT));
    berth.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

fn by_the_watchdog(berth: &Installed) -> Result<()> {
    let restarts = show(BERTHD, "NRestarts")?;
    ensure!(restarts == "1", "{restarts} restarts, not 1");
    let said = berth.journal(&["-o", "cat", "-u", BERTHD])?;
    ensure!(said.contains("Watchdog timeout"), "it was not the watchdog: {said}");
    Ok(())
}

/// A file system at the state directory, thawed and taken away when dropped.
struct State;

const STATE: &str = "/var/lib/berth";

impl State {
    fn on(disk: &Path) -> Result<Self> {
        std::fs::create_dir_all(STATE)?;
        run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(disk))?;
        run(Command::new("mount").arg(disk).arg(STATE))?;
        Ok(Self)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // It isn't frozen where all went well.
        let _ = run(Command::new("fsfreeze").args(["--unfreeze", STATE]));
        if let Err(error) = run(Command::new("umount").arg(STATE)) {
            println!("{error:#}");
        }
    }
}

/// A daemon whose ledger waits for the disk, while its timers and its engine go on, is none that
/// lives.
fn watchdog_ledger(ctx: &mut Ctx) -> Result<Outcome> {
    let state = State::on(&disk::block_device(ctx, NVME0)?)?;
    let berth = Installed::fresh(ctx, "")?;
    drop_in(BERTHD, "[Service]\nWatchdogSec=10\n")?;
    systemctl(&["start", BERTHD])?;
    let first = berth.pid()?;
    // Longer than the watchdog waits: nothing is wrong yet.
    std::thread::sleep(std::time::Duration::from_secs(15));
    ensure!(berth.pid()? == first, "it was restarted though it was well");
    ensure!(show(BERTHD, "NRestarts")? == "0", "it was restarted though it was well");

    run(Command::new("fsfreeze").args(["--freeze", STATE]))?;
    let mut order = berth.cli_command(&["cordon", EDU_ROOT]);
    let mut asked = order.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let given_up = || show(BERTHD, "SubState").is_ok_and(|state| state.contains("watchdog"));
    let seen = eventually("systemd to give berthd up", ctx.patience(), given_up);
    run(Command::new("fsfreeze").args(["--unfreeze", STATE]))?;
    seen?;
    let second = berth.wait_for_another(first)?;
    by_the_watchdog(&berth)?;
    ctx.say(format!("{first} could not write, {second} can"));
    asked.kill().and_then(|()| asked.wait()).context("end the client")?;
    berth.cli(&["uncordon", EDU_ROOT])?;
    drop(berth);
    drop(state);
    Ok(Outcome::Pass)
}
