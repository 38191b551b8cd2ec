//! Policy `shared`: two devices of one group, two holders, one domain.

use anyhow::{Result, ensure};

use super::berthd_tools::{
    Before, PAGE, is_blocked_for, is_free, is_refused, moves, release_bridge, reserve, set_bridge,
    text,
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::Daemon,
        edu::pattern,
        holder::Holder,
        probe, sysfs,
        unpriv::{HOLDER_UID, STRANGER_UID},
    },
    topology::{PAIR_A, PAIR_B, PAIR_BRIDGE},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Shpchp, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_shared_iommufd", IOMMUFD, shared_iommufd),
    Scenario::new("berthd_shared_type1", TYPE1, shared_type1),
    Scenario::new("berthd_bridge_driver", BRIDGE, bridge_driver),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const BRIDGE: &[Capability] = &[Capability::Daemon, Type1, Intremap, Shpchp];
const LABEL: &str = "tenant-a";
const FIRST: u64 = 0x50_0000;
const SECOND: u64 = 0x60_0000;
/// What the IOMMU sees of everything behind the PCIe to PCI bridge.
const ALIAS: &str = "0000:03:00.0";

fn shared_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    shared(ctx, "iommufd")
}

fn shared_type1(ctx: &mut Ctx) -> Result<Outcome> {
    shared(ctx, "type1")
}

fn shared(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = [PAIR_A, PAIR_B, PAIR_BRIDGE].map(Before::of);
    let daemon = Daemon::start(ctx)?;
    release_bridge(ctx, &daemon)?;
    let (first, second) = two_in_one_domain(&daemon, backend)?;
    both_do_dma(ctx, &daemon, &first, &second)?;
    // The last has left: nobody has the group, and everything is as it was.
    if ctx.has(Shpchp) && sysfs::driver(PAIR_BRIDGE).is_none() {
        is_free(PAIR_A)?;
    }
    set_bridge(ctx, &daemon)?;
    before.iter().try_for_each(Before::is_back)?;
    if !ctx.has(Shpchp) {
        is_free(PAIR_A)?;
        is_free(PAIR_B)?;
    }
    before.iter().try_for_each(Before::is_back)?;
    Ok(Outcome::Pass)
}

/// Reserves both devices; everything that isn't the same domain is refused.
fn two_in_one_domain(daemon: &Daemon, backend: &str) -> Result<(String, String)> {
    let uid = format!("uid:{STRANGER_UID}");
    let common = ["--holder", "vm2", "--for", uid.as_str(), "--backend", backend, "--label", LABEL];
    let second = |words: &[&str]| {
        let mut all = vec!["reserve", "--device", PAIR_B];
        all.extend(common);
        all.extend(words);
        daemon.cli(&all)
    };
    is_refused(&second(&["--policy", "exclusive"])?, "GROUP_NOT_SINGLETON", &["--policy group"])?;

    let shared = ["--device", PAIR_A, "--policy", "shared", "--backend", backend, "--label", LABEL];
    let first = reserve(daemon, &shared)?;
    let shown = daemon.cli(&["reservation", "show", &first])?.ok()?;
    let domain = text(&shown, "domain")?;

    is_refused(&second(&["--policy", "shared"])?, "DOMAIN_MISMATCH", &[&domain])?;
    let other = ["domain", "create", "--label", LABEL, "--backend", backend];
    let other = text(&daemon.cli(&other)?.ok()?, "id")?;
    let presented = second(&["--policy", "shared", "--domain", &other])?;
    is_refused(&presented, "DOMAIN_MISMATCH", &[&domain])?;
    daemon.cli(&["domain", "delete", &other])?.ok()?;

    let joined = second(&["--policy", "shared", "--domain", &domain])?.ok()?;
    Ok((first, text(&joined, "id")?))
}

fn both_do_dma(ctx: &Ctx, daemon: &Daemon, first: &str, second: &str) -> Result<()> {
    daemon.cli(&["attach", first])?.ok()?;
    daemon.cli(&["attach", second])?.ok()?;
    ensure!(probe::stranger(PAIR_A).is_kept_out(), "{:?}", probe::stranger(PAIR_A));
    let mut one = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let mut two = Holder::start(ctx, STRANGER_UID, daemon.handover())?;
    for (holder, id) in [(&mut one, first), (&mut two, second)] {
        let fetched = holder.fetch(id)?;
        let fds = fetched["fds"].as_array().map_or(0, Vec::len);
        ensure!(fds == 1, "the context went to one of two holders, who could move both: {fetched}");
    }
    let (mine, yours) = (one.memory(1)?, two.memory(1)?);
    is_blocked_for(ctx, &mut one, (PAIR_A, ALIAS), mine, FIRST)?;
    one.register(first, mine, FIRST)?;
    moves(&mut one, PAIR_A, mine, FIRST, 5)?;
    two.register(second, yours, SECOND)?;
    moves(&mut two, PAIR_B, yours, SECOND, 7)?;

    // It is one domain: each device reaches the other's memory.
    let bytes = pattern(9, PAGE);
    two.write(yours, 0, &bytes)?;
    one.copy_in(PAIR_A, SECOND)?;
    one.copy_out(PAIR_A, FIRST)?;
    ensure!(one.read(mine, 0, PAGE)? == bytes, "the first device does not see the second's memory");

    one.close()?;
    daemon.cli(&["release", first])?.ok()?;
    ensure!(probe::stranger(PAIR_B).is_kept_out(), "{:?}", probe::stranger(PAIR_B));
    moves(&mut two, PAIR_B, yours, SECOND, 13)?;
    is_blocked_for(ctx, &mut two, (PAIR_B, ALIAS), yours, FIRST)?;
    two.close()?;
    daemon.cli(&["release", second])?.ok()?;
    Ok(())
}

/// A bridge's hot-plug driver does DMA for the host, and is named as what is in the way; it goes
/// when it is told to, and comes back.
fn bridge_driver(ctx: &mut Ctx) -> Result<Outcome> {
    let before = [PAIR_A, PAIR_B, PAIR_BRIDGE].map(Before::of);
    let daemon = Daemon::start(ctx)?;
    let uid = format!("uid:{HOLDER_UID}");
    let words =
        ["reserve", "--holder", "vm1", "--for", &uid, "--device", PAIR_A, "--policy", "group"];
    let way_out = format!("berth kernel-dma release {PAIR_BRIDGE}");
    is_refused(&daemon.cli(&words)?, "KERNEL_DMA", &[PAIR_BRIDGE, "shpchp", &way_out])?;
    before.iter().try_for_each(Before::is_back)?;
    let explained = daemon.cli(&["explain", PAIR_A])?.ok()?.to_string();
    for word in [PAIR_BRIDGE, "shpchp", "kernel-dma release"] {
        ensure!(explained.contains(word), "explain says nothing about {word}");
    }
    daemon.cli(&["kernel-dma", "release", PAIR_BRIDGE])?.ok()?;
    ensure!(sysfs::driver(PAIR_BRIDGE).is_none(), "shpchp is still on {PAIR_BRIDGE}");
    let id = text(&daemon.cli(&words)?.ok()?, "id")?;
    let refused = sysfs::bind(PAIR_BRIDGE, "shpchp");
    ensure!(refused.is_err(), "shpchp came back to a group that is held");
    daemon.cli(&["release", &id])?.ok()?;
    if sysfs::driver(PAIR_BRIDGE).is_none() {
        daemon.cli(&["kernel-dma", "set", PAIR_BRIDGE])?.ok()?;
    }
    before.iter().try_for_each(Before::is_back)?;
    Ok(Outcome::Pass)
}
