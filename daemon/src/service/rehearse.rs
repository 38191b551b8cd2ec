//! Dry runs: what a call would decide and write to sysfs, with nothing of it done.

use std::sync::Arc;

use berth_host::PciAddress;
use berth_ownership::Command;

use super::Service;
use crate::{
    acts::rehearsal::{Rehearsed, rehearse},
    ledger,
    model::ApiError,
};

/// What the real call looks at again before it is decided.
#[derive(Debug)]
pub(super) enum Look {
    /// Nothing.
    Nothing,
    /// Some devices.
    Devices(Vec<PciAddress>),
    /// All of the machine.
    Machine,
}

impl Service {
    /// What would come of a command. What is looked at again is so for this answer alone.
    ///
    /// # Errors
    /// The refusal, or why the kernel work would fail.
    pub(super) async fn rehearse(
        &self,
        look: Look,
        command: Command,
    ) -> Result<Rehearsed, ApiError> {
        let (host, ledger) = (Arc::clone(&self.host), self.ledger.clone());
        let tried = tokio::task::spawn_blocking(move || {
            let trial = ledger.trial()?;
            match look {
                Look::Nothing => {}
                Look::Devices(devices) => match ledger::look(&*host, &devices) {
                    Ok(looked) => trial.refresh(looked),
                    Err(error) => tracing::warn!(%error, "looking at devices for a dry run"),
                },
                Look::Machine => trial.observe(ledger.look_at_all()?),
            }
            rehearse(host, trial, &command).map_err(ApiError::from)
        });
        tried.await.map_err(|error| {
            ApiError::internal("dry run", format!("the dry run ended early: {error}"))
        })?
    }
}
