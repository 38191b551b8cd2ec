//! Exhaustive search: small worlds are walked until no new state appears.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use super::coverage;
use super::fixture::{T0, at, id, returned};
use super::world::{World, key};
use super::worlds::worlds;
use crate::decide::claimant_of;
use crate::policy;
use crate::table::{CellRef, Change};
use crate::*;

/// What the search found.
#[derive(Default)]
struct Found {
    states: usize,
    decisions: usize,
    /// Cells on which a decision of the world turned.
    decisive: BTreeSet<CellRef>,
    /// Cells that were looked up at all.
    met: BTreeSet<CellRef>,
}

/// How far a world is walked.
#[derive(Clone, Copy)]
enum Extent {
    /// To its end, and for each cell it is seen whether a decision turns on it.
    Whole,
    /// So many states.
    Beginning(usize),
}

/// Walks a world.
fn search(world: &World, extent: Extent) -> Found {
    let mut found = Found::default();
    let start = world.start();
    let mut seen = HashSet::from([key(&start)]);
    let mut queue = VecDeque::from([start]);
    while let Some(state) = queue.pop_front() {
        match extent {
            Extent::Beginning(states) if found.states == states => break,
            _ => found.states += 1,
        }
        assert_can_release(&state, world.owners);
        for (cmd, time) in world.commands(&state) {
            found.decisions += 1;
            coverage::take();
            let decision = state.decide(&cmd, &time);
            let cells = coverage::take();
            if matches!(extent, Extent::Whole) {
                note_decisive(&state, &cmd, &time, &decision, &cells, &mut found);
            }
            let Ok(events) = decision else { continue };
            if events.is_empty() {
                continue;
            }
            let mut next = state.clone();
            next.apply_all(&events);
            assert_step(&state, &next, &cmd);
            for next in settled(world, next) {
                if !seen.insert(key(&next)) {
                    continue;
                }
                if let Err(broken) = invariants::check(&next) {
                    panic!("{}: {broken}\nafter {cmd:?}\nin {:#?}", world.name, state.parts());
                }
                queue.push_back(next);
            }
        }
    }
    found
}

/// Where kernel work is done at once: the states that its outcomes lead to.
fn settled(world: &World, state: State) -> Vec<State> {
    let mut cmds = Vec::new();
    for n in (0..world.owners).filter(|_| world.atomic) {
        world.outcomes(&state, n, &mut cmds);
    }
    if cmds.is_empty() {
        return vec![state];
    }
    let mut states = Vec::new();
    for cmd in cmds {
        let events = state.decide(&cmd, &at(T0)).expect("an outcome of what is under way is taken");
        let mut next = state.clone();
        next.apply_all(&events);
        assert_step(&state, &next, &cmd);
        states.push(next);
    }
    states
}

/// A cell is decisive once a decision turns with it.
fn note_decisive(
    state: &State,
    cmd: &Command,
    time: &Time,
    decision: &Result<Vec<Event>, Box<Refusal>>,
    cells: &[CellRef],
    found: &mut Found,
) {
    for cell in cells {
        found.met.insert(*cell);
        if found.decisive.contains(cell) {
            continue;
        }
        let mut turned = state.clone();
        turned.table = Arc::new(state.table().flipped_at(*cell));
        let other = turned.decide(cmd, time);
        coverage::take();
        let same = match (decision, &other) {
            (Ok(one), Ok(other)) => one == other,
            (Err(one), Err(other)) => one.reason == other.reason,
            _ => false,
        };
        if !same {
            found.decisive.insert(*cell);
        }
    }
}

