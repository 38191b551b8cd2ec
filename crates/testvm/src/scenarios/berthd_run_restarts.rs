//! A VM that runs while `berthd` is killed, stopped and replaced by another file, again and again.
//! Decided by what its disk reads, by the kernel, and by the record.

use std::{fs, path::PathBuf};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    berthd_run::{Delivery, GUEST, HOSTS, LENGTH, Vm, becomes, offset},
    berthd_tools::{Before, is_free},
};
use crate::{
    guest::{Ctx, Outcome, Scenario, daemon::Daemon, disk, edu::pattern, nvme::Nvme, probe},
    topology::NVME1,
    wire::Capability::{self, Cdev, Intremap, Iommufd, Qemu, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_run_restarts_iommufd", IOMMUFD, iommufd).within(600),
    Scenario::new("berthd_run_restarts_type1", TYPE1, type1).within(600),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap, Qemu];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap, Qemu];
const RESTARTS: u32 = 50;

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    restarts(ctx, Delivery { backend: "iommufd", word: "unbound", fds: true })
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    restarts(ctx, Delivery { backend: "type1", word: "node", fds: false })
}

fn restarts(ctx: &Ctx, delivery: Delivery) -> Result<Outcome> {
    let before = Before::of(NVME1);
    let mut daemon = Daemon::start(ctx)?;
    let builds = [ctx.program("berthd"), another_build(ctx)?];
    let hosts = pattern(29, LENGTH);
    disk::write(ctx, NVME1, offset(HOSTS), &hosts)?;
    let id = delivery.reserve(&daemon, "exclusive", Some(GUEST))?;
    let mut vm = Vm::start(ctx, &daemon, &id, &[])?;
    let qtest = vm.connected(ctx)?;
    becomes(ctx, &daemon, &id, "HELD")?;
    let mut nvme = Nvme::start(qtest, ctx.patience())?;
    let events = history(&daemon, &id)?;
    let claims = daemon.cli(&["reservation", "show", &id])?.ok()?["claims"].clone();
    ensure!(claims.as_array().is_some_and(|all| all.len() == 1), "{claims}");
    for (round, build) in (0..RESTARTS).zip(builds.iter().cycle().skip(1)) {
        if round % 3 == 2 {
            daemon.stop()?
        } else {
            daemon.kill()?
        };
        // While there is none the VM has its disk, and nobody else has it.
        let read = nvme.read(HOSTS, LENGTH)?;
        ensure!(read == hosts, "restart {round}: the VM read {:?}", &read[..8]);
        daemon.start_again_as(build)?;
        let read = nvme.read(HOSTS, LENGTH)?;
        ensure!(read == hosts, "after restart {round}: the VM read {:?}", &read[..8]);
        let shown = daemon.cli(&["reservation", "show", &id])?.ok()?;
        ensure!(shown["state"] == "HELD", "restart {round}: {shown}");
        ensure!(shown["claims"] == claims, "restart {round}: {shown}, not {claims}");
        ensure!(claims[0]["processes"][0]["pid"] == vm.pid(), "{claims}");
        let stranger = probe::stranger(NVME1);
        ensure!(stranger.is_kept_out(), "restart {round}: {stranger:?}");
    }
    ensure!(history(&daemon, &id)? == events, "a restart changed the reservation");
    ctx.say(format!("{RESTARTS} restarts, and the VM read its disk {} times", 2 * RESTARTS));
    vm.kill()?;
    becomes(ctx, &daemon, &id, "RESERVED")?;
    daemon.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    is_free(NVME1)?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

/// What happened to a reservation.
fn history(daemon: &Daemon, id: &str) -> Result<Value> {
    daemon.cli(&["history", id])?.ok()
}

/// A `berthd` that is another file elsewhere, with other bytes in it, beside its helper.
fn another_build(ctx: &Ctx) -> Result<PathBuf> {
    let dir = ctx.dir().join("next");
    fs::create_dir_all(&dir)?;
    let program = dir.join("berthd");
    fs::copy(ctx.program("berthd"), &program)?;
    // Behind the end of what is loaded.
    let mut file = fs::OpenOptions::new().append(true).open(&program)?;
    std::io::Write::write_all(&mut file, b"another build")?;
    fs::copy(ctx.program("berth-helper"), dir.join("berth-helper"))?;
    Ok(program)
}
