//! Reservations without kernel work under way: their holds and claims.

use berth_ownership::{
    Backend, Command, Delivery, HolderProcess, Reason, Refusal, Reservation, ReservationId,
    ReservationState,
};

use super::Report;
use crate::{
    acts::{
        Engine,
        holder::{User, lives, living},
        job::Job,
    },
    model::ApiError,
};

/// Looks at some reservations.
pub(super) fn look(engine: &Engine, ids: &[ReservationId], rebooted: bool) -> Report {
    let mut report = Report::default();
    let kernel_holds = engine.tools().host.kernel_hold();
    for id in ids {
        if !rebooted && !kernel_holds && is_held_by_the_record(engine, id) {
            report.held.push(id.clone());
            continue;
        }
        if let Err(error) = one(engine, id, rebooted, &mut report) {
            tracing::error!(reservation = %id, %error, "start-up could not settle a reservation");
        }
    }
    report
}

/// Whether a reservation without claims stands by its record alone: its groups are there, and on a
/// host whose kernel has no hold for iommufd nothing was taken that could have been lost.
fn is_held_by_the_record(engine: &Engine, id: &ReservationId) -> bool {
    let snapshot = engine.snapshot();
    snapshot.state.reservation(id).is_some_and(|record| {
        record.state == ReservationState::Reserved
            && record.backend == Backend::Iommufd
            && record.targets.iter().all(|target| {
                snapshot.group(&target.group).is_some()
                    && snapshot.state.group(&target.group).is_some()
            })
    })
}

fn one(
    engine: &Engine,
    id: &ReservationId,
    rebooted: bool,
    report: &mut Report,
) -> Result<(), ApiError> {
    let snapshot = engine.snapshot();
    let Some(record) = snapshot.state.reservation(id) else { return Ok(()) };
    let job = match Job::of(&snapshot, id) {
        Ok(job) => job,
        Err(refusal) => return lose(engine, id, &refusal, report),
    };
    match record.state {
        ReservationState::Reserved => {}
        ReservationState::Held
        | ReservationState::Handed
        | ReservationState::Expired
        | ReservationState::Draining => {
            if !rebooted && adopt(engine, record, &job)? {
                report.adopted.push(id.clone());
                return Ok(());
            }
            end(engine, record, &job, rebooted)?;
            report.ended.push(id.clone());
        }
        ReservationState::Preparing | ReservationState::Lost | ReservationState::Released => {
            return Ok(());
        }
    }
    // A reservation that adopted its holder ends with that: what gives it back takes the hold.
    let now = engine.snapshot();
    if now.state.reservation(id).is_some_and(|record| record.pending.is_some()) {
        return Ok(());
    }
    hold(engine, &job, rebooted, report)
}

/// Claims live on where a process has the device open, and where one may open it by its node.
pub(super) fn adopt(engine: &Engine, record: &Reservation, job: &Job) -> Result<bool, ApiError> {
    if matches!(record.delivery, Delivery::Held | Delivery::Bound) {
        if engine.has_all(job) {
            goes_on(engine, record);
            return Ok(true);
        }
        // Half of a reservation is none.
        engine.let_go(job);
    }
    if record.delivery == Delivery::Held {
        return Ok(false);
    }
    let users = match (engine.tools().users_of(job), &record.process) {
        (Ok(users), _) => users,
        (Err(refusal), None) => return Err(refusal.into()),
        (Err(refusal), Some(process)) => {
            tracing::warn!(reservation = %record.id, why = refusal.message, "who has it open?");
            engine.look_at(&record.id, process);
            return Ok(true);
        }
    };
    let alive = record.process.as_ref().and_then(|process| Some((process, living(process)?)));
    let let_in = engine.lets_in(record) && alive.is_some();
    if users.is_empty() && !let_in {
        let Some(process) = &record.process else { return Ok(false) };
        if engine.are_closed(job) {
            return Ok(false);
        }
        // In no process, and open: under way to one.
        engine.shut_out(job);
        engine.look_at(&record.id, process);
        return Ok(true);
    }
    if let_in {
        engine.let_in(job)?;
    } else {
        engine.shut_out(job);
    }
    let has_it = |pid: u32| users.iter().any(|user| u32::try_from(user.pid) == Ok(pid));
    if let Some((process, pidfd)) = alive.filter(|(process, _)| let_in || has_it(process.pid)) {
        engine.watch_user(&record.id, User::Seen(process.clone(), pidfd));
        return Ok(true);
    }
    let nobody = HolderProcess::new(0, 0);
    let dead = record.process.as_ref().unwrap_or(&nobody);
    let Some((user, kinship)) = engine.heir(job, record, dead)? else { return Ok(false) };
    engine.tools().records.command(user.follows(&record.id, kinship), "reconcile")?;
    engine.watch_user(&record.id, user);
    Ok(true)
}

/// All devices came from the store. Where the holder ended meanwhile its claims do now.
fn goes_on(engine: &Engine, record: &Reservation) {
    let Some(process) = &record.process else { return };
    match living(process) {
        Some(pidfd) => engine.watch(&record.id, process.clone(), pidfd),
        None => engine.ended(&record.id, process),
    }
}

/// The kernel closed what the daemon or a dead holder had.
pub(super) fn end(
    engine: &Engine,
    record: &Reservation,
    job: &Job,
    rebooted: bool,
) -> Result<(), ApiError> {
    engine.shut_out(job);
    engine.let_go(job);
    let reservation = record.id.clone();
    let why = if rebooted { "host rebooted" } else { "daemon restarted" };
    let died = record.process.as_ref().is_some_and(|process| !lives(process));
    let command = if died && !rebooted && record.delivery != Delivery::Held {
        Command::HolderGone { reservation }
    } else {
        Command::DetachedByRestart { reservation, why: why.to_owned() }
    };
    engine.tools().records.command(command, "reconcile")
}

/// Takes the holds again; after a reboot the drivers come first.
fn hold(engine: &Engine, job: &Job, rebooted: bool, report: &mut Report) -> Result<(), ApiError> {
    if rebooted && let Err(refusal) = engine.viable_again(job) {
        return lose(engine, &job.reservation, &refusal, report);
    }
    for group in &job.groups {
        if engine.lives_elsewhere(group) {
            continue;
        }
        if let Err(error) = engine.tools().settle_hold(job, group) {
            let refusal = engine.tools().explain(group, &error);
            return lose(engine, &job.reservation, &refusal, report);
        }
    }
    report.held.push(job.reservation.clone());
    Ok(())
}

fn lose(
    engine: &Engine,
    id: &ReservationId,
    refusal: &Refusal,
    report: &mut Report,
) -> Result<(), ApiError> {
    tracing::error!(reservation = %id, why = refusal.message, "hold lost");
    let why = format!("{}: {}", Reason::HoldLost.name(), refusal.message);
    let lost = Command::HoldLost { reservation: id.clone(), why };
    engine.tools().records.command(lost, "reconcile")?;
    report.lost.push(id.clone());
    Ok(())
}
