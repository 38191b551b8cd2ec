//! What happened. Events are stored as JSON: their names and fields stay as they are.

use serde::{Deserialize, Serialize};

use crate::health::Health;
use crate::ids::{ContextId, DeviceId, DomainId, Epoch, Expiry, GroupId, Label, ReservationId};
use crate::model::{Condition, DriverDma, Hold};
use crate::record::{
    Context, CordonTerm, Domain, GroupFacts, HolderProcess, KernelDmaOp, Pending, Reservation,
    Sriov, SriovBaseline, SriovOp,
};

/// How one device was left when its reservation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLeft {
    /// The device.
    pub device: DeviceId,
    /// Why it is quarantined, if it is.
    pub quarantined: Option<String>,
    /// The only label that may have it, if any.
    pub only_label: Option<Label>,
    /// What came of the reset, in words.
    pub note: String,
    /// And whether it worked, where one was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_worked: Option<bool>,
}

/// One change. [`crate::State::apply`] takes every event in every state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// A group is there, or is otherwise than before.
    GroupObserved {
        /// What the host says of it.
        facts: GroupFacts,
    },
    /// A group is gone.
    GroupGone {
        /// The group.
        group: GroupId,
    },
    /// A device is gone.
    DeviceGone {
        /// The device.
        device: DeviceId,
    },
    /// A context was made.
    ContextCreated {
        /// It.
        context: Context,
    },
    /// A context went.
    ContextDeleted {
        /// Its id.
        context: ContextId,
    },
    /// A domain was made.
    DomainCreated {
        /// It.
        domain: Domain,
    },
    /// A domain went.
    DomainDeleted {
        /// Its id.
        domain: DomainId,
    },
    /// A reservation was granted.
    Reserved {
        /// It.
        reservation: Box<Reservation>,
    },
    /// Kernel work began: the intent.
    Started {
        /// For which reservation.
        reservation: ReservationId,
        /// What.
        pending: Pending,
    },
    /// Kernel work failed: nothing changed.
    Failed {
        /// For which reservation.
        reservation: ReservationId,
        /// Why.
        why: String,
    },
    /// The groups are viable and held.
    Prepared {
        /// The reservation.
        reservation: ReservationId,
        /// Who holds the promise.
        hold: Hold,
    },
    /// The devices are attached.
    Attached {
        /// The reservation.
        reservation: ReservationId,
        /// To which domain.
        domain: DomainId,
    },
    /// The devices are detached.
    Detached {
        /// The reservation.
        reservation: ReservationId,
    },
    /// The domain was replaced.
    Replaced {
        /// The reservation.
        reservation: ReservationId,
        /// By which domain.
        domain: DomainId,
    },
    /// Descriptors or nodes went to the holder.
    Handed {
        /// The reservation.
        reservation: ReservationId,
        /// To which process.
        process: HolderProcess,
    },
    /// They did not after all.
    HandOverUndone {
        /// The reservation.
        reservation: ReservationId,
    },
    /// The holder has bound them.
    BindSeen {
        /// The reservation.
        reservation: ReservationId,
        /// The holder as it is by now, where it could be looked at.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<HolderProcess>,
    },
    /// The holder is gone, and its claims with it.
    HolderGone {
        /// The reservation.
        reservation: ReservationId,
        /// When the lease ends, if it has one.
        expires: Option<Expiry>,
    },
    /// The holder is dead, but another process has the devices open.
    HolderMoved {
        /// The reservation.
        reservation: ReservationId,
        /// That process.
        process: HolderProcess,
    },
    /// The holder is dead, and a process that came of it is the holder now.
    HolderPassed {
        /// The reservation.
        reservation: ReservationId,
        /// That process.
        process: HolderProcess,
    },
    /// The lease was renewed.
    Renewed {
        /// The reservation.
        reservation: ReservationId,
        /// Its length.
        ttl_ms: Option<u64>,
        /// When it ends.
        expires: Option<Expiry>,
    },
    /// The lease ended while claims stand.
    Expired {
        /// The reservation.
        reservation: ReservationId,
    },
    /// The reservation ended.
    Released {
        /// The reservation.
        reservation: ReservationId,
        /// How each device was left.
        devices: Vec<DeviceLeft>,
        /// Why it ended.
        detail: String,
    },
    /// A released reservation is no longer remembered.
    Forgotten {
        /// The reservation.
        reservation: ReservationId,
    },
    /// A host driver is being bound or unbound on purpose: the intent.
    KernelDmaStarted {
        /// The device.
        device: DeviceId,
        /// Which of the two.
        op: KernelDmaOp,
    },
    /// The driver of a device changed on purpose.
    KernelDmaChanged {
        /// The device.
        device: DeviceId,
        /// What its driver does with DMA now.
        dma: DriverDma,
    },
    /// It did not.
    KernelDmaFailed {
        /// The device.
        device: DeviceId,
        /// Why.
        why: String,
    },
    /// SR-IOV of a physical function is being changed: the intent.
    SriovStarted {
        /// The physical function.
        device: DeviceId,
        /// From what to what.
        op: SriovOp,
        /// What it was before it was first changed.
        baseline: SriovBaseline,
    },
    /// It was changed.
    SriovChanged {
        /// The physical function.
        device: DeviceId,
        /// What it is now.
        now: Sriov,
    },
    /// It was not.
    SriovFailed {
        /// The physical function.
        device: DeviceId,
        /// Why.
        why: String,
        /// Whether it is as it was.
        undone: bool,
    },
    /// Something stands against a device.
    Marked {
        /// The device.
        device: DeviceId,
        /// What.
        condition: Condition,
        /// Why.
        why: String,
        /// When a cordon ends by itself, if it does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        term: Option<CordonTerm>,
    },
    /// It no longer does.
    Unmarked {
        /// The device.
        device: DeviceId,
        /// What.
        condition: Condition,
        /// Why.
        why: String,
    },
    /// The machine shows something else against a device than before.
    Assessed {
        /// The device.
        device: DeviceId,
        /// What.
        health: Health,
    },
    /// The attachments ended as the daemon or the host restarted.
    DetachedByRestart {
        /// The reservation.
        reservation: ReservationId,
        /// What happened.
        why: String,
        /// When the lease ends on this boot, if it has one.
        expires: Option<Expiry>,
    },
    /// The reservation lost its groups.
    HoldLost {
        /// The reservation.
        reservation: ReservationId,
        /// How.
        why: String,
    },
    /// No epoch below this is given again.
    EpochRaised {
        /// The lowest epoch from now on.
        floor: Epoch,
    },
}

