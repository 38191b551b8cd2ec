//! Two labels share nothing: a device of one is not attached to the memory of the other, whatever id
//! its holder guesses. Decided by errnos and by bytes.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use berth_uapi::Errno;

use super::berthd_tools::{Before, PAGE, is_free, is_refused, moves, text};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::Daemon,
        edu::pattern,
        holder::Holder,
        unpriv::{HOLDER_UID, STRANGER_UID},
    },
    topology::{EDU_ROOT, EDU_SPARE, PAIR_A, PAIR_B, PAIR_BRIDGE},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_labels_attack", IOMMUFD, attack).within(240),
    Scenario::new("berthd_labels_join_iommufd", IOMMUFD, join_iommufd).within(240),
    Scenario::new("berthd_labels_join_type1", TYPE1, join_type1).within(240),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const IOVA: u64 = 0x70_0000;
/// More objects than the context of one bound device has.
const OWN: u32 = 8;

fn reserve(daemon: &Daemon, uid: u32, label: &str, words: &[&str]) -> Result<String> {
    let uid = format!("uid:{uid}");
    let own = ["reserve", "--holder", label, "--label", label, "--for", &uid];
    text(&daemon.cli(&[&own[..], words].concat())?.ok()?, "id")
}

/// The holder of a bound device goes through the ids of I/O address spaces, that of its neighbour
/// among them.
fn attack(ctx: &mut Ctx) -> Result<Outcome> {
    let before = [EDU_ROOT, EDU_SPARE].map(Before::of);
    let daemon = Daemon::start(ctx)?;
    let common = ["--policy", "exclusive", "--backend", "iommufd"];
    let of =
        |device, delivery| [&["--device", device, "--delivery", delivery][..], &common].concat();
    let own = reserve(&daemon, HOLDER_UID, "red", &of(EDU_ROOT, "bound"))?;
    let other = reserve(&daemon, STRANGER_UID, "blue", &of(EDU_SPARE, "unbound"))?;
    let mut neighbour = Holder::start(ctx, STRANGER_UID, daemon.handover())?;
    neighbour.fetch(&other)?;
    // So that its space has an id that means nothing in the attacker's context.
    neighbour.make_spaces(24)?;
    ensure!(neighbour.bind(EDU_SPARE)? == 0, "its bind is refused");
    let theirs = neighbour.memory(1)?;
    neighbour.map(theirs, IOVA)?;
    moves(&mut neighbour, EDU_SPARE, theirs, IOVA, 11)?;
    neighbour.write(theirs, 0, &pattern(55, PAGE))?;
    let target = neighbour.space()?;

    daemon.cli(&["attach", &own])?.ok()?;
    let mut attacker = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    attacker.fetch(&own)?;
    let mine = attacker.memory(1)?;
    attacker.map(mine, IOVA)?;
    let space = attacker.space()?;
    ensure!(space != target, "both spaces have id {space}");
    let mut answers = BTreeMap::new();
    for id in 0..target + 16 {
        answers.insert(id, attacker.attach(EDU_ROOT, id)?);
    }
    println!("attached to {answers:?}; its own is {space}, the neighbour's {target}");
    let noent = Errno::NOENT.raw_os_error();
    ensure!(answers[&target] == noent, "its neighbour's space: {}", answers[&target]);
    // Its own space, and the page table that the kernel made of that, are what it has.
    let taken: Vec<u32> = answers.iter().filter(|(_, e)| **e == 0).map(|(id, _)| *id).collect();
    ensure!(taken.contains(&space), "not even to its own: {taken:?}");
    let beyond: Vec<_> = answers.iter().filter(|(id, e)| **id > OWN && **e != noent).collect();
    ensure!(beyond.is_empty() && target > OWN, "there are others: {beyond:?}");
    // Its writes are its own still, at the address where its neighbour's page is.
    moves(&mut attacker, EDU_ROOT, mine, IOVA, 23)?;
    attacker.unmap(IOVA, 4096)?;
    attacker.copy_out(EDU_ROOT, IOVA)?;
    let there = neighbour.read(theirs, 0, PAGE)?;
    ensure!(there == pattern(55, PAGE), "the neighbour's memory changed: {:?}", &there[..8]);
    moves(&mut neighbour, EDU_SPARE, theirs, IOVA, 37)?;
    attacker.close()?;
    neighbour.close()?;
    daemon.cli(&["release", &own])?.ok()?;
    daemon.cli(&["release", &other])?.ok()?;
    before.iter().try_for_each(Before::is_back)?;
    is_free(EDU_ROOT)?;
    is_free(EDU_SPARE)?;
    Ok(Outcome::Pass)
}

fn join_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    join(ctx, "iommufd")
}

fn join_type1(ctx: &mut Ctx) -> Result<Outcome> {
    join(ctx, "type1")
}

/// The other device of a group, for another label: neither by the shared domain nor by the token.
fn join(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = [PAIR_A, PAIR_B, PAIR_BRIDGE].map(Before::of);
    let daemon = Daemon::start(ctx)?;
    for policy in ["shared", "group"] {
        // From a kernel whose shpchp has the bridge.
        let words = ["--take-from-host", "--policy", policy, "--backend", backend, "--device"];
        let first = reserve(&daemon, HOLDER_UID, "red", &[&words[..], &[PAIR_A]].concat())?;
        let shown = daemon.cli(&["reservation", "show", &first])?.ok()?;
        let domain = text(&shown, "domain")?;
        let uid = format!("uid:{STRANGER_UID}");
        let other = ["reserve", "--holder", "blue", "--label", "blue", "--for", &uid];
        let other = [&other[..], &words, &[PAIR_B]].concat();
        for joins in [["--domain", &domain], ["--join", &first]] {
            let answer = daemon.cli(&[&other[..], &joins].concat())?;
            is_refused(&answer, "LABEL_MISMATCH", &["red", "blue"])?;
        }
        // The same label joins.
        let own = [&words[..], &[PAIR_B]].concat();
        let joins: &[&str] =
            if policy == "shared" { &["--domain", &domain] } else { &["--join", &first] };
        let second = reserve(&daemon, HOLDER_UID, "red", &[&own[..], joins].concat())?;
        daemon.cli(&["release", &second])?.ok()?;
        daemon.cli(&["release", &first])?.ok()?;
        before.iter().try_for_each(Before::is_back)?;
    }
    if before.iter().all(|device| device.driver() != Some("shpchp")) {
        is_free(PAIR_A)?;
    }
    Ok(Outcome::Pass)
}
