//! Policy `exclusive` and the hold: one unprivileged process gets one device, and nobody else.

use anyhow::{Context, Result, ensure};
use berth_uapi::Errno;
use serde_json::json;

use super::berthd_tools::{
    Before, is_blocked_for, is_free, is_refused, moves, opens_no_node, reserve, text,
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::Daemon,
        holder::Holder,
        probe, sysfs,
        unpriv::{HOLDER_UID, STRANGER_UID},
    },
    topology::{EDU_ROOT, MIXED_BRIDGE, MIXED_EDU, MIXED_NIC},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_exclusive_iommufd", IOMMUFD, exclusive_iommufd),
    Scenario::new("berthd_exclusive_type1", TYPE1, exclusive_type1),
    Scenario::new("berthd_hold_iommufd", IOMMUFD, hold_iommufd),
    Scenario::new("berthd_hold_type1", TYPE1, hold_type1),
    Scenario::new("berthd_backend_cannot", TYPE1, backend_cannot),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const IOVA: u64 = 0x40_0000;

fn exclusive_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    exclusive(ctx, "iommufd")
}

fn exclusive_type1(ctx: &mut Ctx) -> Result<Outcome> {
    exclusive(ctx, "type1")
}

/// The whole life of a reservation, and what its holder can and can't do.
fn exclusive(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start(ctx)?;
    let id =
        reserve(&daemon, &["--device", EDU_ROOT, "--policy", "exclusive", "--backend", backend])?;
    ensure!(
        sysfs::driver(EDU_ROOT).as_deref() == Some("vfio-pci"),
        "{EDU_ROOT} is not on vfio-pci"
    );
    daemon.cli(&["attach", &id])?.ok()?;

    let mut stranger = Holder::start(ctx, STRANGER_UID, daemon.handover())?;
    let told = stranger.ask(json!({"op": "fetch", "reservation": id}), None)?;
    ensure!(told["ok"] == false && told["refusal"]["reason"] == "NOT_FOR_YOU", "{told}");

    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    opens_no_node(&mut holder)?;
    let fetched = holder.fetch(&id)?;
    ensure!(fetched["backend"] == backend && fetched["policy"] == "exclusive", "{fetched}");
    ensure!(probe::stranger(EDU_ROOT).is_kept_out(), "{:?}", probe::stranger(EDU_ROOT));
    let memory = holder.memory(1)?;
    holder.map(memory, IOVA)?;
    moves(&mut holder, EDU_ROOT, memory, IOVA, 11)?;
    holder.unmap(IOVA, 4096)?;
    is_blocked_for(ctx, &mut holder, (EDU_ROOT, EDU_ROOT), memory, IOVA)?;
    holder.map(memory, IOVA)?;
    moves(&mut holder, EDU_ROOT, memory, IOVA, 23)?;

    // A living holder's claims don't end by mistake.
    is_refused(&daemon.cli(&["release", &id])?, "HOLDER_DRAINING", &[&holder.pid().to_string()])?;
    moves(&mut holder, EDU_ROOT, memory, IOVA, 37)?;
    holder.close()?;
    let released = daemon.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    let given = &released["givenBack"][0];
    ensure!(given["reset"] == "NOT_POSSIBLE", "edu on the root bus has no reset: {released}");
    is_free(EDU_ROOT)?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

fn hold_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    hold(ctx, "iommufd")
}

fn hold_type1(ctx: &mut Ctx) -> Result<Outcome> {
    hold(ctx, "type1")
}

/// While a group is merely reserved, the kernel refuses everyone else: a sibling's host driver, a
/// foreign BIND, a foreign open. After the release it refuses nobody.
fn hold(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = [MIXED_EDU, MIXED_NIC, MIXED_BRIDGE].map(Before::of);
    let mut daemon = Daemon::start(ctx)?;
    let id = reserve(
        &daemon,
        &["--device", MIXED_EDU, "--policy", "group", "--backend", backend, "--take-from-host"],
    )?;
    is_held(ctx, "reserved")?;
    // It is taken again before the next daemon is ready.
    daemon.kill()?;
    daemon.start_again()?;
    is_held(ctx, "after a crash and a restart")?;

    let dir = daemon.dir().to_owned();
    ensure!(dir.join("state").exists(), "no state in {}", dir.display());
    let released = daemon.cli(&["release", &id])?.ok()?;
    ensure!(text(&released, "state")? == "RELEASED", "{released}");
    before.iter().try_for_each(Before::is_back)?;
    // Host drivers are back on the group; as an administrator would, they are taken away to see
    // that the group itself is nobody's.
    sysfs::unbind(MIXED_NIC).context("unbind the sibling")?;
    sysfs::unbind(MIXED_BRIDGE).context("unbind the bridge")?;
    is_free(MIXED_EDU)?;
    for was in [MIXED_BRIDGE, MIXED_NIC] {
        sysfs::reprobe(was)?;
    }
    before.iter().try_for_each(Before::is_back)?;
    Ok(Outcome::Pass)
}

fn is_held(ctx: &Ctx, when: &str) -> Result<()> {
    let stranger = probe::stranger(MIXED_EDU);
    let busy = Err(Errno::BUSY);
    ensure!(stranger.open_group == busy, "{when}: {stranger:?}");
    ensure!(stranger.bind_cdev.is_none_or(|answer| answer == busy), "{when}: {stranger:?}");
    // The sibling's override may name what keeps it from its host driver.
    let over = sysfs::driver_override(MIXED_NIC);
    let driver = sysfs::driver(MIXED_NIC);
    ensure!(driver.as_deref() != Some("e1000"), "{when}: the sibling is on its host driver");
    if driver.is_none() {
        sysfs::set_driver_override(MIXED_NIC, "")?;
        let refused = sysfs::bind(MIXED_NIC, "e1000");
        sysfs::set_driver_override(MIXED_NIC, over.as_deref().unwrap_or_default())?;
        ensure!(refused == busy, "{when}: the sibling's host driver: {refused:?}");
    }
    ctx.say(format!("{when}: {stranger:?}; {MIXED_NIC} is on {driver:?}, and e1000 gets EBUSY"));
    Ok(())
}

/// What this kernel hasn't, and what a back end can't, is refused as that.
fn backend_cannot(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start(ctx)?;
    let words = ["--device", EDU_ROOT, "--policy", "exclusive", "--backend", "iommufd"];
    let uid = format!("uid:{HOLDER_UID}");
    let mut all = vec!["reserve", "--holder", "vm1", "--for", &uid];
    all.extend(words);
    let answer = daemon.cli(&all)?;
    if ctx.has(Iommufd) && ctx.has(Cdev) {
        let id = text(&answer.ok()?, "id")?;
        daemon.cli(&["release", &id])?.ok()?;
    } else {
        is_refused(&answer, "UNSUPPORTED", &["iommufd", "EOPNOTSUPP"])?;
    }
    before.is_back()?;
    Ok(Outcome::Pass)
}
