//! QEMU that makes itself a daemon: the process that `berth run` became ends, and its VM lives on.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    berthd_run::{DISK, Delivery, GUEST, HOSTS, LENGTH, Vm, becomes, offset},
    berthd_tools::{Before, is_free},
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario, daemon::Daemon, disk, edu::pattern, nvme::Nvme, probe, wait_for,
    },
    wire::Capability::{self, Cdev, Intremap, Iommufd, Qemu, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_daemonize_iommufd", IOMMUFD, iommufd).within(400),
    Scenario::new("berthd_daemonize_type1", TYPE1, type1).within(400),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap, Qemu];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap, Qemu];

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    life(ctx, Delivery::UNBOUND)
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    life(ctx, Delivery::NODE)
}

fn life(ctx: &Ctx, delivery: Delivery) -> Result<Outcome> {
    let before = Before::of(DISK);
    let mut daemon = Daemon::start(ctx)?;
    let hosts = pattern(43, LENGTH);
    disk::write(ctx, DISK, offset(HOSTS), &hosts)?;
    let id = delivery.reserve(&daemon, "exclusive", Some(GUEST))?;
    let place = tempfile(ctx)?;
    let mut vm = Vm::start(ctx, &daemon, &id, &["-daemonize", "-pidfile", &place])?;
    let qtest = vm.connected(ctx)?;
    let pid = wait_for("QEMU's pid file", ctx.patience(), || {
        fs::read_to_string(&place).ok()?.trim().parse::<u32>().ok()
    })?;
    ensure!(pid != vm.pid(), "it made itself no daemon");
    vm.ends(ctx)?;
    let is_with_it = |daemon: &Daemon| {
        let shown = becomes(ctx, daemon, &id, "HELD")?;
        let process = &shown["claims"][0]["processes"][0];
        let named = process["name"].as_str().unwrap_or_default().starts_with("qemu");
        anyhow::Ok((process["pid"] == pid && named).then_some(()))
    };
    wait_for("the daemon to be the holder", ctx.patience(), || is_with_it(&daemon).ok()?)?;
    ensure!(probe::stranger(DISK).is_kept_out(), "{:?}", probe::stranger(DISK));
    let mut nvme = Nvme::start(qtest, ctx.patience())?;
    let read = nvme.read(HOSTS, LENGTH)?;
    ensure!(read == hosts, "the VM read {:?} and not what the host wrote", &read[..8]);
    daemon.kill()?;
    daemon.start_again()?;
    ensure!(is_with_it(&daemon)?.is_some(), "after a restart it is another's");
    let read = nvme.read(HOSTS, LENGTH)?;
    ensure!(read == hosts, "after a restart the VM read {:?}", &read[..8]);

    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).context("odd pid")?;
    kill_process(process, Signal::KILL)?;
    becomes(ctx, &daemon, &id, "RESERVED")?;
    daemon.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    is_free(DISK)?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

/// A file that the VM's user may write.
fn tempfile(ctx: &Ctx) -> Result<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let place = ctx.dir().join("qemu.pid");
    fs::write(&place, "")?;
    fs::set_permissions(&place, fs::Permissions::from_mode(0o666))?;
    Ok(place.display().to_string())
}
