//! The ownership state machine: who may do DMA through an IOMMU group.
//!
//! It is pure: no I/O, no clock, no randomness, no async. [`State::decide`] answers a [`Command`]
//! with [`Event`]s or a [`Refusal`]; [`State::apply`] takes an event, in any state, without fail.
//! Ids and times are handed in. What the answers are stands in [`Table`], as data, and in
//! `docs/ownership.md`, which is made of it.
//!
//! Three axes, never mixed. *Ownership* belongs to a group:
//!
//! ```text
//!             host driver bound                    attach exclusive
//!   kernel(n) <---------------+         +------------------------------> exclusive
//!   private   ---------------> \       / <------------------------------
//!             host driver gone  \     /    detach, release, holder gone
//!                                free
//!             a process outside /  |  \    attach shared     join, leave
//!   foreign   <----------------+   |   +-------------------> shared(n) --+
//!             ----------------->   |   <-------------------- ^           |
//!                                  |        last leaves      +-----------+
//!                 attach by token  |  ^ release: last of the token
//!                                  v  |
//!                       group(token, n) attached <---> DMA blocked
//!                            |  ^           detach / attach
//!                            +--+ replace
//! ```
//!
//! *Reservation* belongs to a promise. Kernel work is in two steps, intent and outcome: while an
//! operation is under way ([`Pending`]) other orders for the same reservation are refused.
//!
//! ```text
//!   preparing --> reserved --hand over--> handed --bind seen--> held
//!       |          |  ^  ^                  |                   | |
//!       |          |  |  +---- undone ------+   attach (intent, | | lease ends
//!       |          |  +------------- outcome), detach ----------+ |
//!       | failed   | lease ends                                   v
//!       +--------> released <---- release by force --------- expired --renew--> as before
//!                     ^                                        |
//!                     +---- release --- draining <--- another process has it open
//!
//!   any of them --a device or the hold is gone--> lost --release--> released
//! ```
//!
//! A reservation that holds blocks others; only one with claims counts in `owner_cnt`.
//!
//! *Condition* belongs to a device, and a group has the worst of its members': ok, degraded, failed,
//! cordoned, wedged, quarantined. It says whether anything new may begin.
#![forbid(unsafe_code)]

mod apply;
mod command;
mod decide;
mod event;
mod health;
mod ids;
pub mod invariants;
mod model;
mod policy;
mod reason;
mod record;
mod refusal;
mod state;
pub mod table;
#[cfg(test)]
mod tests;

pub use command::{Adopt, Command, DeviceReturn, Order, Reserve, SriovTo, TargetRequest};
pub use decide::{KernelDmaUse, ResetHit};
pub use event::{DeviceLeft, Event};
pub use health::{Cause, CauseCode, Counted, Errors, Health};
pub use ids::{
    BootId, ContextId, DeviceId, DomainId, Epoch, Expiry, GroupId, Holder, Label, ReservationId,
    Time, UnixMs,
};
pub use model::{
    Backend, Condition, Delivery, DriverDma, Hold, OperationKind, Ownership, Policy,
    ReservationState, ResetOutcome, ResetPolicy,
};
pub use reason::{Errno, ExitCode, GrpcCode, Reason, ReasonRow};
pub use record::{
    Context, CordonTerm, Device, DeviceFacts, Domain, Flags, ForeignProcess, Group, GroupFacts,
    HolderProcess, HostUse, KernelDmaOp, Pending, Reservation, Sriov, SriovBaseline, SriovOp,
    Target, UNSEEN, name_foreign,
};
pub use refusal::{Blocker, OwnerInfo, Refusal};
pub use state::{Parts, State};
pub use table::{Cell, Operation, OwnershipRow, Table};
