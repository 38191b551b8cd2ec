//! Many lives of reservations on the real kernel: afterwards `berthd` has the descriptors, threads,
//! helpers and about the memory that it had.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use super::berthd_tools::{Before, is_free, reserve};
use crate::{
    guest::{
        Ctx, Outcome, Scenario, daemon::Daemon, family::descendants, holder::Holder,
        unpriv::HOLDER_UID, wait_for,
    },
    topology::EDU_ROOT,
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_leaks_iommufd", IOMMUFD, leaks_iommufd).within(3600),
    Scenario::new("berthd_leaks_type1", TYPE1, leaks_type1).within(3600),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
/// Until pools and caches are as large as they get.
const WARM_UP: usize = 8;
/// What allocators and SQLite's cache may keep beyond that.
const SLACK_BYTES: u64 = 24 << 20;

fn leaks_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    leaks(ctx, "iommufd", &["bound", "unbound", "node", "held"])
}

fn leaks_type1(ctx: &mut Ctx) -> Result<Outcome> {
    leaks(ctx, "type1", &["bound", "node", "held"])
}

fn leaks(ctx: &Ctx, backend: &str, deliveries: &[&str]) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start(ctx)?;
    // It outlives all reservations, as one does that fetches for many.
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let cycles = match (ctx.config.long, ctx.config.slow) {
        (true, _) => 1000,
        (false, true) => 12,
        (false, false) => 200,
    };
    let mut number = 0;
    let mut live = |count: usize, holder: &mut Holder| -> Result<()> {
        for _ in 0..count {
            let delivery = deliveries[number % deliveries.len()];
            number += 1;
            cycle(&daemon, holder, backend, delivery)
                .with_context(|| format!("cycle {number}, {delivery}"))?;
        }
        Ok(())
    };
    live(WARM_UP, &mut holder)?;
    let first = Count::of(daemon.pid())?;
    live(cycles, &mut holder)?;
    let last = settled(daemon.pid(), &first, ctx.patience())?;
    ctx.say(format!("{cycles} cycles on {backend}: before {first:?}; after {last:?}"));
    ensure!(last.is_within(&first), "it grew: before {first:?}; after {last:?}");
    let grown = last.rss_bytes.saturating_sub(first.rss_bytes);
    ensure!(grown <= SLACK_BYTES, "its memory grew by {grown} bytes in {cycles} cycles");
    before.is_back()?;
    is_free(EDU_ROOT)?;
    Ok(Outcome::Pass)
}

fn cycle(daemon: &Daemon, holder: &mut Holder, backend: &str, delivery: &str) -> Result<()> {
    // A held domain is for whoever registers memory; nothing of it is fetched.
    let policy = if delivery == "held" { "group" } else { "exclusive" };
    let words = ["--device", EDU_ROOT, "--policy", policy, "--backend", backend];
    let mut all = words.to_vec();
    all.extend(["--delivery", delivery]);
    let id = reserve(daemon, &all)?;
    if ["bound", "held"].contains(&delivery) {
        daemon.cli(&["attach", &id])?.ok()?;
    }
    if delivery != "held" {
        holder.fetch(&id)?;
        holder.close()?;
    }
    let released = daemon.cli(&["release", &id])?.ok()?;
    ensure!(released["state"] == "RELEASED", "not released: {released}");
    Ok(())
}

/// What a process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Count {
    /// Descriptors by what they are of.
    pub(super) fds: BTreeMap<String, usize>,
    threads: usize,
    /// Processes that come from it.
    pub(super) children: usize,
    rss_bytes: u64,
}

impl Count {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let mut fds: BTreeMap<String, usize> = BTreeMap::new();
        for entry in fs::read_dir(proc.join("fd"))?.flatten() {
            // One that was closed meanwhile is none.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let text = target.display().to_string();
            // Without the number that a socket or a pipe has.
            let kind = text.split(":[").next().unwrap_or_default().to_owned();
            *fds.entry(kind).or_default() += 1;
        }
        let status = fs::read_to_string(proc.join("status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = rss.context("no VmRSS")?.trim().trim_end_matches(" kB").parse()?;
        Ok(Self {
            fds,
            threads: fs::read_dir(proc.join("task"))?.count(),
            children: descendants(pid)?,
            rss_bytes: kib * 1024,
        })
    }

    fn is_within(&self, before: &Self) -> bool {
        self.fds.iter().all(|(kind, count)| before.fds.get(kind) >= Some(count))
            && self.threads <= before.threads
            && self.children <= before.children
    }
}

/// The count once what closes behind an answer is closed.
fn settled(pid: u32, before: &Count, patience: Duration) -> Result<Count> {
    let within = || Count::of(pid).ok().filter(|count| count.is_within(before));
    // What is still too much is told by the caller, with the numbers.
    wait_for("what is left to close", patience, within).or_else(|_| Count::of(pid))
}
