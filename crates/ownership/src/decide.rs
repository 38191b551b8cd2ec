//! Decisions.
use crate::{Command, Event, Reason, Refusal, State, Time};

impl State {
    /// Decides a command: events to record and apply, or a refusal.
    ///
    /// # Errors
    ///
    /// A [`Refusal`]: why, who stands in the way, what would resolve it.
    pub fn decide(&self, cmd: &Command, now: &Time) -> Result<Vec<Event>, Box<Refusal>> {
        let _ = (cmd, now);
        Err(Refusal::new(Reason::Unavailable, "decide", "decisions are not built yet"))
    }
}