/// From everywhere every reservation can be ended: kernel work comes back or fails, then a
/// release by force does it.
fn assert_can_release(state: &State, owners: usize) {
    for n in 0..owners {
        let Some(record) = state.reservation(&id(n)) else { continue };
        if record.state == ReservationState::Released {
            continue;
        }
        let mut end = state.clone();
        let why = String::new();
        let failed = record.pending.as_ref().map(|pending| match pending.kind {
            OperationKind::Prepare => {
                Command::PrepareDone { reservation: id(n), hold: Hold::Ledger }
            }
            OperationKind::Attach => Command::AttachFailed { reservation: id(n), why },
            OperationKind::Detach => Command::DetachFailed { reservation: id(n), why },
            OperationKind::Replace => Command::ReplaceFailed { reservation: id(n), why },
            OperationKind::HandOver => Command::HandOverFailed { reservation: id(n), why },
            OperationKind::Release => Command::ReleaseFailed { reservation: id(n), why },
        });
        let force = Command::Release { order: Order::new(id(n)), force: true };
        let returned = returned(state, n, ResetOutcome::Verified);
        let done = Command::ReleaseDone { reservation: id(n), returned };
        for cmd in failed.into_iter().chain([force, done]) {
            if end.reservation(&id(n)).is_some_and(|r| r.state == ReservationState::Released) {
                break;
            }
            match end.decide(&cmd, &at(T0)) {
                Ok(events) => end.apply_all(&events),
                Err(refusal) => panic!("{cmd:?} refused: {refusal}\nin {:#?}", state.parts()),
            }
        }
        let word = end.reservation(&id(n)).map(|record| record.state);
        assert_eq!(word, Some(ReservationState::Released));
        assert!(end.groups().all(|group| !group.reservations.contains(&id(n))));
        coverage::take();
    }
}

/// What no single step may do.
fn assert_step(before: &State, after: &State, cmd: &Command) {
    for group in before.groups() {
        let Some(next) = after.group(&group.id) else { continue };
        assert!(next.epoch >= group.epoch, "an epoch went down by {cmd:?}");
    }
    for record in before.reservations() {
        let Some(next) = after.reservation(&record.id) else {
            assert_eq!(record.state, ReservationState::Released, "{cmd:?}");
            continue;
        };
        assert!(
            next.claims >= record.claims || may_end_claims(cmd),
            "claims of {} ended by {cmd:?}",
            record.id
        );
        assert_eq!(next.epoch, record.epoch, "{cmd:?}");
    }
    assert_reset(before, cmd, after);
    assert_change(before, after, cmd);
}

fn may_end_claims(cmd: &Command) -> bool {
    matches!(
        cmd,
        Command::DetachDone { .. }
            | Command::ReleaseDone { .. }
            | Command::HolderGone { .. }
            | Command::HandOverUndone { .. }
            | Command::DetachedByRestart { .. }
            | Command::HoldLost { .. }
            | Command::DeviceGone { .. }
            | Command::Observe(_)
    )
}

/// A device that did DMA is given back reset as its policy asks, or is quarantined.
fn assert_reset(before: &State, cmd: &Command, after: &State) {
    let Command::ReleaseDone { reservation, returned } = cmd else { return };
    let Some(record) = before.reservation(reservation) else { return };
    if !record.ever_claimed || !record.holds() {
        return;
    }
    for id in record.devices() {
        let device = after.device(id).expect("a held device is there");
        let outcome = returned.iter().find(|outcome| outcome.device == *id);
        let clean = match outcome.map(|outcome| outcome.reset) {
            Some(ResetOutcome::Verified) => true,
            Some(ResetOutcome::NotPossible) => {
                record.reset_policy != ResetPolicy::Require
                    && device.only_label.as_ref() == Some(&record.label)
            }
            Some(ResetOutcome::Failed | ResetOutcome::NotNeeded) | None => false,
        };
        assert!(clean || device.condition() == Condition::Quarantined, "{id} is not clean");
    }
}

