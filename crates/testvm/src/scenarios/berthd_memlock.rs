//! What may be locked: refused before anything is touched where the host has not so much, and raised by
//! the helper for the very process that is named. Decided by `/proc/PID/limits` and by what the kernel
//! pins.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::berthd_tools::{Before, is_free, is_refused, reserve};
use crate::{
    guest::{Ctx, Outcome, Scenario, daemon::Daemon, holder::Holder, unpriv::HOLDER_UID, wait_for},
    topology::EDU_ROOT,
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_memlock_named_iommufd", IOMMUFD, iommufd).within(240),
    Scenario::new("berthd_memlock_named_type1", TYPE1, type1).within(240),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const MIB: u64 = 1 << 20;
const IOVA: u64 = 0x100_0000;
/// What holders may lock by themselves; what the reservation says; what is added to it.
const USUAL: u64 = 8 * MIB;
const STATED: u64 = 32 * MIB;
const BESIDE: u64 = 256 * MIB;
/// More than the usual limit, and less than what is stated.
const PAGES: u64 = 16 * MIB / 4096;

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    named(ctx, "iommufd")
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    named(ctx, "type1")
}

fn limit_of(pid: u32) -> Result<(u64, u64)> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let mut words = line.context("no such limit")?.split_whitespace();
    let mut next = || words.next().and_then(|word| word.parse().ok()).context("no number");
    Ok((next()?, next()?))
}

fn memory_of_the_host() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("no total")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

fn named(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start(ctx)?;
    let words = ["--device", EDU_ROOT, "--policy", "exclusive", "--backend", backend];
    let host = memory_of_the_host()?;
    let too_much = (host - BESIDE + 1).to_string();
    let uid = format!("uid:{HOLDER_UID}");
    let own = ["reserve", "--holder", "vm1", "--for", &uid, "--memory", &too_much];
    let says = [too_much.as_str(), &BESIDE.to_string(), &host.to_string(), "--memory"];
    is_refused(&daemon.cli(&[&own[..], &words].concat())?, "MEMLOCK_LIMIT", &says)?;
    before.is_back()?;

    for stated in [None, Some(STATED)] {
        let memory = stated.map(|bytes| bytes.to_string());
        let mut all = words.to_vec();
        all.extend(memory.iter().flat_map(|bytes| ["--memory", bytes.as_str()]));
        let id = reserve(&daemon, &all)?;
        daemon.cli(&["attach", &id])?.ok()?;
        let mut launcher = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
        let mut vmm = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
        let told = launcher.fetch_for(&id, vmm.pid())?;
        ensure!(told["ok"] == true, "{told}");
        let wanted = stated.map_or(USUAL, |bytes| bytes + BESIDE);
        ensure!(limit_of(vmm.pid())? == (wanted, wanted), "{:?}", limit_of(vmm.pid())?);
        ensure!(limit_of(launcher.pid())? == (USUAL, USUAL), "who fetched has another limit");
        drop(launcher);
        // It fetches for itself what it maps with: that raises nothing more.
        vmm.fetch(&id)?;
        ensure!(limit_of(vmm.pid())? == (wanted, wanted), "{:?}", limit_of(vmm.pid())?);
        let memory = vmm.memory(PAGES)?;
        let mapped = vmm.map(memory, IOVA);
        ensure!(mapped.is_ok() == stated.is_some(), "with {stated:?} stated: {mapped:?}");
        vmm.kill()?;
        wait_for("the claims to end", ctx.patience(), || {
            let shown = daemon.cli(&["reservation", "show", &id]).ok()?.ok().ok()?;
            (shown["state"] == "RESERVED").then_some(())
        })?;
        daemon.cli(&["release", &id])?.ok()?;
        before.is_back()?;
        is_free(EDU_ROOT)?;
    }
    Ok(Outcome::Pass)
}