impl Event {
    /// The name under which it is stored.
    pub fn name(&self) -> &'static str {
        match self {
            Self::GroupObserved { .. } => "group_observed",
            Self::GroupGone { .. } => "group_gone",
            Self::DeviceGone { .. } => "device_gone",
            Self::ContextCreated { .. } => "context_created",
            Self::ContextDeleted { .. } => "context_deleted",
            Self::DomainCreated { .. } => "domain_created",
            Self::DomainDeleted { .. } => "domain_deleted",
            Self::Reserved { .. } => "reserved",
            Self::Started { .. } => "started",
            Self::Failed { .. } => "failed",
            Self::Prepared { .. } => "prepared",
            Self::Attached { .. } => "attached",
            Self::Detached { .. } => "detached",
            Self::Replaced { .. } => "replaced",
            Self::Handed { .. } => "handed",
            Self::HandOverUndone { .. } => "hand_over_undone",
            Self::BindSeen { .. } => "bind_seen",
            Self::HolderGone { .. } => "holder_gone",
            Self::HolderMoved { .. } => "holder_moved",
            Self::HolderPassed { .. } => "holder_passed",
            Self::Renewed { .. } => "renewed",
            Self::Expired { .. } => "expired",
            Self::Released { .. } => "released",
            Self::Forgotten { .. } => "forgotten",
            Self::KernelDmaStarted { .. } => "kernel_dma_started",
            Self::KernelDmaChanged { .. } => "kernel_dma_changed",
            Self::KernelDmaFailed { .. } => "kernel_dma_failed",
            Self::SriovStarted { .. } => "sriov_started",
            Self::SriovChanged { .. } => "sriov_changed",
            Self::SriovFailed { .. } => "sriov_failed",
            Self::Marked { .. } => "marked",
            Self::Unmarked { .. } => "unmarked",
            Self::Assessed { .. } => "condition",
            Self::DetachedByRestart { .. } => "detached_by_restart",
            Self::HoldLost { .. } => "hold_lost",
            Self::EpochRaised { .. } => "epoch_raised",
        }
    }

    /// The reservation that it is about.
    pub fn reservation(&self) -> Option<&ReservationId> {
        match self {
            Self::Reserved { reservation } => Some(&reservation.id),
            Self::Started { reservation, .. }
            | Self::Failed { reservation, .. }
            | Self::Prepared { reservation, .. }
            | Self::Attached { reservation, .. }
            | Self::Detached { reservation }
            | Self::Replaced { reservation, .. }
            | Self::Handed { reservation, .. }
            | Self::HandOverUndone { reservation }
            | Self::BindSeen { reservation, .. }
            | Self::HolderGone { reservation, .. }
            | Self::HolderMoved { reservation, .. }
            | Self::HolderPassed { reservation, .. }
            | Self::Renewed { reservation, .. }
            | Self::Expired { reservation }
            | Self::Released { reservation, .. }
            | Self::Forgotten { reservation }
            | Self::DetachedByRestart { reservation, .. }
            | Self::HoldLost { reservation, .. } => Some(reservation),
            Self::GroupObserved { .. }
            | Self::GroupGone { .. }
            | Self::DeviceGone { .. }
            | Self::ContextCreated { .. }
            | Self::ContextDeleted { .. }
            | Self::DomainCreated { .. }
            | Self::DomainDeleted { .. }
            | Self::KernelDmaStarted { .. }
            | Self::KernelDmaChanged { .. }
            | Self::KernelDmaFailed { .. }
            | Self::SriovStarted { .. }
            | Self::SriovChanged { .. }
            | Self::SriovFailed { .. }
            | Self::Marked { .. }
            | Self::Unmarked { .. }
            | Self::Assessed { .. }
            | Self::EpochRaised { .. } => None,
        }
    }
}
