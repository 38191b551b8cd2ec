//! What drains: a process that came by a dead holder's device is looked at until it has it no more.
//!
//! Its end is seen by its pidfd like any holder's. That it closes the device and lives on is told by
//! nobody, so it is looked for.

use std::time::Duration;

use berth_ownership::{Command, HolderProcess, ReservationId, ReservationState};

use super::{
    engine::Engine,
    holder::{LOOK, User, process_of},
    job::Job,
    revoke,
    runtime::lock,
};

/// Before the first look; doubled up to [`SELDOM`].
const FIRST: Duration = Duration::from_millis(250);

/// How often one that keeps a device for long is looked at.
const SELDOM: Duration = Duration::from_secs(4);

impl Engine {
    /// Looks after a process that drains, until the reservation is without it.
    pub(crate) fn watch_drain(&self, id: &ReservationId, process: &HolderProcess) {
        let (weak, id, process) =
            (std::sync::Arc::downgrade(&self.inner), id.clone(), process.clone());
        self.inner.holders.handle.spawn(async move {
            let mut pause = FIRST;
            loop {
                tokio::time::sleep(pause).await;
                let Some(inner) = weak.upgrade() else { return };
                let is_cut_off = lock(&inner.holders.cut_off).contains(&id);
                pause = (pause * 2).min(if is_cut_off { LOOK } else { SELDOM });
                let (engine, of, who) = (Engine { inner }, id.clone(), process.clone());
                let look = move || engine.look_at_drain(&of, &who);
                if !tokio::task::spawn_blocking(look).await.unwrap_or(false) {
                    return;
                }
            }
        });
    }

    /// A holder that was to be ended and could not be: it drains, and is cut off again and again, as it
    /// may map at any time; and it is killed once that is possible.
    pub(super) fn keep_cut_off(&self, id: &ReservationId) {
        let snapshot = self.snapshot();
        let Ok(job) = Job::of(&snapshot, id) else { return };
        let Ok(users) = self.tools().users_of(&job) else { return };
        let holder = users.iter().position(|user| self.tools().is_holder(&job, user));
        let Some(user) = users.get(holder.unwrap_or(0)) else { return };
        let user = match process_of(user.pid) {
            Ok((process, pidfd)) => User::Seen(process, pidfd),
            Err(_) => User::Named(HolderProcess {
                name: user.name.clone(),
                ..HolderProcess::new(u32::try_from(user.pid).unwrap_or_default(), user.start_time)
            }),
        };
        lock(&self.inner.holders.cut_off).insert(id.clone());
        let (reservation, process) = (id.clone(), user.process().clone());
        self.told(Command::HolderMoved { reservation, process });
        self.watch_user(id, user);
    }

    /// Whether there is more to wait for.
    fn look_at_drain(&self, id: &ReservationId, process: &HolderProcess) -> bool {
        let snapshot = self.snapshot();
        let drains = snapshot.state.reservation(id).is_some_and(|record| {
            record.state == ReservationState::Draining && record.process.as_ref() == Some(process)
        });
        if !drains {
            lock(&self.inner.holders.cut_off).remove(id);
            return false;
        }
        let Ok(job) = Job::of(&snapshot, id) else { return true };
        if lock(&self.inner.holders.cut_off).contains(id)
            && let Err(refusal) = revoke::again(self.tools(), &job, process)
        {
            tracing::warn!(reservation = %id, why = refusal.message, "revoke, once more");
        }
        let Ok(users) = self.tools().users_of(&job) else { return true };
        let keeps = |pid: i32| u32::try_from(pid) == Ok(process.pid);
        if !users.iter().any(|user| keeps(user.pid)) {
            let (of, who) = (id.clone(), process.clone());
            let name = format!("end of what process {} kept of {id}", process.pid);
            self.beside(name, &snapshot, id, move |engine| engine.ended(&of, &who));
        }
        true
    }
}
