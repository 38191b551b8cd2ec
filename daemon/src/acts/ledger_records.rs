//! [`Records`] over the ledger.

use std::sync::Arc;

use berth_host::PciAddress;
use berth_ownership::Command;
use berth_uapi::VfToken;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::records::Records;
use crate::{
    ledger::LedgerHandle,
    model::{ApiError, Baseline, Live, Meta, Outcome, Quotas, Snapshot, StepNote},
};

/// The ledger for threads that do kernel work.
#[derive(Debug)]
pub struct LedgerRecords {
    ledger: LedgerHandle,
    handle: Handle,
    /// Nobody does any work any more.
    closed: CancellationToken,
}

impl LedgerRecords {
    /// The records of a ledger. Must be called within its runtime.
    #[must_use]
    pub fn new(ledger: LedgerHandle) -> Self {
        Self { ledger, handle: Handle::current(), closed: CancellationToken::new() }
    }
}

impl Records for LedgerRecords {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.ledger.snapshot()
    }

    fn note(&self, intent: u64, step: StepNote) -> Result<(), ApiError> {
        self.ledger.note_blocking(intent, step)
    }

    fn remember(&self, intent: u64, baseline: Baseline) -> Result<(), ApiError> {
        self.ledger.record_baselines_blocking(intent, vec![baseline])
    }

    fn vf_token(&self, physical: PciAddress) -> Result<VfToken, ApiError> {
        self.ledger.vf_token_blocking(physical)
    }

    fn outcome(&self, intent: u64, outcome: Outcome) -> Result<(), ApiError> {
        self.ledger.outcome_blocking(intent, outcome, Meta::internal("acts")).map(drop)
    }

    fn command(&self, command: Command, cause: &str) -> Result<(), ApiError> {
        self.ledger.submit_blocking(command, Meta::internal(cause)).map(drop)
    }

    fn carry_out(&self, command: Command, cause: &str) -> Result<bool, ApiError> {
        let applied = self.ledger.submit_blocking(command, Meta::internal(cause))?;
        let Some(completion) = applied.completion else { return Ok(false) };
        let ended = self.handle.block_on(async {
            tokio::select! {
                ended = completion => ended.ok(),
                () = self.closed.cancelled() => None,
            }
        });
        let stopped = || ApiError::unavailable("ledger", "berthd stops; ask again after its start");
        let ended = ended.ok_or_else(stopped)?;
        ended.failure.map_or(Ok(true), |failure| Err(ApiError::Refused(failure)))
    }

    fn close(&self) {
        self.closed.cancel();
    }

    fn look(&self, cause: &str) -> Result<(), ApiError> {
        self.handle.block_on(self.ledger.rescan(Meta::internal(cause))).map(drop)
    }

    fn quotas(&self) -> Live<Quotas> {
        self.ledger.quotas().clone()
    }

    fn changed(&self, devices: &[PciAddress]) -> Result<(), ApiError> {
        if devices.is_empty() {
            return Ok(());
        }
        let refreshed = self.ledger.refresh(devices.to_vec(), Meta::internal("acts"));
        self.handle.block_on(refreshed).map(drop)
    }
}
