//! Delivery `held`: the daemon keeps the device, its client registers memory; and the end of a
//! client that dies.

use anyhow::{Result, ensure};
use serde_json::json;

use super::berthd_tools::{Before, PAGE, is_blocked, is_free, moves_by, reserve, text};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::Daemon,
        edu::{Edu, pattern},
        holder::Holder,
        probe, sysfs,
        unpriv::HOLDER_UID,
        wait_for,
    },
    topology::EDU_ROOT,
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_held_iommufd", IOMMUFD, held_iommufd),
    Scenario::new("berthd_held_type1", TYPE1, held_type1),
    Scenario::new("berthd_holder_dies_iommufd", IOMMUFD, dies_iommufd),
    Scenario::new("berthd_holder_dies_type1", TYPE1, dies_type1),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const IOVA: u64 = 0x80_0000;

fn held_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    held(ctx, "iommufd")
}

fn held_type1(ctx: &mut Ctx) -> Result<Outcome> {
    held(ctx, "type1")
}

/// Memory that a client registers is reached by the device until it is taken back, or until the
/// client dies.
fn held(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start(ctx)?;
    let words = ["--device", EDU_ROOT, "--policy", "exclusive", "--delivery", "held"];
    let id = reserve(&daemon, &[&words[..], &["--backend", backend]].concat())?;
    daemon.cli(&["attach", &id])?.ok()?;
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let fetched = holder.ask(json!({"op": "fetch", "reservation": id}), None)?;
    let fds = fetched["fds"].as_array().map_or(0, Vec::len);
    ensure!(fds == 0, "descriptors of a held device left the daemon: {fetched}");

    let edu = Edu::on_sysfs(EDU_ROOT)?;
    let memory = holder.memory(1)?;
    holder.register(&id, memory, IOVA)?;
    moves_by(&edu, &mut holder, memory, IOVA, 3)?;
    holder.unregister(&id, IOVA)?;
    holder.write(memory, 0, &pattern(5, PAGE))?;
    is_blocked(ctx, IOVA, EDU_ROOT, || edu.copy_out(IOVA, 4096))?;
    ensure!(holder.read(memory, 0, PAGE)? == pattern(5, PAGE), "DMA after unregister");
    holder.register(&id, memory, IOVA)?;
    moves_by(&edu, &mut holder, memory, IOVA, 7)?;
    // What it registered ends with it. The last close turns bus mastering off, so that the device
    // has to be told anew before it can try.
    drop(edu);
    holder.kill()?;
    waits_for_reserved(ctx, &daemon, &id)?;
    let edu = Edu::on_sysfs(EDU_ROOT)?;
    is_blocked(ctx, IOVA, EDU_ROOT, || edu.copy_out(IOVA, 4096))?;
    drop(edu);
    ends(&daemon, &id, &before)
}

fn dies_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    dies(ctx, "iommufd")
}

fn dies_type1(ctx: &mut Ctx) -> Result<Outcome> {
    dies(ctx, "type1")
}

/// A killed holder's claims end: its device is closed, and the reservation is a hold again.
fn dies(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start(ctx)?;
    let id =
        reserve(&daemon, &["--device", EDU_ROOT, "--policy", "exclusive", "--backend", backend])?;
    daemon.cli(&["attach", &id])?.ok()?;
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    holder.fetch(&id)?;
    let memory = holder.memory(1)?;
    holder.map(memory, IOVA)?;
    holder.copy_out(EDU_ROOT, IOVA)?;
    holder.kill()?;
    waits_for_reserved(ctx, &daemon, &id)?;
    // The hold is the kernel's: still nobody else gets in, and the device does no DMA.
    ensure!(probe::stranger(EDU_ROOT).is_kept_out(), "{:?}", probe::stranger(EDU_ROOT));
    let edu = Edu::on_sysfs(EDU_ROOT)?;
    is_blocked(ctx, IOVA, EDU_ROOT, || edu.copy_out(IOVA, 4096))?;
    drop(edu);
    // The next one is served anew.
    daemon.cli(&["attach", &id])?.ok()?;
    let mut next = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    next.fetch(&id)?;
    next.close()?;
    ends(&daemon, &id, &before)
}

fn waits_for_reserved(ctx: &Ctx, daemon: &Daemon, id: &str) -> Result<()> {
    wait_for("the claims of the dead holder to end", ctx.patience(), || {
        let shown = daemon.cli(&["reservation", "show", id]).ok()?.ok().ok()?;
        (shown["state"] == "RESERVED" && shown["claims"] == json!([])).then_some(())
    })
}

fn ends(daemon: &Daemon, id: &str, before: &Before) -> Result<Outcome> {
    let released = daemon.cli(&["release", id])?.ok()?;
    ensure!(text(&released, "state")? == "RELEASED", "{released}");
    before.is_back()?;
    ensure!(sysfs::driver(EDU_ROOT).is_none(), "{EDU_ROOT} has a driver");
    is_free(EDU_ROOT)?;
    before.is_back()?;
    Ok(Outcome::Pass)
}
