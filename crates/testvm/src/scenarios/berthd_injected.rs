//! Calls of `berthd` and of its helper to the real kernel fail, one in each life of a reservation: who
//! asked is told why, nothing is left half, and what is asked again is done.
//!
//! A life without faults is counted first: its sites are what fails. A tracer below `berthd` answers in
//! the kernel's place, so that the call isn't done. After each fault the kernel is asked what is left.

mod ask;
mod life;
mod plan;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use self::{
    life::{Bench, Kind, LABEL, LIVES},
    plan::{Planned, plan},
};
use super::{
    berthd_seen::history_is_gapless,
    berthd_tools::{Before, is_free, moves, reserve},
};
use crate::{
    guest::{Ctx, Outcome, Scenario, holder::Holder, injector::Site, unpriv::HOLDER_UID},
    topology::{EDU_ROOT, NVME0},
    wire::Capability::{self, Cdev, FailNth, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_injected_iommufd", IOMMUFD, injected_iommufd).within(3600),
    Scenario::new("berthd_injected_type1", TYPE1, injected_type1).within(3600),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap, FailNth];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap, FailNth];
const IOVA: u64 = 0x40_0000;

fn injected_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    injected(ctx, "iommufd")
}

fn injected_type1(ctx: &mut Ctx) -> Result<Outcome> {
    injected(ctx, "type1")
}

fn injected(ctx: &Ctx, backend: &'static str) -> Result<Outcome> {
    let befores = [EDU_ROOT, NVME0].map(Before::of);
    let mut bench = Bench::start(ctx, backend)?;
    let sites = sites(&mut bench)?;
    bench.settle_baseline()?;
    let plan = plan(&sites, ctx.config.long, ctx.config.slow);
    for (kind, site) in &sites {
        ctx.say(format!("{:5} {} in {kind:?}", site.calls, site.name));
    }
    ctx.say(format!("{} sites, {} faults are planned", sites.len(), plan.len()));
    let (mut hit, mut refused, mut exact) = (0, 0, 0);
    let mut by_errno = BTreeMap::<&str, u32>::new();
    for Planned { kind, fault, name } in &plan {
        let what = format!("{name} at {} #{} in {kind:?}", fault.site, fault.number);
        println!("=== {what}");
        let end = bench.faulty_life(*kind, fault).with_context(|| what.clone())?;
        if end.hit {
            hit += 1;
            *by_errno.entry(name).or_default() += 1;
        }
        refused += u32::from(end.refused);
        exact += u32::from(end.exact);
        ctx.say(format!("{what}: {}", end.words));
    }
    whole_life(&bench, backend)?;
    befores.iter().try_for_each(Before::is_back)?;
    history_is_gapless(ctx, &bench.daemon)?;
    let told = bench.told();
    ctx.say(format!(
        "--- on {backend}: {} sites, {hit} of {} calls failed {by_errno:?}; {refused} lives with refusals, \
         {exact} with the call's errno: {told:?}",
        sites.len(),
        plan.len()
    ));
    ensure!(by_errno.len() == plan::ERRNOS.len(), "not every errno came by: {by_errno:?}");
    ensure!(hit * 4 >= plan.len() * 3, "too few calls failed: {hit} of {}", plan.len());
    // What the database or the helper makes of an errno is another one.
    ensure!(exact > 3 && exact * 2 > refused, "errnos are swallowed: {exact} of {refused}");
    Ok(Outcome::Pass)
}

/// Where each kind of life comes by, but for what one before it does too.
fn sites(bench: &mut Bench<'_>) -> Result<Vec<(Kind, Site)>> {
    let mut found: Vec<(Kind, Site)> = Vec::new();
    for kind in LIVES {
        // The first one loads what later ones have.
        bench.plain_life(kind)?;
        for site in bench.plain_life(kind)?.sites {
            if !found.iter().any(|(_, known)| known.name == site.name) {
                found.push((kind, site));
            }
        }
    }
    Ok(found)
}

/// After all of it a holder without rights has a device, which moves bytes, and gives it back.
fn whole_life(bench: &Bench<'_>, backend: &str) -> Result<()> {
    let daemon = &bench.daemon;
    let words = ["--device", EDU_ROOT, "--policy", "exclusive", "--label", LABEL, "--backend"];
    let id = reserve(daemon, &[&words[..], &[backend, "--delivery", "bound"]].concat())?;
    daemon.cli(&["attach", &id])?.ok()?;
    let mut holder = Holder::start(bench.ctx, HOLDER_UID, daemon.handover())?;
    holder.fetch(&id)?;
    let memory = holder.memory(1)?;
    holder.map(memory, IOVA)?;
    moves(&mut holder, EDU_ROOT, memory, IOVA, 41)?;
    holder.close()?;
    let released = daemon.cli(&["release", &id])?.ok()?;
    ensure!(released["state"] == "RELEASED", "not released: {released}");
    is_free(EDU_ROOT)
}
