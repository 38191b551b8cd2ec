//! The simulated host against this kernel: random sequences are recorded here and replayed there.
//!
//! The simulated machine is made from what discovery finds in the guest. Divergences are printed
//! with their number, which must be 0.

use std::{
    collections::{BTreeMap, VecDeque},
    io::Write,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_host::{
    BackendKind, Host, PciAddress,
    conformance::{self, Mixed, Options, Seats, Trace},
    linux::{Direct, LinuxConfig, LinuxHost},
    sim::{Serials, SimHost, Topology},
};

use crate::{
    guest::{Ctx, Outcome, Scenario, sysfs},
    topology::{EDU_ROOT, MIXED_BRIDGE, MIXED_EDU, MIXED_NIC, PAIR_A, PAIR_B, PAIR_BRIDGE},
    wire::Capability,
};

/// How many sequences each back end gives; those with both come to 2,000 in all.
const SEQUENCES: u64 = 700;
const OF_BOTH: u64 = 600;
/// How long an ordinary run records before it makes do with what it has; `--long` records all.
const BUDGET: Duration = Duration::from_secs(40);
/// No operation of a healthy kernel takes so long.
const STUCK: Duration = Duration::from_secs(45);

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("conformance_type1", &[Capability::Type1, Capability::Intremap], type1)
        .within(1_800),
    Scenario::new(
        "conformance_iommufd",
        &[Capability::Iommufd, Capability::Cdev, Capability::Intremap],
        iommufd,
    )
    .within(1_800),
    Scenario::new(
        "conformance_both",
        &[Capability::Iommufd, Capability::Cdev, Capability::Type1, Capability::Intremap],
        both,
    )
    .within(1_800),
    Scenario::new("conformance_no_intremap", &[Capability::NoIntremap], no_intremap).within(600),
];

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    compare(ctx, &[BackendKind::Type1], 0..SEQUENCES)
}

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    compare(ctx, &[BackendKind::Iommufd], 10_000..10_000 + SEQUENCES)
}

fn both(ctx: &mut Ctx) -> Result<Outcome> {
    compare(ctx, &[BackendKind::Iommufd, BackendKind::Type1], 20_000..20_000 + OF_BOTH)
}

/// Without interrupt remapping the kernel refuses VFIO, and so must the simulation.
fn no_intremap(ctx: &mut Ctx) -> Result<Outcome> {
    let mut backends = Vec::new();
    if ctx.has(Capability::Type1) {
        backends.push(BackendKind::Type1);
    }
    if ctx.has(Capability::Iommufd) {
        backends.push(BackendKind::Iommufd);
    }
    compare(ctx, &backends, 30_000..30_200)
}

fn address(text: &str) -> Result<PciAddress> {
    text.parse().with_context(|| format!("{text} is no address"))
}

/// The devices of the test machine that the suite may use.
fn seats() -> Result<Seats> {
    let mixed = Mixed {
        device: address(MIXED_EDU)?,
        sibling: address(MIXED_NIC)?,
        driver: "e1000".to_owned(),
    };
    Ok(Seats {
        single: address(EDU_ROOT)?,
        pair: [address(PAIR_A)?, address(PAIR_B)?],
        mixed: Some(mixed),
    })
}

fn compare(ctx: &Ctx, backends: &[BackendKind], seeds: std::ops::Range<u64>) -> Result<Outcome> {
    let before = [EDU_ROOT, PAIR_A, PAIR_B, MIXED_EDU, MIXED_NIC, PAIR_BRIDGE, MIXED_BRIDGE]
        .map(|address| (address, sysfs::driver(address)));
    // A bridge on a host driver owns the group's DMA; the suite is about the devices.
    for bridge in [PAIR_BRIDGE, MIXED_BRIDGE] {
        sysfs::unbind(bridge).with_context(|| format!("unbind {bridge}"))?;
    }
    // In an emulated guest an ordinary grace period, for which each driver unbind waits, can take
    // a minute.
    let expedited = std::fs::write("/sys/kernel/rcu_expedited", "1");
    ctx.say(format!("expedited grace periods: {expedited:?}"));
    let config = LinuxConfig { root: "/".into(), privileged: Arc::new(Direct::new("/")) };
    let linux = LinuxHost::new(config);
    let outcome = run(ctx, &linux, backends, seeds);
    for (address, driver) in before {
        sysfs::to_host(address, driver.as_deref())
            .with_context(|| format!("give {address} back"))?;
    }
    outcome
}

