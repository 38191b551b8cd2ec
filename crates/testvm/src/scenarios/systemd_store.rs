//! systemd's file descriptor store: domains that `berthd` drives go on while it is restarted and
//! killed. Decided by bytes that the devices move all the time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::berthd_tools::{Before, PAGE, is_blocked, is_free, reserve, text};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        edu::{Edu, pattern},
        holder::Holder,
        kmsg::Kmsg,
        sysfs,
        systemd::{BERTHD, Installed, show, systemctl},
        unpriv::{HOLDER_UID, STRANGER_UID},
        wait_for,
    },
    topology::{PAIR_A, PAIR_B, PAIR_BRIDGE},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Shpchp, Systemd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("systemd_store_iommufd", IOMMUFD, held_iommufd).within(300),
    Scenario::new("systemd_store_type1", TYPE1, held_type1).within(300),
];

const TYPE1: &[Capability] = &[Capability::Daemon, Systemd, Type1, Intremap];
const IOMMUFD: &[Capability] = &[Capability::Daemon, Systemd, Iommufd, Cdev, Type1, Intremap];
const LABEL: &str = "tenant-a";
const FIRST: u64 = 0x50_0000;
const SECOND: u64 = 0x60_0000;
/// What the IOMMU sees of everything behind the PCIe to PCI bridge.
const ALIAS: &str = "0000:03:00.0";
/// Nothing is called wedged that is only slow.
const PATIENT: &str = "[timeouts]\nact_ms = 120000\n";
/// How often `berthd` ends, in turns in order and by a kill.
const ROUNDS: usize = 6;

fn held_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    held(ctx, "iommufd")
}

fn held_type1(ctx: &mut Ctx) -> Result<Outcome> {
    held(ctx, "type1")
}

/// Two clients without a descriptor share a domain. While one's device moves bytes all the time the
/// daemon is restarted and killed; then the other client dies, and only its memory goes.
fn held(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = [PAIR_A, PAIR_B, PAIR_BRIDGE].map(Before::of);
    let berth = Installed::started(ctx, PATIENT)?;
    let shpchp = ctx.has(Shpchp) && sysfs::driver(PAIR_BRIDGE).is_some();
    if shpchp {
        berth.cli(&["kernel-dma", "release", PAIR_BRIDGE])?.ok()?;
    }
    let (first, second) = shared_domain(&berth, backend)?;
    let mut one = Holder::start(ctx, HOLDER_UID, berth.handover())?;
    let mut two = Holder::start(ctx, STRANGER_UID, berth.handover())?;
    let (mine, yours) = (one.memory(1)?, two.memory(2)?);
    one.register(&first, mine, FIRST)?;
    register(&mut two, &second, yours, 2 * PAGE)?;

    let mut kmsg = Kmsg::from_now()?;
    let heart = Heart::starts(two, yours);
    heart.beats_on(ctx)?;
    let events = claims(&berth, &[&first, &second])?;
    for round in 0..ROUNDS {
        let pid = berth.pid()?;
        let at = heart.count();
        if round % 2 == 0 {
            systemctl(&["restart", BERTHD])?;
        } else {
            systemctl(&["kill", "--signal=KILL", "--kill-whom=main", BERTHD])?;
        }
        let next = berth.wait_for_another(pid)?;
        ensure!(heart.count() > at, "no heartbeat while berthd {pid} became {next}");
        heart.beats_on(ctx)?;
        ensure!(claims(&berth, &[&first, &second])? == events, "the claims are others now");
        ctx.say(format!("berthd {pid} -> {next}: {} beats meanwhile", heart.count() - at));
    }
    // It is still the daemon's to end: the memory of the client that dies, and of no other.
    let edu = Edu::on_sysfs(PAIR_A)?;
    moves(&mut one, &edu, mine)?;
    let faults = kmsg.dma_faults();
    ensure!(faults.is_empty(), "DMA was blocked: {faults:?}");
    one.kill()?;
    is_gone(ctx, &berth, &first)?;
    is_blocked(ctx, FIRST, ALIAS, || edu.copy_out(FIRST, 4096))?;
    drop(edu);
    heart.beats_on(ctx)?;
    let (mut two, beats) = heart.ends()?;
    ctx.say(format!("{beats} beats, none without its bytes"));
    two.kill()?;

    for id in [&first, &second] {
        berth.cli(&["release", id])?.ok()?;
        // Each act is a unit of systemd's, which takes its time on a busy emulated machine.
        let released = || {
            let shown = berth.cli(&["reservation", "show", id]).ok()?.ok().ok()?;
            (shown["state"] == "RELEASED").then_some(())
        };
        wait_for("the release", ctx.patience(), released)?;
    }
    ensure!(stored()? == 0, "{} descriptors are still stored", stored()?);
    if !shpchp {
        is_free(PAIR_A)?;
    } else if sysfs::driver(PAIR_BRIDGE).is_none() {
        berth.cli(&["kernel-dma", "set", PAIR_BRIDGE])?.ok()?;
    }
    before.iter().try_for_each(Before::is_back)?;
    Ok(Outcome::Pass)
}

