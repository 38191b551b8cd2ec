//! What can be asked of the state: orders of users, outcomes of kernel work, facts of the host.

use crate::health::Health;
use crate::ids::{ContextId, DeviceId, DomainId, Epoch, GroupId, Holder, Label, ReservationId};
use crate::model::{Backend, Delivery, DriverDma, Hold, Policy, ResetOutcome, ResetPolicy};
use crate::record::{Flags, GroupFacts, HolderProcess, Sriov};

/// One group that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRequest {
    /// The group.
    pub group: GroupId,
    /// The devices that are to be claimed. Empty: every member but bridges and those that a
    /// reservation of the same domain or token has.
    pub devices: Vec<DeviceId>,
}

/// A reservation that is asked for. All its targets are granted, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// The id that the reservation gets.
    pub id: ReservationId,
    /// The id that its context gets, where one is made.
    pub new_context: ContextId,
    /// The id that its domain gets, where one is made.
    pub new_domain: DomainId,
    /// For whom.
    pub holder: Holder,
    /// Under which trust label.
    pub label: Label,
    /// The identity that asks.
    pub requester: String,
    /// The identity that may fetch.
    pub for_identity: String,
    /// How claims are made.
    pub policy: Policy,
    /// How the holder gets the devices.
    pub delivery: Delivery,
    /// The kernel interface.
    pub backend: Backend,
    /// What is wanted.
    pub targets: Vec<TargetRequest>,
    /// The domain that is presented (shared), or attached first (group).
    pub domain: Option<DomainId>,
    /// The reservation whose domain (shared) or token (group) is presented.
    pub join: Option<ReservationId>,
    /// How much memory the holder may pin.
    pub memory_bytes: u64,
    /// How long it lasts without being renewed.
    pub ttl_ms: Option<u64>,
    /// Flags.
    pub flags: Flags,
    /// What must come of the reset.
    pub reset_policy: ResetPolicy,
    /// Who holds the promise while nothing is attached.
    pub hold: Hold,
    /// Whether kernel work is needed before the reservation stands (drivers, the kernel's hold).
    /// Then it begins in `preparing` and needs [`Command::PrepareDone`].
    pub prepare: bool,
}

/// A process that has groups open, unknown to us, becomes the holder of a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopt {
    /// What is reserved for it: delivered by node, presenting nothing, taking nothing.
    pub request: Reserve,
    /// The process.
    pub process: HolderProcess,
}

/// How one device was given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReturn {
    /// The device.
    pub device: DeviceId,
    /// What came of its reset.
    pub reset: ResetOutcome,
    /// Whether it has its driver and override back.
    pub baseline_restored: bool,
    /// What there is to say.
    pub note: String,
}

/// An order for a reservation, under its epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The reservation.
    pub reservation: ReservationId,
    /// The epoch that the caller acts on. None: whatever it is now.
    pub epoch: Option<Epoch>,
}

impl Order {
    /// An order under the present epoch.
    pub fn new(reservation: impl Into<ReservationId>) -> Self {
        Self { reservation: reservation.into(), epoch: None }
    }

    /// An order under the given epoch.
    pub fn at(reservation: impl Into<ReservationId>, epoch: Epoch) -> Self {
        Self { reservation: reservation.into(), epoch: Some(epoch) }
    }
}

/// What SR-IOV of a physical function becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SriovTo {
    /// So many virtual functions, which host drivers are not offered.
    Vfs(u16),
    /// As it was before it was changed.
    Baseline,
}

