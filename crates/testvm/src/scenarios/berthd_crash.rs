//! `berthd` is killed at system calls of every order that it gives the kernel, and starts again.
//!
//! For each phase of a reservation's life one run is only counted; then runs are killed at the
//! N-th call of a thread, for several N of each kind of call. What was left is asked of the kernel
//! before and after the next start, and compared with what that one shows.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    berthd_seen::{Shown, fits, history_is_gapless, kernel, patient},
    berthd_tools::{Before, is_free, moves, reserve, text},
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario, access,
        daemon::Daemon,
        holder::Holder,
        killer::{Calls, Killer, Seen},
        sysfs,
        unpriv::HOLDER_UID,
        wait_for,
    },
    topology::{EDU_ROOT, NVME0},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Strace, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_crash_iommufd", IOMMUFD, crash_iommufd).within(1200),
    Scenario::new("berthd_crash_type1", TYPE1, crash_type1).within(1200),
    Scenario::new("berthd_crash_unbound", IOMMUFD, crash_unbound).within(1200),
    Scenario::new("berthd_crash_node", TYPE1, crash_node).within(1200),
    Scenario::new("berthd_crash_taken", TYPE1, crash_taken).within(1200),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap, Strace];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap, Strace];
const IOVA: u64 = 0x40_0000;
/// What still happens after an answer left.
const SETTLE: Duration = Duration::from_millis(300);

/// The calls that change something outside the process, and those that make a record of it.
const SETS: [Calls; 7] = [
    Calls { name: "ioctl", calls: "ioctl", nodes: false },
    Calls { name: "sync", calls: "fdatasync", nodes: false },
    Calls { name: "close", calls: "close", nodes: true },
    Calls { name: "log", calls: "pwrite64", nodes: false },
    Calls { name: "open", calls: "open,openat", nodes: true },
    Calls { name: "write", calls: "write,writev,sendto,sendmsg", nodes: false },
    Calls { name: "helper", calls: "execve", nodes: false },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Reserve,
    Attach,
    HandOver,
    Release,
}

/// How a holder gets the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Bound,
    Unbound,
    Node,
}

impl Delivery {
    /// The phases that differ from those of the ones before.
    fn phases(self) -> &'static [Phase] {
        match self {
            Self::Bound => &[Phase::Reserve, Phase::Attach, Phase::HandOver, Phase::Release],
            Self::Unbound | Self::Node => &[Phase::HandOver, Phase::Release],
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Unbound => "unbound",
            Self::Node => "node",
        }
    }
}

fn crash_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    crash(ctx, "iommufd", Delivery::Bound)
}

fn crash_type1(ctx: &mut Ctx) -> Result<Outcome> {
    crash(ctx, "type1", Delivery::Bound)
}

fn crash_unbound(ctx: &mut Ctx) -> Result<Outcome> {
    crash(ctx, "iommufd", Delivery::Unbound)
}

fn crash_node(ctx: &mut Ctx) -> Result<Outcome> {
    crash(ctx, "type1", Delivery::Node)
}

/// A disk that is taken from its host driver: wherever it is killed, the disk is on that driver
/// again, or on vfio-pci and reserved.
fn crash_taken(ctx: &mut Ctx) -> Result<Outcome> {
    ensure!(sysfs::driver(NVME0).as_deref() == Some("nvme"), "{NVME0} is not on nvme");
    run_phases(ctx, "type1", Delivery::Bound, NVME0, &[Phase::Reserve, Phase::Release])?;
    run_phases(ctx, "type1", Delivery::Node, NVME0, &[Phase::Release])
}

fn crash(ctx: &Ctx, backend: &'static str, delivery: Delivery) -> Result<Outcome> {
    run_phases(ctx, backend, delivery, EDU_ROOT, delivery.phases())
}

