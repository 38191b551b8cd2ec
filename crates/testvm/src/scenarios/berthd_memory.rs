//! Memory of clients in a domain that they share: what is refused, and that the neighbour's DMA goes
//! on whatever a client does. Decided by the bytes that its device moves.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::berthd_tools::{Before, PAGE, is_blocked, is_free, reserve, text};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::Daemon,
        edu::{Edu, pattern},
        holder::Holder,
        sysfs,
        unpriv::{HOLDER_UID, STRANGER_UID},
        wait_for,
    },
    topology::{PAIR_A, PAIR_B, PAIR_BRIDGE},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Shpchp, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_memory_held_iommufd", IOMMUFD, |ctx| clients(ctx, "iommufd", "held")),
    Scenario::new("berthd_memory_held_type1", TYPE1, |ctx| clients(ctx, "type1", "held")),
    Scenario::new("berthd_memory_bound_iommufd", IOMMUFD, |ctx| clients(ctx, "iommufd", "bound")),
    Scenario::new("berthd_memory_bound_type1", TYPE1, |ctx| clients(ctx, "type1", "bound")),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const FIRST: u64 = 0x50_0000;
const SECOND: u64 = 0x60_0000;
const LABEL: &str = "tenant-a";
/// What the IOMMU sees of everything behind the PCIe to PCI bridge.
const ALIAS: &str = "0000:03:00.0";
/// What each reservation may register.
const PAGES: u64 = 4;

fn clients(ctx: &Ctx, backend: &str, delivery: &str) -> Result<Outcome> {
    let before = [PAIR_A, PAIR_B, PAIR_BRIDGE].map(Before::of);
    let daemon = Daemon::start(ctx)?;
    let shpchp = ctx.has(Shpchp) && sysfs::driver(PAIR_BRIDGE).is_some();
    if shpchp {
        daemon.cli(&["kernel-dma", "release", PAIR_BRIDGE])?.ok()?;
    }
    let memory = (PAGES * 4096).to_string();
    let common = ["--policy", "shared", "--delivery", delivery, "--backend", backend];
    let common = [&common[..], &["--label", LABEL, "--memory", &memory]].concat();
    let first = reserve(&daemon, &[&["--device", PAIR_A], &common[..]].concat())?;
    let domain = text(&daemon.cli(&["reservation", "show", &first])?.ok()?, "domain")?;
    let uid = format!("uid:{STRANGER_UID}");
    let words = ["reserve", "--holder", "vm2", "--for", &uid, "--device", PAIR_B];
    let joins = ["--domain", domain.as_str()];
    let joined = daemon.cli(&[&words[..], &common[..], &joins[..]].concat())?.ok()?;
    let second = text(&joined, "id")?;
    for id in [&first, &second] {
        daemon.cli(&["attach", id])?.ok()?;
    }
    let mut one = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let mut two = Holder::start(ctx, STRANGER_UID, daemon.handover())?;
    let yours = two.memory(1)?;
    two.register(&second, yours, SECOND)?;
    let neighbour = Edu::on_sysfs(PAIR_B)?;
    let mut goes_on = |seed| moves(&mut two, &neighbour, yours, SECOND, seed);
    goes_on(1)?;

    hostile(&mut one, &first)?;
    goes_on(2)?;
    // What it may, it can.
    let mine = one.memory(1)?;
    one.register(&first, mine, FIRST)?;
    let edu = Edu::on_sysfs(PAIR_A)?;
    moves(&mut one, &edu, mine, FIRST, 3)?;
    goes_on(4)?;
    one.kill()?;
    let seen = || daemon.log().contains("holder process ended").then_some(());
    wait_for("the end of the client to be seen", ctx.patience(), seen)?;
    is_blocked(ctx, FIRST, ALIAS, || edu.copy_out(FIRST, 4096))?;
    goes_on(5)?;
    drop((edu, neighbour));
    two.kill()?;

    for id in [&first, &second] {
        daemon.cli(&["release", id])?.ok()?;
    }
    if !shpchp {
        is_free(PAIR_A)?;
    } else if sysfs::driver(PAIR_BRIDGE).is_none() {
        daemon.cli(&["kernel-dma", "set", PAIR_BRIDGE])?.ok()?;
    }
    before.iter().try_for_each(Before::is_back)?;
    Ok(Outcome::Pass)
}

/// What a client must not be given.
fn hostile(client: &mut Holder, id: &str) -> Result<()> {
    let loose = client.loose_memory(1)?;
    let sealed = client.memory(PAGES + 1)?;
    let mut refused = |memory, iova: u64, pages: u64, reason: &str, says: &[&str]| {
        let request = json!({"op": "register", "reservation": id, "iova": format!("{iova:#x}"),
                             "lengthBytes": pages * 4096});
        let answer = client.ask(request, Some(memory))?;
        is_refused(&answer, reason, says)
    };
    refused(loose, FIRST, 1, "INVALID_ARGUMENT", &["F_SEAL_SHRINK"])?;
    refused(sealed, FIRST, PAGES + 1, "MEMLOCK_LIMIT", &["16384", "20480"])?;
    // The neighbour's, exactly and in part.
    refused(sealed, SECOND, 1, "INVALID_ARGUMENT", &["0x600000"])?;
    refused(sealed, SECOND - 4096, 2, "INVALID_ARGUMENT", &["0x5ff000"])?;
    let take = json!({"op": "unregister", "reservation": id, "iova": format!("{SECOND:#x}"),
                      "lengthBytes": 4096});
    is_refused(&client.ask(take, None)?, "NOT_FOUND", &[])
}

fn is_refused(answer: &Value, reason: &str, says: &[&str]) -> Result<()> {
    ensure!(answer["ok"] == false, "it was not refused: {answer}");
    ensure!(answer["refusal"]["reason"] == reason, "not {reason}: {answer}");
    let text = answer.to_string();
    ensure!(says.iter().all(|word| text.contains(word)), "not all of {says:?}: {answer}");
    Ok(())
}

/// The device takes a pattern in and brings it back.
fn moves(client: &mut Holder, edu: &Edu, memory: usize, iova: u64, seed: u8) -> Result<()> {
    let bytes = pattern(seed, PAGE);
    client.write(memory, 0, &bytes)?;
    edu.copy_in(iova, 4096)?;
    client.write(memory, 0, &[0; PAGE])?;
    edu.copy_out(iova, 4096)?;
    ensure!(client.read(memory, 0, PAGE)? == bytes, "the pattern did not come back");
    Ok(())
}
