//! A dry run: the command is decided on a copy of the record, and the very act that would do its
//! kernel work runs on a host that notes the writes to sysfs and makes none of them.
//!
//! So what is told can't be otherwise than what is done, as long as the kernel takes each write.

use std::sync::Arc;

use berth_host::{Host, PciAddress, ProcessUse, SysfsWrite, rehearsal::Rehearsal};
use berth_ownership::{Command, Event, Refusal};
use berth_uapi::VfToken;
use tracing::subscriber::{NoSubscriber, with_default};

use super::{dispatch, records::Records, runtime::Runtime, tools::Tools};
use crate::{
    fdstore::Keeper,
    ledger::{Trial, Tried},
    model::{ApiError, Baseline, Outcome, Snapshot, StepNote},
};

/// What a command would come to.
#[derive(Debug)]
pub(crate) struct Rehearsed {
    /// What it would lead to at first.
    pub(crate) events: Vec<Event>,
    /// What would be published before, with what was looked at again.
    pub(crate) before: Arc<Snapshot>,
    /// What its kernel work would write to sysfs.
    pub(crate) writes: Vec<SysfsWrite>,
    /// Whom it would kill, as they have its devices open.
    pub(crate) kills: Vec<ProcessUse>,
}

/// Decides a command and rehearses its kernel work. Blocks.
///
/// # Errors
/// The refusal, or why the kernel work would fail, as the real call would be told.
pub(crate) fn rehearse(
    host: Arc<dyn Host>,
    trial: Trial,
    command: &Command,
) -> Result<Rehearsed, Box<Refusal>> {
    let before = trial.snapshot();
    let Tried { events, intent } = trial.decide(command)?;
    let decided = trial.snapshot();
    let done = |writes, kills| Rehearsed { events, before, writes, kills };
    let Some(intent) = intent else { return Ok(done(Vec::new(), Vec::new())) };
    let rehearsal = Arc::new(Rehearsal::on(host));
    let tools = Tools {
        host: Arc::clone(&rehearsal) as Arc<dyn Host>,
        records: Arc::new(trial),
        runtime: Runtime::default(),
        after: Default::default(),
        keeper: Arc::new(Keeper::new(None)),
    };
    // What an act logs is about what it did.
    let act = || dispatch::act(&tools, &intent, &decided);
    match with_default(NoSubscriber::default(), act).failure {
        Some(refusal) => Err(refusal),
        None => Ok(done(rehearsal.writes(), rehearsal.killed())),
    }
}

/// A copy of the record takes what an act notes, and forgets it with itself.
impl Records for Trial {
    fn snapshot(&self) -> Arc<Snapshot> {
        Self::snapshot(self)
    }

    fn note(&self, intent: u64, step: StepNote) -> Result<(), ApiError> {
        Self::note(self, intent, step)
    }

    fn remember(&self, intent: u64, baseline: Baseline) -> Result<(), ApiError> {
        Self::remember(self, intent, baseline)
    }

    fn vf_token(&self, _physical: PciAddress) -> Result<VfToken, ApiError> {
        Ok(Self::vf_token())
    }

    fn outcome(&self, _intent: u64, _outcome: Outcome) -> Result<(), ApiError> {
        Ok(())
    }

    fn command(&self, command: Command, _cause: &str) -> Result<(), ApiError> {
        self.decide(&command).map(drop).map_err(ApiError::from)
    }

    fn carry_out(&self, command: Command, cause: &str) -> Result<bool, ApiError> {
        self.command(command, cause).map(|()| false)
    }

    fn look(&self, _cause: &str) -> Result<(), ApiError> {
        Ok(())
    }

    fn changed(&self, _devices: &[PciAddress]) -> Result<(), ApiError> {
        Ok(())
    }
}