fn run_phases(
    ctx: &Ctx,
    backend: &'static str,
    delivery: Delivery,
    device: &'static str,
    phases: &[Phase],
) -> Result<Outcome> {
    let daemon = Daemon::start_with(ctx, patient(ctx)?)?;
    let before = Before::of(device);
    let ends = BTreeMap::new();
    let mut bench = Bench { ctx, daemon, backend, delivery, device, before, epoch: 0, ends };
    let mut table = Vec::new();
    for (index, phase) in phases.iter().copied().enumerate() {
        let counted = bench.run(phase, &SETS, None)?;
        ensure!(counted.hit().is_none(), "somebody else killed something");
        let mut reached = Vec::new();
        for (set, number) in bench.points(index, &counted) {
            let hit = bench.run(phase, &[set], Some(number))?.hit().is_some();
            reached.push(format!("{}#{number}{}", set.name, if hit { "" } else { " (unhit)" }));
        }
        if ctx.config.long {
            reached.extend(bench.until_unhit(phase)?);
        }
        let most: Vec<String> =
            SETS.iter().map(|set| format!("{} {}", set.name, counted.most(*set))).collect();
        table.push(format!(
            "{phase:?}: at most {}; killed at {}",
            most.join(", "),
            reached.join(" ")
        ));
        is_free(device).with_context(|| format!("after {phase:?}"))?;
    }
    history_is_gapless(ctx, &bench.daemon)?;
    ctx.say(format!("--- killed on {backend}, {}, {device} ---", delivery.word()));
    table.iter().for_each(|line| ctx.say(line));
    bench.ends.iter().for_each(|(end, count)| ctx.say(format!("{count:4} x {end}")));
    Ok(Outcome::Pass)
}

/// What goes on through all runs: one record, one device.
struct Bench<'a> {
    ctx: &'a Ctx,
    daemon: Daemon,
    backend: &'static str,
    delivery: Delivery,
    device: &'static str,
    before: Before,
    epoch: u64,
    ends: BTreeMap<String, u32>,
}

/// What the callers know for certain, whatever happens to the daemon.
#[derive(Debug, Default)]
struct Known {
    /// The reservation, once its id was answered.
    id: Option<String>,
    /// Whether the phase's call was answered as done.
    done: bool,
    /// Who has the descriptors, if somebody was started to fetch them.
    holder: Option<Holder>,
    /// What that one was answered.
    fetched: Value,
}