/// What the table says comes next is what comes: the outcome of each order is compared with the
/// change of its cell.
fn assert_change(before: &State, after: &State, cmd: &Command) {
    let (id, op): (&ReservationId, Option<Operation>) = match cmd {
        Command::AttachDone { reservation } | Command::HandOverDone { reservation } => {
            (reservation, None)
        }
        Command::DetachDone { reservation } => (reservation, Some(Operation::Detach)),
        Command::ReplaceDone { reservation } => (reservation, Some(Operation::Replace)),
        Command::ReleaseDone { reservation, .. } => (reservation, Some(Operation::Release)),
        _ => return,
    };
    let Some(record) = before.reservation(id).filter(|record| record.holds()) else { return };
    for target in &record.targets {
        let group = before.group(&target.group).expect("a held group is there");
        let next = after.group(&target.group).expect("it stays");
        let op = op.unwrap_or_else(|| policy::attach_column(record.policy, group));
        let claimant = claimant_of(record, &target.devices);
        let rows = policy::rows(before, group, &claimant, op);
        coverage::take();
        let changes: Vec<Change> = rows
            .iter()
            .filter_map(|row| match before.table().ownership(*row, op) {
                Some(Cell::Next(change)) if change != Change::Stays => Some(change),
                _ => None,
            })
            .collect();
        // The world may have moved on while the kernel worked: then there is no change to check.
        let [change] = changes[..] else { continue };
        let count = u32::try_from(target.devices.len()).expect("few devices");
        assert!(
            has_changed(change, group, next, record, count),
            "{change:?} by {cmd:?}: {:?} became {:?}",
            group.ownership,
            next.ownership
        );
    }
}

fn has_changed(
    change: Change,
    before: &Group,
    after: &Group,
    record: &Reservation,
    count: u32,
) -> bool {
    let (was, is) = (before.ownership.owner_cnt(), after.ownership.owner_cnt());
    let blocked = matches!(&after.ownership, Ownership::Group { domain: None, .. }) && was == is;
    let owned = matches!(&after.ownership, Ownership::Group { domain: Some(_), .. });
    match change {
        Change::ExclusiveBegins => {
            after.ownership == Ownership::Exclusive { claim: record.id.clone() }
        }
        Change::SharedBegins => {
            matches!(&after.ownership, Ownership::Shared { claims, .. } if *claims == count)
        }
        Change::SharedJoins => {
            matches!(&after.ownership, Ownership::Shared { claims, .. } if *claims == was + count)
        }
        Change::AdoptBegins => is == count && !after.drift,
        Change::GroupBegins => owned && is == count,
        Change::GroupJoins => owned && is == was + count,
        Change::GroupAttaches | Change::Replaces => owned && is == was,
        Change::GroupBlocks => blocked,
        // Beside drift the host is what remains.
        Change::ClaimsEnd => after.ownership == Ownership::Free || before.drift,
        Change::SharedLeaves => is + count == was,
        Change::HoldEnds => !after.reservations.contains(&record.id),
        Change::Stays
        | Change::HoldBegins
        | Change::HoldJoins
        | Change::HoldTakes
        | Change::KernelGains
        | Change::KernelLoses => true,
    }
}

/// Cells on which no decision of any world turned.
fn unmet(decisive: &BTreeSet<CellRef>) -> Vec<CellRef> {
    Table::standard().cells().filter(|cell| !decisive.contains(cell)).collect()
}

/// In an instant, what a whole search finds in a minute, where it is found early.
#[test]
fn every_small_world_begins_soundly() {
    for world in worlds() {
        assert!(search(&world, Extent::Beginning(300)).states > 100, "{}", world.name);
    }
}

#[test]
fn every_small_world_is_sound_and_every_cell_decides() {
    let mut decisive = BTreeSet::new();
    let mut met: BTreeMap<CellRef, &str> = BTreeMap::new();
    let mut states = 0;
    std::thread::scope(|scope| {
        let walks: Vec<_> = worlds()
            .into_iter()
            .map(|world| (world.name, scope.spawn(move || search(&world, Extent::Whole))))
            .collect();
        for (name, walk) in walks {
            let found = walk.join().expect("the world is sound");
            println!("{name}: {} states, {} decisions", found.states, found.decisions);
            states += found.states;
            decisive.extend(found.decisive);
            met.extend(found.met.into_iter().map(|cell| (cell, name)));
        }
    });
    let unmet = unmet(&decisive);
    println!(
        "{states} states in all; {} cells, {} decisive",
        Table::standard().cells().count(),
        decisive.len()
    );
    for cell in &unmet {
        println!("no decision turned on {cell:?} (met in {:?})", met.get(cell));
    }
    assert!(unmet.is_empty(), "{} cells decide nothing", unmet.len());
}
