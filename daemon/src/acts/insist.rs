//! What happened in the kernel has happened, also while the store can't be written: it is recorded
//! as soon as the store takes it again.

use std::time::Duration;

use super::engine::Engine;
use crate::model::{ApiError, Outcome};

/// Before the second try; doubled up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(50);

/// Between two tries at most, so that a disk that has room again heals within it.
const LONGEST: Duration = Duration::from_secs(5);

impl Engine {
    /// Records the outcome of an intent, however long the store takes. What touches the same
    /// devices waits meanwhile, as the record isn't what they are; nothing else does.
    pub(super) fn record_outcome(&self, intent: u64, outcome: &Outcome) -> Result<(), ApiError> {
        let record = || self.tools().records.outcome(intent, outcome.clone());
        let waits = || {
            // It is the store that is late, not the devices; and the thread is idle.
            self.inner.watchdog.acted(intent);
            if let Some(ticket) = self.inner.watchdog.ticket(intent) {
                self.inner.scheduler.give_up(ticket);
            }
        };
        self.insist(&format!("the outcome of intent {intent}"), record, waits)
    }

    /// Gives the commands that waited for an outcome.
    pub(crate) fn follow_up(&self) {
        for command in self.tools().waiting() {
            let record = || self.tools().records.command(command.clone(), "acts");
            // Refused for a reservation that has ended, or has a device open and needs no hold.
            if let Err(error) = self.insist("what followed from kernel work", record, || ()) {
                tracing::warn!(%error, "what followed from kernel work was not taken");
            }
        }
    }

    /// Repeats a record until the ledger takes it or refuses it, or the engine is closed. Called on
    /// the engine's own threads.
    pub(super) fn insist(
        &self,
        what: &str,
        mut record: impl FnMut() -> Result<(), ApiError>,
        waits: impl Fn(),
    ) -> Result<(), ApiError> {
        let mut pause = FIRST;
        loop {
            let error = match record() {
                Err(error) if error.is_passing() => error,
                answer => return answer,
            };
            tracing::error!(what, %error, ?pause, "not recorded yet, tried again");
            waits();
            if !self.inner.scheduler.pause(pause) {
                return Err(error);
            }
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Waits a moment, on one of the engine's own threads; false when the engine is closed.
    pub(crate) fn moment(&self) -> bool {
        self.inner.scheduler.pause(LONGEST)
    }
}