impl Bench<'_> {
    /// Which calls of which number to be killed at: all kinds in turn, early and late ones.
    fn points(&self, phase: usize, counted: &Seen) -> Vec<(Calls, u64)> {
        if self.ctx.config.long {
            return Vec::new();
        }
        // 5 has no divisor in common with any of them, so that no part comes twice.
        let points = match (self.ctx.config.slow, self.backend == "type1" && self.ctx.has(Cdev)) {
            (true, true) if self.device == EDU_ROOT => 1,
            (true, true) => 3,
            (true, false) => 3,
            (false, _) => 12,
        };
        let found = SETS.iter().map(|set| (*set, counted.most(*set))).filter(|(_, most)| *most > 0);
        let found: Vec<(Calls, u64)> = found.collect();
        (0..points)
            .map(|point| {
                let (set, most) = found[(phase * points + point) % found.len()];
                let part = u64::try_from(point * 5 % points).unwrap_or(0);
                // Not the last ones: how often a thread writes differs from run to run.
                (set, 1 + most * 3 / 4 * part / u64::try_from(points).unwrap_or(1))
            })
            .collect()
    }

    /// Kills at every number of every kind, until a run ends unhit.
    fn until_unhit(&mut self, phase: Phase) -> Result<Vec<String>> {
        let mut reached = Vec::new();
        for set in SETS {
            let mut number = 1;
            while self.run(phase, &[set], Some(number))?.hit().is_some() {
                number += 1;
            }
            reached.push(format!("{}#1..{}, unhit at {number}", set.name, number - 1));
        }
        Ok(reached)
    }

    /// One life: what comes before the phase, the phase under the tracer, the checks, the end.
    fn run(&mut self, phase: Phase, sets: &[Calls], when: Option<u64>) -> Result<Seen> {
        let names: Vec<&str> = sets.iter().map(|set| set.name).collect();
        let what = format!("{phase:?} {} {when:?}", names.join("+"));
        println!("=== {what}");
        let mut known = self.come_to(phase)?;
        let pid = self.daemon.pid();
        let killer = Killer::attach(self.ctx, pid, sets, when)?;
        self.perform(phase, &mut known)?;
        sleep(SETTLE);
        let seen = killer.finish()?;
        let died = !self.daemon.is_alive()?;
        ensure!(died == seen.killed(pid), "berthd ended by itself in {what}");
        ensure!(!died || when.is_some(), "berthd was killed without order");
        ensure!(known.done || when.is_some(), "what nobody disturbed wasn't answered: {what}");
        if let Some(hit) = seen.hit() {
            println!("killed at {hit}");
        }
        let end = self.check(phase, &mut known, died).with_context(|| what.clone())?;
        let who = match (died, seen.hit()) {
            (true, _) => "berthd killed",
            (false, Some(_)) => "helper killed",
            (false, None) => "nobody killed",
        };
        let end = format!("{phase:?}, {who}: {end}");
        println!("{what}: {end}");
        *self.ends.entry(end).or_default() += 1;
        self.end(known).with_context(|| format!("the end of {what}"))?;
        Ok(seen)
    }

    fn taking(&self) -> Option<&'static str> {
        self.before.driver().map(|_| "--take-from-host")
    }

    fn come_to(&self, phase: Phase) -> Result<Known> {
        let mut known = Known::default();
        if phase == Phase::Reserve {
            return Ok(known);
        }
        let mut words = vec!["--device", self.device, "--policy", "exclusive"];
        words.extend(self.taking());
        words.extend(["--backend", self.backend, "--delivery", self.delivery.word()]);
        let id = reserve(&self.daemon, &words)?;
        let by_itself = self.delivery != Delivery::Bound;
        if phase != Phase::Attach && !by_itself {
            self.daemon.cli(&["attach", &id])?.ok()?;
        }
        if phase == Phase::HandOver || by_itself {
            let mut holder = Holder::start(self.ctx, HOLDER_UID, self.daemon.handover())?;
            if phase == Phase::Release {
                let fetched = holder.fetch(&id)?;
                // Who fetched and took nothing has to be shut out, too.
                if self.device == EDU_ROOT {
                    self.take(&mut holder, &fetched)?;
                }
                holder.close()?;
            }
            known.holder = Some(holder);
        }
        known.id = Some(id);
        Ok(known)
    }

    /// The holder has what it fetched, as far as that is its own doing.
    fn take(&self, holder: &mut Holder, fetched: &Value) -> Result<()> {
        let errno = match self.delivery {
            Delivery::Bound => 0,
            Delivery::Unbound => holder.bind(self.device)?,
            Delivery::Node => {
                let nodes = fetched["nodes"].as_array().context("no nodes")?;
                let path = |node| Ok(PathBuf::from(text(node, "path")?));
                holder.open(self.device, nodes.iter().map(path).collect::<Result<_>>()?)?
            }
        };
        ensure!(errno == 0, "what was fetched can't be taken: {errno}");
        Ok(())
    }

    /// The phase's call. Not to be answered isn't an error.
    fn perform(&self, phase: Phase, known: &mut Known) -> Result<()> {
        let id = known.id.clone().unwrap_or_default();
        match phase {
            Phase::Reserve => {
                let uid = format!("uid:{HOLDER_UID}");
                let words = ["--device", self.device, "--policy", "exclusive", "--backend"];
                let mut all = vec!["reserve", "--holder", "vm1", "--for", &uid];
                all.extend(words);
                all.push(self.backend);
                all.extend(self.taking());
                let answer = self.daemon.cli(&all)?;
                known.done = answer.code == Some(0);
                if known.done {
                    known.id = Some(text(&answer.json, "id")?);
                }
            }
            Phase::Attach => known.done = self.daemon.cli(&["attach", &id])?.code == Some(0),
            Phase::Release => known.done = self.daemon.cli(&["release", &id])?.code == Some(0),
            Phase::HandOver => {
                let holder = known.holder.as_mut().context("nobody to fetch")?;
                match holder.fetch(&id) {
                    Ok(fetched) => {
                        known.done = true;
                        known.fetched = fetched;
                    }
                    Err(error) => println!("the fetch came to nothing: {error:#}"),
                }
            }
        }
        Ok(())
    }

    /// Compares the kernel, the record and what callers know; says what was left.
    fn check(&mut self, phase: Phase, known: &mut Known, died: bool) -> Result<String> {
        let left = kernel(self.device);
        if died {
            if phase == Phase::HandOver && known.done && self.delivery == Delivery::Bound {
                ensure!(left.busy, "the holder lost its device with the daemon: {left:?}");
            }
            self.daemon.kill()?;
            self.daemon.start_again().context("start after the kill")?;
        }
        let shown = self.shown()?;
        let now = kernel(self.device);
        let all = format!("kernel then {left:?}, now {now:?}; shown {shown:?}; known {known:?}");
        let by_itself = self.delivery != Delivery::Bound;
        fits(&shown, &now, &self.before, by_itself).with_context(|| all.clone())?;
        let live = |state: &str| {
            shown
                .live
                .iter()
                .any(|(id, s)| known.id.as_ref() == Some(id) && (state.is_empty() || s == state))
        };
        match phase {
            Phase::Reserve | Phase::Attach => {
                ensure!(known.id.is_none() || live(""), "an answered reservation is gone: {all}");
                let attached = phase == Phase::Attach && known.done && !died;
                ensure!(!attached || live("HELD"), "an answered attach is gone: {all}");
            }
            Phase::HandOver if known.done => {
                // The look at what the kernel has opens the node, and may be taken for the holder's.
                let handed = self.delivery != Delivery::Bound && live("HANDED");
                ensure!(handed || live("HELD"), "a living holder's claims ended: {all}");
            }
            Phase::HandOver => ensure!(live(""), "an answered reservation is gone: {all}"),
            Phase::Release => {
                let nobody = shown.live.is_empty();
                ensure!(!known.done || nobody, "a release was forgotten: {all}");
            }
        }
        if let (Phase::HandOver, true, Some(holder)) = (phase, known.done, &mut known.holder) {
            self.take(holder, &known.fetched)?;
            let memory = holder.memory(1)?;
            holder.map(memory, IOVA)?;
            moves(holder, self.device, memory, IOVA, 77)?;
        }
        let answer = if known.done { "answered" } else { "not answered" };
        let state = shown.live.first().map_or("nobody", |(_, state)| state.as_str());
        Ok(format!(
            "{answer}; left {}; then {state}, {}, {}",
            left.words(),
            shown.condition.to_lowercase(),
            now.words()
        ))
    }

    fn shown(&mut self) -> Result<Shown> {
        Shown::of(&self.daemon, self.device, &mut self.epoch)
    }

    /// Gives back what is there, and the device is as it was.
    fn end(&mut self, mut known: Known) -> Result<()> {
        if let Some(holder) = &mut known.holder {
            holder.kill()?;
        }
        for (id, _) in self.shown()?.live {
            let daemon = &self.daemon;
            wait_for("the release", self.ctx.patience(), || {
                daemon.cli(&["release", &id]).ok().filter(|answer| answer.code == Some(0))
            })?;
        }
        let shown = self.shown()?;
        ensure!(shown.live.is_empty(), "released, and still there: {shown:?}");
        if shown.condition == "QUARANTINED" {
            let words = ["quarantine", "clear", self.device, "--reason", "the helper was killed"];
            self.daemon.cli(&words)?.ok()?;
            sysfs::to_host(self.device, self.before.driver())?;
        }
        for node in ["/dev/iommu", "/dev/vfio/vfio"].map(Path::new).iter().filter(|it| it.exists())
        {
            let access = access::of(node)?;
            ensure!(!access.listed, "{} is still open: {access:?}", node.display());
        }
        self.before.is_back()
    }
}