pub(super) fn shared_domain(berth: &Installed, backend: &str) -> Result<(String, String)> {
    let common =
        ["--policy", "shared", "--delivery", "held", "--backend", backend, "--label", LABEL];
    let first = reserve(berth, &[&["--device", PAIR_A], &common[..]].concat())?;
    let domain = text(&berth.cli(&["reservation", "show", &first])?.ok()?, "domain")?;
    let uid = format!("uid:{STRANGER_UID}");
    let words = ["reserve", "--holder", "vm2", "--for", &uid, "--device", PAIR_B];
    let joins = ["--domain", domain.as_str()];
    let joined = berth.cli(&[&words[..], &common[..], &joins[..]].concat())?.ok()?;
    let second = text(&joined, "id")?;
    for id in [&first, &second] {
        berth.cli(&["attach", id])?.ok()?;
    }
    ensure!(stored()? >= 4, "only {} descriptors are stored", stored()?);
    Ok((first, second))
}

/// Registers two pages at [`SECOND`].
pub(super) fn register(holder: &mut Holder, id: &str, memory: usize, bytes: usize) -> Result<()> {
    let request = json!({"op": "register", "reservation": id, "iova": format!("{SECOND:#x}"),
                         "lengthBytes": bytes});
    let answer = holder.ask(request, Some(memory))?;
    ensure!(answer["ok"] == true, "{answer}");
    Ok(())
}

/// The claims of reservations, and who owns the group.
pub(super) fn claims(berth: &Installed, ids: &[&str]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for id in ids {
        let shown = berth.cli(&["reservation", "show", id])?.ok()?;
        ensure!(shown["state"] == "HELD", "{shown}");
        all.push(shown["claims"].to_string());
    }
    let shown = berth.cli(&["device", "show", PAIR_A])?.ok()?;
    all.push(shown["group"].to_string());
    Ok(all)
}

fn moves(holder: &mut Holder, edu: &Edu, memory: usize) -> Result<()> {
    let bytes = pattern(33, PAGE);
    holder.write(memory, 0, &bytes)?;
    edu.copy_in(FIRST, 4096)?;
    holder.write(memory, 0, &[0; PAGE])?;
    edu.copy_out(FIRST, 4096)?;
    ensure!(holder.read(memory, 0, PAGE)? == bytes, "the pattern did not come back");
    Ok(())
}

/// The client died: what it registered is gone once the journal says that it was seen.
fn is_gone(ctx: &Ctx, berth: &Installed, id: &str) -> Result<()> {
    let seen = || {
        let journal = berth.journal(&["-u", BERTHD]).ok()?;
        journal
            .lines()
            .any(|line| line.contains("holder process ended") && line.contains(id))
            .then_some(())
    };
    wait_for("the end of the client to be seen", ctx.patience(), seen)
}

/// How many descriptors systemd keeps for the daemon.
pub(super) fn stored() -> Result<usize> {
    Ok(show(BERTHD, "NFileDescriptorStore")?.parse()?)
}

/// A device that moves a pattern from one page of a client to the next, again and again, rung by the
/// machine's root through sysfs.
pub(super) struct Heart {
    beats: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Holder>>,
}

impl Heart {
    pub(super) fn starts(mut holder: Holder, memory: usize) -> Self {
        let (beats, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&beats), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let edu = Edu::on_sysfs(PAIR_B)?;
            while !stopped.load(Ordering::SeqCst) {
                let beat = counted.load(Ordering::SeqCst) + 1;
                let bytes = pattern(u8::try_from(beat % 251)?, PAGE);
                holder.write(memory, 0, &bytes)?;
                holder.write(memory, 4096, &[0; PAGE])?;
                edu.copy_in(SECOND, 4096)?;
                edu.copy_out(SECOND + 4096, 4096)?;
                let moved = holder.read(memory, 4096, PAGE)?;
                ensure!(moved == bytes, "beat {beat} moved nothing");
                counted.store(beat, Ordering::SeqCst);
            }
            Ok(holder)
        });
        Self { beats, stop, thread }
    }

    pub(super) fn count(&self) -> u64 {
        self.beats.load(Ordering::SeqCst)
    }

    /// Waits for two more.
    pub(super) fn beats_on(&self, ctx: &Ctx) -> Result<()> {
        let from = self.count();
        let more = || (self.thread.is_finished() || self.count() >= from + 2).then_some(());
        wait_for("the heartbeat", ctx.patience(), more)?;
        ensure!(!self.thread.is_finished(), "the heart stands still");
        Ok(())
    }

    pub(super) fn ends(self) -> Result<(Holder, u64)> {
        self.stop.store(true, Ordering::SeqCst);
        let beats = Arc::clone(&self.beats);
        let ended = self.thread.join();
        let holder = ended.ok().context("the heart panicked")??;
        Ok((holder, beats.load(Ordering::SeqCst)))
    }
}
