//! Kernel work: intents that the ledger has committed become ioctls and writes to sysfs.
//!
//! ```text
//! intent -> scheduler (waits for earlier work on the same reset set or context)
//!        -> prepare | attach | detach | replace | hand over | release | kernel DMA | SR-IOV
//!             each irreversible step is noted first; a failure undoes what was done
//!        -> outcome -> ledger
//! ```
//!
//! What is open (holds, contexts, devices) lives in one table; its lock is never held over work
//! that can hang. After a crash the kernel closes all of it, and `reconcile` starts again from the
//! record.

mod access;
mod adopt;
pub(crate) mod adopt_holder;
mod again;
pub(crate) mod attach;
mod binding;
pub(crate) mod dispatch;
mod domain;
mod draining;
mod drivers;
pub(crate) mod engine;
mod entries;
pub(crate) mod explain_errno;
pub(crate) mod fetch;
pub(crate) mod hand_over;
mod handed;
pub(crate) mod holder;
mod insist;
pub(crate) mod job;
mod keep;
mod kernel_dma;
pub(crate) mod kin;
mod latency;
mod ledger_records;
pub(crate) mod memlock;
pub(crate) mod memory;
mod prepare;
mod proof;
mod records;
pub(crate) mod rehearsal;
mod release;
mod removal;
pub(crate) mod revoke;
pub(crate) mod runtime;
mod scheduler;
pub(crate) mod sriov;
pub(crate) mod tools;
pub(crate) mod vf_token;
mod watchdog;
pub(crate) mod watched;

pub use engine::{Census, Engine, EngineConfig};
pub use ledger_records::LedgerRecords;
pub use records::Records;
