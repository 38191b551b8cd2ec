//! The ownership state machine: who may do DMA through an IOMMU group.
#![forbid(unsafe_code)]

mod apply;
mod command;
mod decide;
mod event;
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

pub use command::{Command, DeviceReturn, Order, Reserve, TargetRequest};
pub use decide::KernelDmaUse;
pub use event::{DeviceLeft, Event};
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
    Context, Device, DeviceFacts, Domain, Flags, Group, GroupFacts, HolderProcess, HostUse,
    KernelDmaOp, Pending, Reservation, Target,
};
pub use refusal::{Blocker, OwnerInfo, Refusal};
pub use state::{Parts, State};
pub use table::{Cell, Operation, OwnershipRow, Table};