/// A command. [`crate::State::decide`] answers each with events or a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The host was looked at: this is what a group is like.
    Observe(GroupFacts),
    /// The group is no longer there.
    GroupGone {
        /// The group.
        group: GroupId,
    },
    /// The device is no longer there. Reservations of it are lost.
    DeviceGone {
        /// The device.
        device: DeviceId,
    },
    /// A reservation is asked for.
    Reserve(Box<Reserve>),
    /// A foreign owner is to become a reservation's holder: what has to be asked of the kernel is
    /// the work of a hand-over, with [`Command::HandOverDone`] or [`Command::HandOverFailed`].
    Adopt(Box<Adopt>),
    /// The groups of a reservation are viable.
    PrepareDone {
        /// The reservation.
        reservation: ReservationId,
        /// Who holds the promise now.
        hold: Hold,
    },
    /// The groups of a reservation could not be made viable; what was done is undone as `returned` says.
    PrepareFailed {
        /// The reservation.
        reservation: ReservationId,
        /// Why.
        why: String,
        /// The devices that had been touched; the others are as they were.
        returned: Vec<DeviceReturn>,
    },
    /// Devices are to be attached (deliveries `held` and `bound`).
    Attach {
        /// Which reservation.
        order: Order,
        /// Under the group policy: another domain of the same context.
        domain: Option<DomainId>,
    },
    /// The devices are attached: the claims begin.
    AttachDone {
        /// The reservation.
        reservation: ReservationId,
    },
    /// Attaching failed and is undone.
    AttachFailed {
        /// The reservation.
        reservation: ReservationId,
        /// Why.
        why: String,
    },
    /// Devices are to be detached.
    Detach {
        /// Which reservation.
        order: Order,
    },
    /// The devices are detached.
    DetachDone {
        /// The reservation.
        reservation: ReservationId,
    },
    /// Detaching failed; everything is as it was.
    DetachFailed {
        /// The reservation.
        reservation: ReservationId,
        /// Why.
        why: String,
    },
    /// The domain is to be replaced, of whole groups.
    Replace {
        /// Which reservation.
        order: Order,
        /// By which domain of the same context.
        domain: DomainId,
    },
    /// The domain is replaced.
    ReplaceDone {
        /// The reservation.
        reservation: ReservationId,
    },
    /// Replacing failed; the old domain is still attached.
    ReplaceFailed {
        /// The reservation.
        reservation: ReservationId,
        /// Why.
        why: String,
    },
    /// Descriptors or nodes go to the holder: recorded before they do. With `unbound` and `node`
    /// groups have to be let go of first, unless the claims have begun; else the holder's process
    /// is recorded, and nothing has to be done.
    HandOver {
        /// Which reservation.
        order: Order,
        /// To which process.
        process: HolderProcess,
    },
    /// The groups are open to the holder: the claims begin.
    HandOverDone {
        /// The reservation.
        reservation: ReservationId,
    },
    /// They could not be opened to it, and are held as before.
    HandOverFailed {
        /// The reservation.
        reservation: ReservationId,
        /// Why.
        why: String,
    },
    /// Nothing reached the holder after all.
    HandOverUndone {
        /// The reservation.
        reservation: ReservationId,
    },
    /// The holder has bound its devices (or opened its nodes).
    BindSeen {
        /// The reservation.
        reservation: ReservationId,
        /// The holder as it is by now, where it can be looked at.
        process: Option<HolderProcess>,
    },
    /// The holder is dead and the kernel proves that nothing is open: the claims end.
    HolderGone {
        /// The reservation.
        reservation: ReservationId,
    },
    /// The holder is dead, but another process has the devices open.
    HolderMoved {
        /// The reservation.
        reservation: ReservationId,
        /// That process.
        process: HolderProcess,
    },
    /// The holder is dead, but a process that came of it has the devices open: that is the holder.
    HolderPassed {
        /// The reservation.
        reservation: ReservationId,
        /// That process.
        process: HolderProcess,
    },
    /// The lease begins anew.
    Renew {
        /// Which reservation.
        order: Order,
        /// A new length, or the old one.
        ttl_ms: Option<u64>,
    },
    /// The lease may have ended: see [`crate::State::due`].
    Expire {
        /// The reservation.
        reservation: ReservationId,
    },
    /// The reservation is given back.
    Release {
        /// Which reservation.
        order: Order,
        /// Without the holder's consent.
        force: bool,
    },
    /// The reservation is given back.
    ReleaseDone {
        /// The reservation.
        reservation: ReservationId,
        /// How each device was given back, those in `taken` included. One that is left out
        /// after it did DMA, or after its driver was changed, is quarantined.
        returned: Vec<DeviceReturn>,
    },
    /// Giving back failed; the claims stand.
    ReleaseFailed {
        /// The reservation.
        reservation: ReservationId,
        /// Why.
        why: String,
    },
    /// A released reservation need not be remembered any more.
    Forget {
        /// The reservation.
        reservation: ReservationId,
    },
    /// A host driver is to be bound on purpose.
    KernelDmaSet {
        /// The device.
        device: DeviceId,
        /// The driver, where one is named.
        driver: Option<String>,
    },
    /// A host driver is to be unbound on purpose.
    KernelDmaRelease {
        /// The device.
        device: DeviceId,
        /// Even where the host is using the device.
        host_uses_it_anyway: bool,
    },
    /// The host driver is bound or unbound.
    KernelDmaDone {
        /// The device.
        device: DeviceId,
        /// What its driver does with DMA now.
        dma: DriverDma,
    },
    /// Nothing changed.
    KernelDmaFailed {
        /// The device.
        device: DeviceId,
        /// Why.
        why: String,
    },
    /// SR-IOV of a physical function is to be changed. From one number of virtual functions to
    /// another the way leads over none.
    SriovSet {
        /// The physical function.
        device: DeviceId,
        /// What it becomes.
        to: SriovTo,
        /// What it is now.
        from: Sriov,
    },
    /// It is changed.
    SriovDone {
        /// The physical function.
        device: DeviceId,
        /// What it is now.
        now: Sriov,
        /// The virtual functions that are there.
        functions: Vec<DeviceId>,
    },
    /// It is not.
    SriovFailed {
        /// The physical function.
        device: DeviceId,
        /// Why.
        why: String,
        /// Whether it is as it was.
        undone: bool,
        /// The virtual functions that are there; none where that can't be told.
        functions: Option<Vec<DeviceId>>,
    },
    /// A context is made that no reservation needs yet.
    CreateContext {
        /// Its id.
        context: ContextId,
        /// Its trust label.
        label: Label,
        /// The policy of claims in it.
        policy: Policy,
        /// The kernel interface.
        backend: Backend,
    },
    /// A context without domains and reservations is to go.
    DeleteContext {
        /// Its id.
        context: ContextId,
    },
    /// A domain is made in a context.
    CreateDomain {
        /// Its id.
        domain: DomainId,
        /// In which context.
        context: ContextId,
    },
    /// A domain is to go.
    DeleteDomain {
        /// Its id.
        domain: DomainId,
    },
    /// New reservations are kept away.
    Cordon {
        /// The device.
        device: DeviceId,
        /// Why.
        why: String,
        /// For how long, in milliseconds; None: until they are let in again.
        ttl_ms: Option<u64>,
    },
    /// The time of a cordon may be over: see [`crate::State::due_cordons`].
    EndCordon {
        /// The device.
        device: DeviceId,
    },
    /// They are let in again.
    Uncordon {
        /// The device.
        device: DeviceId,
    },
    /// Kernel work on the device hangs.
    Wedge {
        /// The device.
        device: DeviceId,
        /// What hangs.
        why: String,
    },
    /// It came back.
    Unwedge {
        /// The device.
        device: DeviceId,
    },
    /// The machine was asked what stands against a device.
    Assess {
        /// The device.
        device: DeviceId,
        /// What it showed.
        health: Health,
    },
    /// The device is not clean.
    Quarantine {
        /// The device.
        device: DeviceId,
        /// Why.
        why: String,
    },
    /// An operator says that it is; any label may have it.
    ClearQuarantine {
        /// The device.
        device: DeviceId,
        /// Why.
        why: String,
    },
    /// The daemon restarted (or the host did): what it held is no longer attached.
    DetachedByRestart {
        /// The reservation.
        reservation: ReservationId,
        /// What happened: `daemon restarted`, `host rebooted`.
        why: String,
    },
    /// Somebody else took the group.
    HoldLost {
        /// The reservation.
        reservation: ReservationId,
        /// Who, and how.
        why: String,
    },
}
