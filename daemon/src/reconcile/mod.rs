//! Start-up: the record is checked against the kernel, and each intent without an outcome is
//! finished or undone, before the daemon says that it is ready.
//!
//! What a service manager stored of the last daemon is taken over: it goes on as it was. Of the rest
//! the kernel closed all that the daemon had open. So every hold is taken again, every
//! `held` attachment is recorded as ended, and a `bound` or `unbound` one stays exactly where its
//! holder lives and still has the device open. A living holder of a `node` one may still open it:
//! the lists of who may stay on the nodes, and go with whoever is gone. Nothing is called free here:
//! that needs a release.

mod intents;
mod standing;

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use berth_ownership::{Command, Condition, ContextId, ReservationId};

use crate::{
    acts::Engine,
    fdstore::KeptFd,
    model::{OpenIntent, Snapshot},
};

/// Threads that look at standing reservations.
const LOOKERS: usize = 8;

/// What start-up found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Reservations whose hold stands again.
    pub held: Vec<ReservationId>,
    /// Claims that live on with their holder.
    pub adopted: Vec<ReservationId>,
    /// Claims that ended with the daemon, the host or the holder.
    pub ended: Vec<ReservationId>,
    /// Reservations that somebody else's owner was faster than.
    pub lost: Vec<ReservationId>,
    /// Intents that were carried out again.
    pub finished: Vec<u64>,
    /// Intents that were recorded as failed.
    pub undone: Vec<u64>,
    /// True when work was still under way after the patience; it goes on.
    pub late: bool,
}

impl Report {
    fn add(&mut self, other: Self) {
        self.held.extend(other.held);
        self.adopted.extend(other.adopted);
        self.ended.extend(other.ended);
        self.lost.extend(other.lost);
        self.finished.extend(other.finished);
        self.undone.extend(other.undone);
        self.late |= other.late;
    }
}

/// Reconciles. Blocks, at most about `patience`: call it from a thread for blocking work, after
/// the first scan is recorded and before requests are served. `previous_boot` is the boot that the
/// record was last written on.
pub fn run(
    engine: &Engine,
    open: Vec<OpenIntent>,
    previous_boot: Option<&str>,
    patience: Duration,
) -> Report {
    run_with(engine, open, previous_boot, patience, Vec::new())
}

/// The same with what the last daemon left in the store of file descriptors.
pub fn run_with(
    engine: &Engine,
    open: Vec<OpenIntent>,
    previous_boot: Option<&str>,
    patience: Duration,
    kept: Vec<KeptFd>,
) -> Report {
    let deadline = Instant::now() + patience;
    let snapshot = engine.snapshot();
    let rebooted = previous_boot.is_some_and(|boot| boot != engine.tools().host.boot_id());
    engine.adopt(kept);
    unwedge(engine, &snapshot);
    engine.settle_who_was_let_in(&snapshot);
    let mut standing: Vec<(ContextId, ReservationId)> = snapshot
        .state
        .reservations()
        .filter(|record| record.holds() && record.pending.is_none())
        .map(|record| (record.context.clone(), record.id.clone()))
        .collect();
    standing.sort_unstable();
    let mut report = Report::default();
    let (done, results) = mpsc::channel();
    let chunk = standing.len().div_ceil(LOOKERS).max(1);
    let mut expected = 0;
    for some in parts(&standing, chunk) {
        let done = done.clone();
        engine.unkeyed("start-up", move |engine| {
            // Nobody listens any more when start-up ran out of patience; the work counts anyway.
            let _ = done.send(standing::look(engine, &some, rebooted));
        });
        expected += 1;
    }
    drop(done);
    collect(&mut report, &results, expected, deadline);
    intents::settle(engine, open, rebooted, &mut report, deadline);
    engine.tidy();
    tracing::info!(
        held = report.held.len(),
        adopted = report.adopted.len(),
        ended = report.ended.len(),
        lost = report.lost.len(),
        finished = report.finished.len(),
        undone = report.undone.len(),
        late = report.late,
        rebooted,
        "reconciled"
    );
    report
}

/// Nobody waits for the last daemon's kernel work any more. An unbind that waits still is the kernel's,
/// and keeps its device wedged until it comes back; what else hangs is seen to by the work that is
/// done next.
fn unwedge(engine: &Engine, snapshot: &Snapshot) {
    let wedged = snapshot.state.devices().filter(|it| it.marks.contains_key(&Condition::Wedged));
    for device in wedged {
        let why = device.marks.get(&Condition::Wedged).map(String::as_str).unwrap_or_default();
        if engine.is_still_stuck(&device.facts.id, why) {
            continue;
        }
        let command = Command::Unwedge { device: device.facts.id.clone() };
        if let Err(error) = engine.tools().records.command(command, "start") {
            tracing::warn!(device = %device.facts.id, %error, "a device stays wedged");
        }
    }
}

/// Parts of about `size`. Reservations of one context may be on one group, where one hold serves
/// all of them, so they stay together.
fn parts(standing: &[(ContextId, ReservationId)], size: usize) -> Vec<Vec<ReservationId>> {
    let mut parts: Vec<Vec<ReservationId>> = Vec::new();
    for same in standing.chunk_by(|one, next| one.0 == next.0) {
        let ids = same.iter().map(|(_, id)| id.clone());
        match parts.last_mut() {
            Some(part) if part.len() < size => part.extend(ids),
            Some(_) | None => parts.push(ids.collect()),
        }
    }
    parts
}

fn collect(
    report: &mut Report,
    results: &mpsc::Receiver<Report>,
    expected: usize,
    deadline: Instant,
) {
    for _ in 0..expected {
        let left = deadline.saturating_duration_since(Instant::now());
        match results.recv_timeout(left) {
            Ok(part) => report.add(part),
            Err(_) => {
                report.late = true;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_of_one_context_are_looked_at_one_after_another() {
        let standing: Vec<(ContextId, ReservationId)> =
            [("c-1", "r-1"), ("c-2", "r-2"), ("c-2", "r-3"), ("c-2", "r-4"), ("c-3", "r-5")]
                .map(|(context, id)| (context.into(), id.into()))
                .to_vec();
        for size in 1..=6 {
            let parts = parts(&standing, size);
            let all: Vec<&ReservationId> = parts.iter().flatten().collect();
            assert_eq!(all, standing.iter().map(|(_, id)| id).collect::<Vec<_>>(), "{size}");
            let whole = |part: &Vec<ReservationId>| {
                ["r-2", "r-3", "r-4"].iter().filter(|id| part.contains(&(**id).into())).count()
            };
            assert!(parts.iter().all(|part| [0, 3].contains(&whole(part))), "{size}: {parts:?}");
            assert!(parts.len() <= 5usize.div_ceil(size), "{size}: {parts:?}");
        }
    }
}
