//! Revocation of a holder that fights it: it maps again whatever is unmapped, on several threads, and
//! its device writes all along. Decided by the kernel's fault line, by the bytes of a neighbour whose
//! memory lies at the same addresses, and by sysfs.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::berthd_tools::{Before, PAGE, is_blocked, is_free, moves, reserve, text};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::Daemon,
        edu::{Edu, pattern},
        holder::Holder,
        unpriv::{HOLDER_UID, STRANGER_UID},
        wait_for,
    },
    topology::{EDU_ROOT, EDU_SPARE},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_revoke_storm_bound_iommufd", IOMMUFD, bound_iommufd).within(240),
    Scenario::new("berthd_revoke_storm_unbound", IOMMUFD, unbound).within(240),
    Scenario::new("berthd_revoke_storm_bound_type1", TYPE1, bound_type1).within(240),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const IOVA: u64 = 0x50_0000;

fn bound_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    storm(ctx, "iommufd", "bound")
}

fn unbound(ctx: &mut Ctx) -> Result<Outcome> {
    storm(ctx, "iommufd", "unbound")
}

fn bound_type1(ctx: &mut Ctx) -> Result<Outcome> {
    storm(ctx, "type1", "bound")
}

/// A holder of another user, with its own device and a page of its own at the same address.
struct Neighbour {
    holder: Holder,
    id: String,
    memory: usize,
}

impl Neighbour {
    fn start(ctx: &Ctx, daemon: &Daemon, backend: &str) -> Result<Self> {
        let uid = format!("uid:{STRANGER_UID}");
        let words = ["reserve", "--holder", "vm2", "--for", &uid, "--device", EDU_ROOT];
        let words = [&words[..], &["--policy", "exclusive", "--backend", backend]].concat();
        let id = text(&daemon.cli(&words)?.ok()?, "id")?;
        daemon.cli(&["attach", &id])?.ok()?;
        let mut holder = Holder::start(ctx, STRANGER_UID, daemon.handover())?;
        holder.fetch(&id)?;
        let memory = holder.memory(1)?;
        holder.map(memory, IOVA)?;
        holder.write(memory, 0, &pattern(77, PAGE))?;
        Ok(Self { holder, id, memory })
    }

    fn is_intact(&mut self) -> Result<()> {
        let there = self.holder.read(self.memory, 0, PAGE)?;
        ensure!(there == pattern(77, PAGE), "the neighbour's memory changed: {:?}", &there[..8]);
        Ok(())
    }
}

fn storm(ctx: &Ctx, backend: &str, delivery: &str) -> Result<Outcome> {
    let before = Before::of(EDU_SPARE);
    let daemon = Daemon::start(ctx)?;
    let mut neighbour = Neighbour::start(ctx, &daemon, backend)?;
    let words = ["--device", EDU_SPARE, "--policy", "exclusive", "--backend", backend];
    let id = reserve(&daemon, &[&words[..], &["--delivery", delivery]].concat())?;
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    if delivery == "bound" {
        daemon.cli(&["attach", &id])?.ok()?;
        holder.fetch(&id)?;
    } else {
        holder.fetch(&id)?;
        ensure!(holder.bind(EDU_SPARE)? == 0, "its bind is refused");
    }
    let memory = holder.memory(1)?;
    holder.map(memory, IOVA)?;
    moves(&mut holder, EDU_SPARE, memory, IOVA, 13)?;
    holder.unmap(IOVA, 4096)?;
    holder.storm(EDU_SPARE, memory, IOVA)?;
    is_busy(ctx, holder.pid())?;
    let told = daemon.cli(&["revoke", &id, "--dry-run"])?.ok()?;
    let killed = told["kills"].as_array().context("nobody is told to be killed")?;
    ensure!(killed.len() == 1 && killed[0]["pid"] == holder.pid(), "{told}");
    is_busy(ctx, holder.pid()).context("after a dry run")?;

    let ended = daemon.cli(&["revoke", &id])?.ok()?;
    ensure!(ended["state"] == "RELEASED", "{ended}");
    ensure!(holder.memory(1).is_err(), "the holder still answers");
    let stat = fs::read_to_string(format!("/proc/{}/stat", holder.pid())).unwrap_or_default();
    ensure!(stat.is_empty() || stat.contains(") Z "), "it is there still: {stat}");
    ensure!(ended["givenBack"][0]["reset"] == "VERIFIED", "it was not reset: {ended}");
    before.is_back()?;
    // Whoever tells the device to go on, it reaches nothing.
    let edu = Edu::on_sysfs(EDU_SPARE)?;
    is_blocked(ctx, IOVA, EDU_SPARE, || edu.copy_out(IOVA, 4096))?;
    drop(edu);
    is_free(EDU_SPARE)?;
    neighbour.is_intact()?;
    let (spot, device) = (neighbour.memory, EDU_ROOT);
    moves(&mut neighbour.holder, device, spot, IOVA, 29)?;
    neighbour.holder.close()?;
    daemon.cli(&["release", &neighbour.id])?.ok()?;
    Ok(Outcome::Pass)
}

/// All its threads run: it uses the processor.
fn is_busy(ctx: &Ctx, pid: u32) -> Result<()> {
    let used = || -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    let began = used().unwrap_or_default();
    wait_for("the holder to be at it", ctx.patience(), || {
        std::thread::sleep(Duration::from_millis(100));
        (used()? > began + 100).then_some(())
    })
}
