//! Intents without an outcome: finished where that is safe to repeat, else recorded as failed.

use std::time::{Duration, Instant};

use berth_ownership::{Command, Reason, Refusal, ReservationId, ReservationState};

use super::{Report, standing};
use crate::{
    acts::{
        self, Engine, adopt_holder::adopting, attach, dispatch::failure, holder::lives, job::Job,
        tools::NO_INTENT,
    },
    model::{Executor, Intent, IntentBody, OpenIntent, Outcome},
};

/// Settles all of them, oldest first. What is repeated runs on the engine's threads.
pub(super) fn settle(
    engine: &Engine,
    open: Vec<OpenIntent>,
    rebooted: bool,
    report: &mut Report,
    deadline: Instant,
) {
    let mut repeated = Vec::new();
    for OpenIntent { intent, steps, boot_id } in open {
        let last = steps.last().map(|note| note.step.as_str()).unwrap_or("none");
        tracing::info!(
            intent = intent.id,
            kind = intent.kind.name(),
            last_step = last,
            boot_id,
            "an intent had no outcome"
        );
        match &intent.body {
            // Each looks at what is before it acts, so that doing it again only does the rest.
            IntentBody::Prepare
            | IntentBody::Release { .. }
            | IntentBody::KernelDmaSet { .. }
            | IntentBody::KernelDmaRelease { .. }
            | IntentBody::Sriov { .. } => {
                repeated.push(intent.id);
                report.finished.push(intent.id);
                let reservation = intent.reservation.clone();
                engine.submit(intent, engine.snapshot());
                if let Some(id) = reservation {
                    watch_after(engine, id, rebooted);
                }
            }
            IntentBody::Attach { .. } | IntentBody::Detach | IntentBody::Replace { .. } => {
                report.undone.push(intent.id);
                broken_off(engine, &intent, rebooted);
            }
            IntentBody::HandOver => match &intent.reservation {
                // Nothing was touched: it is looked at again.
                Some(id) if adopting(&engine.snapshot(), id).is_some() => {
                    repeated.push(intent.id);
                    report.finished.push(intent.id);
                    engine.submit(intent, engine.snapshot());
                }
                _ => hand_over(engine, &intent, rebooted, report),
            },
        }
    }
    while repeated.iter().any(|id| engine.at_work(*id)) {
        if Instant::now() >= deadline {
            report.late = true;
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What was half attached is closed by the kernel; the claims that stood before are looked at.
fn broken_off(engine: &Engine, intent: &Intent, rebooted: bool) {
    let Some(id) = &intent.reservation else { return };
    let snapshot = engine.snapshot();
    let job = match Job::of(&snapshot, id) {
        Ok(job) => job,
        Err(refusal) => {
            // Its group is gone; left open, the intent would stay in the way of a release.
            if let Err(error) = engine.tools().records.outcome(intent.id, failure(intent, refusal))
            {
                tracing::error!(intent = intent.id, %error, "an intent could not be closed");
            }
            return;
        }
    };
    match &intent.body {
        // Finished, or undone: what came from the store is still open.
        IntentBody::Detach if engine.has_all(&job) => {
            let outcome = attach::detach(engine.tools(), NO_INTENT, &job);
            close(engine, intent, outcome);
            watch_holder(engine, id, rebooted);
            return engine.follow_up();
        }
        IntentBody::Replace { .. } if engine.has_all(&job) => {
            match engine.back_to_its_domain(&job) {
                Ok(()) => {
                    close(engine, intent, failure(intent, restarted(intent, &job)));
                    return watch_holder(engine, id, rebooted);
                }
                Err(error) => tracing::error!(reservation = %id, %error, "its domain is lost"),
            }
        }
        _ => {}
    }
    engine.let_go(&job);
    let records = &engine.tools().records;
    let in_use = attach::not_in_use(engine.tools(), &job);
    let outcome = match (&intent.body, &in_use) {
        (IntentBody::Detach, Ok(())) => {
            Outcome::done(Command::DetachDone { reservation: id.clone() })
        }
        (_, Err(refusal)) => failure(intent, refusal.clone()),
        (_, Ok(())) => failure(intent, restarted(intent, &job)),
    };
    if let Err(error) = records.outcome(intent.id, outcome) {
        tracing::error!(intent = intent.id, %error, "a broken-off intent could not be closed");
        if error.is_passing() {
            broken_off_later(engine, intent.clone(), id, rebooted);
        }
        return;
    }
    if in_use.is_err() {
        watch_holder(engine, id, rebooted);
        return;
    }
    let snapshot = engine.snapshot();
    let Some(record) = snapshot.state.reservation(id) else { return };
    let claims = record.claims > 0 && record.state != ReservationState::Released;
    if claims {
        let died = record.process.as_ref().is_some_and(|process| !lives(process));
        let reservation = id.clone();
        let command = if died {
            Command::HolderGone { reservation }
        } else {
            Command::DetachedByRestart { reservation, why: "daemon restarted".to_owned() }
        };
        if let Err(error) = records.command(command, "reconcile") {
            tracing::error!(reservation = %id, %error, "ended claims could not be recorded");
        }
    }
    viable_again(engine, &job, rebooted);
    attach::hold_again(engine.tools(), NO_INTENT, &job);
    engine.follow_up();
}

/// After a reboot devices have the host's drivers, which come before the hold. Where they can't be
/// changed the hold isn't had either, and tells so.
fn viable_again(engine: &Engine, job: &Job, rebooted: bool) {
    if rebooted && let Err(refusal) = engine.viable_again(job) {
        tracing::error!(reservation = %job.reservation, why = refusal.message, "no drivers again");
    }
}

/// Of a hand-over that was broken off no descriptor has left. A node may have been opened by now,
/// by whoever was let in: then it is done. Else it is undone.
fn hand_over(engine: &Engine, intent: &Intent, rebooted: bool, report: &mut Report) {
    let Some(id) = &intent.reservation else { return };
    let tools = engine.tools();
    let job = match Job::of(&engine.snapshot(), id) {
        Ok(job) => job,
        Err(refusal) => return close(engine, intent, failure(intent, refusal)),
    };
    let nobody = match tools.users_of(&job) {
        Ok(users) => users.is_empty(),
        Err(refusal) => {
            tracing::warn!(reservation = %id, why = refusal.message, "who has it open?");
            false
        }
    };
    if nobody {
        report.undone.push(intent.id);
        viable_again(engine, &job, rebooted);
        acts::hand_over::undo(tools, NO_INTENT, &job);
        close(engine, intent, failure(intent, restarted(intent, &job)));
    } else {
        report.finished.push(intent.id);
        let reservation = id.clone();
        close(engine, intent, Outcome::done(Command::HandOverDone { reservation }));
        watch_holder(engine, id, rebooted);
    }
    engine.follow_up();
}

/// Records the end of an intent, sooner or later.
fn close(engine: &Engine, intent: &Intent, outcome: Outcome) {
    let Err(error) = engine.tools().records.outcome(intent.id, outcome.clone()) else { return };
    tracing::error!(intent = intent.id, %error, "a broken-off intent could not be closed");
    let Some(id) = intent.reservation.as_ref().filter(|_| error.is_passing()) else {
        return;
    };
    let (name, intent) = (format!("end of intent {}", intent.id), intent.clone());
    engine.beside(name, &engine.snapshot(), id, move |engine| {
        if engine.moment() {
            close(engine, &intent, outcome);
        }
    });
}

/// Start-up doesn't wait for a store that can't be written; what it has to say does.
fn broken_off_later(engine: &Engine, intent: Intent, id: &ReservationId, rebooted: bool) {
    let name = format!("end of intent {}", intent.id);
    engine.beside(name, &engine.snapshot(), id, move |engine| {
        if engine.moment() {
            broken_off(engine, &intent, rebooted);
        }
    });
}

/// Watches the holder of what a repeated intent left as it was, once that has run.
fn watch_after(engine: &Engine, id: ReservationId, rebooted: bool) {
    let (snapshot, of) = (engine.snapshot(), id.clone());
    let name = format!("holder of {id}");
    engine.beside(name, &snapshot, &of, move |engine| watch_holder(engine, &id, rebooted));
}

/// Claims that an intent left standing live on with their holder, whose end must be noticed; they
/// end where it is gone by now.
fn watch_holder(engine: &Engine, id: &ReservationId, rebooted: bool) {
    let snapshot = engine.snapshot();
    let Some(record) = snapshot.state.reservation(id) else { return };
    if record.claims == 0 || record.pending.is_some() {
        return;
    }
    let Ok(job) = Job::of(&snapshot, id) else { return };
    // No holder outlives the host.
    let adopted = if rebooted { Ok(false) } else { standing::adopt(engine, record, &job) };
    let settled = adopted.and_then(|adopted| {
        if !adopted {
            standing::end(engine, record, &job, rebooted)?;
            let now = engine.snapshot();
            if now.state.reservation(id).is_some_and(|record| record.pending.is_some()) {
                return Ok(());
            }
            viable_again(engine, &job, rebooted);
            attach::hold_again(engine.tools(), NO_INTENT, &job);
            engine.follow_up();
        }
        Ok(())
    });
    if let Err(error) = settled {
        tracing::error!(reservation = %id, %error, "what became of a holder is not recorded");
    }
}

fn restarted(intent: &Intent, job: &Job) -> Box<Refusal> {
    Refusal::new(
        Reason::DaemonRestarted,
        &job.reservation,
        format!("berthd restarted during {} of {}", intent.kind.name(), job.reservation),
    )
}