fn run(
    ctx: &Ctx,
    linux: &LinuxHost,
    backends: &[BackendKind],
    seeds: std::ops::Range<u64>,
) -> Result<Outcome> {
    let seats = seats()?;
    let topology = simulated(linux)?;
    let options = Options { backends: backends.to_vec(), ..Options::default() };
    let mut traces = std::fs::File::create(traces_path(ctx))?;
    let mut divergences = Vec::new();
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let (mut operations, begun) = (0, Instant::now());
    costs(ctx, linux, &seats)?;
    let watch = Watch::start();
    let (first, wanted) = (seeds.start, seeds.end - seeds.start);
    let mut count = 0;
    for seed in seeds {
        if !ctx.config.long && begun.elapsed() > BUDGET {
            ctx.say(format!("{count} of {wanted} in the time of an ordinary run; --long has all"));
            break;
        }
        count += 1;
        let trace = conformance::record_watched(linux, &seats, &options, seed, &mut |op| {
            watch.saw(format!("sequence {seed}: {op:?}"));
        })
        .with_context(|| format!("record sequence {seed}"))?;
        writeln!(traces, "{}", serde_json::to_string(&trace)?)?;
        operations += trace.entries.len();
        tally(&trace, &mut seen)?;
        let done = seed - first + 1;
        if done.is_multiple_of(50) {
            let seconds = begun.elapsed().as_secs_f64();
            ctx.say(format!("{done} of {wanted} after {seconds:.1} s"));
        }
        let sim = SimHost::from_topology(topology.clone());
        if let Some(found) = conformance::replay(&trace, &sim, &seats)? {
            if divergences.len() < 20 {
                ctx.say(&found);
                explain(ctx, &trace, found.index)?;
            }
            divergences.push(found);
        }
    }
    for (what, times) in &seen {
        ctx.say(format!("{times:6} {what}"));
    }
    ctx.say(format!(
        "{count} sequences, {operations} operations in {:.1} s; divergences: {}",
        begun.elapsed().as_secs_f64(),
        divergences.len()
    ));
    ensure!(divergences.is_empty(), "{} of {count} sequences diverge", divergences.len());
    Ok(Outcome::Pass)
}

/// Tells which operation the kernel doesn't come back from, and where its threads are then.
#[derive(Debug, Default)]
struct Watch {
    seen: Mutex<VecDeque<String>>,
    steps: AtomicU64,
}

impl Watch {
    fn start() -> Arc<Self> {
        let watch = Arc::new(Self::default());
        let weak = Arc::downgrade(&watch);
        std::thread::spawn(move || {
            let mut last = 0;
            loop {
                std::thread::sleep(STUCK);
                let Some(watch) = weak.upgrade() else { return };
                let steps = watch.steps.load(Ordering::Relaxed);
                if steps == last {
                    watch.tell();
                }
                last = steps;
            }
        });
        watch
    }

    fn saw(&self, op: String) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push_back(op);
        if seen.len() > 30 {
            seen.pop_front();
        }
    }

    fn tell(&self) {
        println!("no progress for {STUCK:?}; the last operations:");
        for op in self.seen.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            println!("    {op}");
        }
        let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return };
        for thread in threads.flatten() {
            let stack = std::fs::read_to_string(thread.path().join("stack")).unwrap_or_default();
            println!("{}: {stack}", thread.path().display());
        }
    }
}

/// What the looks cost that are taken after every operation: they bound the speed of the suite.
fn costs(ctx: &Ctx, linux: &LinuxHost, seats: &Seats) -> Result<()> {
    let begun = Instant::now();
    let facts = linux.device(seats.single)?;
    let device = begun.elapsed();
    let group = facts.group.context("the single seat has no group")?;
    linux.probe_free(group)?;
    let probe = begun.elapsed() - device;
    ctx.say(format!("one look at a device {device:?}, at a group {probe:?}"));
    Ok(())
}

/// The simulated twin of this guest, through its file.
fn simulated(linux: &LinuxHost) -> Result<Topology> {
    let inventory = linux.scan()?;
    let uses = |address| linux.uses(address).unwrap_or_default();
    let topology = Topology::from_inventory(
        "guest",
        &linux.kernel_release(),
        &inventory,
        &linux.features(),
        &uses,
        Serials::Hashed,
    )?;
    Ok(Topology::parse(&topology.to_toml()?, "guest")?.with_helper_timeout_ms(100))
}

/// The operations before a divergence.
fn explain(ctx: &Ctx, trace: &Trace, index: usize) -> Result<()> {
    for entry in trace.entries.iter().take(index) {
        ctx.say(format!("    {}", serde_json::to_string(entry)?));
    }
    Ok(())
}

fn tally(trace: &Trace, seen: &mut BTreeMap<String, u64>) -> Result<()> {
    for entry in &trace.entries {
        let op = serde_json::to_value(entry.op)?;
        let name = op.get("op").and_then(|name| name.as_str()).unwrap_or_default();
        *seen.entry(format!("{name} {}", entry.got)).or_default() += 1;
    }
    Ok(())
}

fn traces_path(ctx: &Ctx) -> PathBuf {
    ctx.dir().join("traces.jsonl")
}
