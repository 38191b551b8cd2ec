//! Memory that two clients register with one domain: what one of them does wrong is refused
//! or cleaned up, and the device of the other goes on.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::berthd_tools::{
    Before, is_blocked, moves_by, release_bridge, reserve, set_bridge, text,
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::Daemon,
        edu::Edu,
        holder::Holder,
        unpriv::{HOLDER_UID, STRANGER_UID},
        wait_for,
    },
    topology::{PAIR_A, PAIR_B, PAIR_BRIDGE},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_regions_iommufd", IOMMUFD, |ctx| regions(ctx, "iommufd", "held")),
    Scenario::new("berthd_regions_type1", TYPE1, |ctx| regions(ctx, "type1", "held")),
    Scenario::new("berthd_regions_bound_iommufd", IOMMUFD, |ctx| regions(ctx, "iommufd", "bound")),
    Scenario::new("berthd_regions_bound_type1", TYPE1, |ctx| regions(ctx, "type1", "bound")),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const MINE: u64 = 0x50_0000;
const YOURS: u64 = 0x60_0000;
/// What the IOMMU sees of everything behind the PCIe to PCI bridge.
const ALIAS: &str = "0000:03:00.0";

fn regions(ctx: &Ctx, backend: &str, delivery: &str) -> Result<Outcome> {
    let before = [PAIR_A, PAIR_B, PAIR_BRIDGE].map(Before::of);
    let daemon = Daemon::start(ctx)?;
    release_bridge(ctx, &daemon)?;
    let (first, second) = two_clients(&daemon, backend, delivery)?;
    let mut bad = Client::of(ctx, &daemon, HOLDER_UID, &first, delivery)?;
    let mut good = Client::of(ctx, &daemon, STRANGER_UID, &second, delivery)?;
    let memory = good.holder.memory(1)?;
    good.holder.register(&second, memory, YOURS)?;
    is_seen(&daemon, &second)?;
    let beats = |good: &mut Client, seed| -> Result<()> {
        let edu = Edu::on_sysfs(PAIR_B)?;
        moves_by(&edu, &mut good.holder, memory, YOURS, seed).context("the other client's DMA")
    };
    beats(&mut good, 3)?;

    let sealed = bad.holder.memory(2)?;
    bad.is_refused(sealed, YOURS, 0, 2, "INVALID_ARGUMENT")?;
    beats(&mut good, 5)?;
    let loose = bad.holder.loose_memory(1)?;
    bad.is_refused(loose, MINE, 0, 1, "INVALID_ARGUMENT")?;
    let reading = bad.holder.reopened_for_reading(sealed)?;
    bad.is_refused(reading, MINE, 0, 1, "INVALID_ARGUMENT")?;
    bad.is_refused(sealed, MINE, 2, 1, "INVALID_ARGUMENT")?;
    let large = bad.holder.memory(8)?;
    bad.is_refused(large, MINE, 0, 8, "MEMLOCK_LIMIT")?;
    beats(&mut good, 7)?;
    ensure!(!bad.holder.truncate(sealed)?, "sealed memory was cut");

    bad.holder.register(&first, sealed, MINE)?;
    moves_by(&Edu::on_sysfs(PAIR_A)?, &mut bad.holder, sealed, MINE, 11)?;
    bad.holder.kill()?;
    wait_for("what the dead client had to be gone", ctx.patience(), || {
        good.holder.register(&second, memory, MINE).ok()
    })?;
    good.holder.unregister(&second, MINE)?;
    beats(&mut good, 13)?;
    // The other device of the domain doesn't reach what the dead one left, either.
    let edu = Edu::on_sysfs(PAIR_B)?;
    is_blocked(ctx, MINE, ALIAS, || edu.copy_out(MINE, 4096))?;
    drop(edu);
    beats(&mut good, 17)?;

    drop(good);
    daemon.cli(&["release", &first])?.ok()?;
    daemon.cli(&["release", &second])?.ok()?;
    set_bridge(ctx, &daemon)?;
    before.iter().try_for_each(Before::is_back)?;
    Ok(Outcome::Pass)
}

/// One page of memory is registered: whoever looks at the domain or at the metrics finds that.
fn is_seen(daemon: &Daemon, reservation: &str) -> Result<()> {
    let domain = text(&daemon.cli(&["reservation", "show", reservation])?.ok()?, "domain")?;
    let seen = daemon.cli(&["domain", "show", &domain])?.ok()?;
    for (what, value) in [("mappings", "1"), ("mappedBytes", "4096"), ("pinnedBytes", "4096")] {
        ensure!(seen[what] == value, "{what} isn't {value}: {seen}");
    }
    ensure!(seen["mapLatency"]["count"] == "1", "one map wasn't counted: {seen}");
    ensure!(seen["ranges"][0]["last"].is_string(), "no permitted range: {seen}");
    let metrics = daemon.get("/metrics")?;
    for (start, end) in [
        (format!("berth_domain_pinned_bytes{{domain=\"{domain}\""), " 4096"),
        ("berth_dma_duration_seconds_count{op=\"map\"}".to_owned(), " 1"),
    ] {
        let found = metrics.lines().any(|line| line.starts_with(&start) && line.ends_with(end));
        ensure!(found, "no {start}...{end} in {metrics}");
    }
    Ok(())
}

/// Reserves both devices of the pair for one domain, four pages of memory each, and attaches them.
fn two_clients(daemon: &Daemon, backend: &str, delivery: &str) -> Result<(String, String)> {
    let common = ["--policy", "shared", "--delivery", delivery, "--backend", backend];
    let bounds = ["--label", "tenant-a", "--memory", "16KiB"];
    let words = [&["--device", PAIR_A][..], &common, &bounds].concat();
    let first = reserve(daemon, &words)?;
    let domain = text(&daemon.cli(&["reservation", "show", &first])?.ok()?, "domain")?;
    let uid = format!("uid:{STRANGER_UID}");
    let who = ["reserve", "--holder", "vm2", "--for", &uid, "--domain", &domain];
    let words = [&who[..], &["--device", PAIR_B], &common, &bounds].concat();
    let second = text(&daemon.cli(&words)?.ok()?, "id")?;
    daemon.cli(&["attach", &first])?.ok()?;
    daemon.cli(&["attach", &second])?.ok()?;
    Ok((first, second))
}

/// A process and its reservation. Of what is `held` it has no descriptor of VFIO at all.
struct Client {
    holder: Holder,
    id: String,
}

impl Client {
    fn of(ctx: &Ctx, daemon: &Daemon, uid: u32, id: &str, delivery: &str) -> Result<Self> {
        let mut holder = Holder::start(ctx, uid, daemon.handover())?;
        // A kernel may keep sysfs from mapping what a holder uses, so that `bound` isn't fetched.
        if delivery == "held" {
            let fetched = holder.fetch(id)?;
            let fds = fetched["fds"].as_array().map_or(0, Vec::len);
            ensure!(fds == 0, "descriptors of a held device left the daemon: {fetched}");
        }
        Ok(Self { holder, id: id.to_owned() })
    }

    /// Its registration of these pages of a memory is refused, and for this reason.
    fn is_refused(
        &mut self,
        memory: usize,
        iova: u64,
        first_page: u64,
        pages: u64,
        reason: &str,
    ) -> Result<()> {
        let request = json!({
            "op": "register", "reservation": self.id, "iova": format!("{iova:#x}"),
            "lengthBytes": pages * 4096, "offset": first_page * 4096,
        });
        let answer = self.holder.ask(request, Some(memory))?;
        ensure!(answer["refusal"]["reason"] == reason, "not {reason}: {answer}");
        Ok(())
    }
}
