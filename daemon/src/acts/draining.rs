//! What drains: a process that came by a dead holder's device is looked at until it has it no more.
//!
//! Its end is seen by its pidfd like any holder's. That it closes the device and lives on is told by
//! nobody, so it is looked for.

use std::time::Duration;

use berth_ownership::{HolderProcess, ReservationId, ReservationState};

use super::{engine::Engine, job::Job};

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
                pause = (pause * 2).min(SELDOM);
                let Some(inner) = weak.upgrade() else { return };
                let (engine, of, who) = (Engine { inner }, id.clone(), process.clone());
                let look = move || engine.look_at_drain(&of, &who);
                if !tokio::task::spawn_blocking(look).await.unwrap_or(false) {
                    return;
                }
            }
        });
    }

    /// Whether there is more to wait for.
    fn look_at_drain(&self, id: &ReservationId, process: &HolderProcess) -> bool {
        let snapshot = self.snapshot();
        let drains = snapshot.state.reservation(id).is_some_and(|record| {
            record.state == ReservationState::Draining && record.process.as_ref() == Some(process)
        });
        if !drains {
            return false;
        }
        let Ok(job) = Job::of(&snapshot, id) else { return true };
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
