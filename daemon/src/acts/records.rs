//! What kernel work needs of the ledger, without its async clothes.

use std::{fmt::Debug, sync::Arc};

use berth_host::PciAddress;
use berth_ownership::Command;
use berth_uapi::VfToken;

use crate::model::{ApiError, Baseline, Live, Outcome, Quotas, Snapshot, StepNote};

/// The ledger, as threads that do kernel work see it. Every call but `snapshot` blocks until what
/// it says is on disk.
pub trait Records: Send + Sync + Debug {
    /// What was published last.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// Records a step of an intent, before it is taken.
    ///
    /// # Errors
    /// The ledger's: then the step must not be taken.
    fn note(&self, intent: u64, step: StepNote) -> Result<(), ApiError>;

    /// Records what a device had, before it is first touched.
    ///
    /// # Errors
    /// The ledger's: then the device must not be touched.
    fn remember(&self, intent: u64, baseline: Baseline) -> Result<(), ApiError>;

    /// The secret that opens the virtual functions of a physical one: made and kept where there is
    /// none yet.
    ///
    /// # Errors
    /// The ledger's: then there is none to set.
    fn vf_token(&self, physical: PciAddress) -> Result<VfToken, ApiError>;

    /// Records how an intent ended, and what its devices are like now.
    ///
    /// # Errors
    /// The ledger's: then the intent stays open, and start-up looks at it.
    fn outcome(&self, intent: u64, outcome: Outcome) -> Result<(), ApiError>;

    /// Gives a command of the daemon's own.
    ///
    /// # Errors
    /// The refusal.
    fn command(&self, command: Command, cause: &str) -> Result<(), ApiError>;

    /// Gives a command of the daemon's own, and waits until the kernel work that it asks for has
    /// ended; false when it asks for none.
    ///
    /// # Errors
    /// The refusal, or why the work failed.
    fn carry_out(&self, command: Command, cause: &str) -> Result<bool, ApiError>;

    /// How much each may have.
    fn quotas(&self) -> Live<Quotas> {
        Live::default()
    }

    /// No work is done any more: who waits for some waits no longer.
    fn close(&self) {}

    /// Looks at the whole machine: devices came or went.
    ///
    /// # Errors
    /// The ledger's; what could not be read.
    fn look(&self, cause: &str) -> Result<(), ApiError>;

    /// Devices changed their driver without an intent: look at them again.
    ///
    /// # Errors
    /// The ledger's.
    fn changed(&self, devices: &[PciAddress]) -> Result<(), ApiError>;
}
