//! Kernel work: recorded intents, the steps within them, and their outcomes.

use std::{fmt::Debug, sync::Arc};

use berth_host::{IovaRange, PciAddress};
use berth_ownership::{
    Command, DeviceId, DomainId, Event, Refusal, ReservationId, ResetOutcome, SriovOp,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{DmaLatencies, Snapshot};

/// What kind of kernel work an intent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentKind {
    /// Make groups viable and take the hold.
    Prepare,
    /// Bind and attach.
    Attach,
    /// Detach.
    Detach,
    /// Attach to another domain.
    Replace,
    /// Let go of groups, and open them to a holder that attaches by itself.
    HandOver,
    /// End claims, reset, restore the baseline, drop the hold.
    Release,
    /// Bind a host driver.
    KernelDmaSet,
    /// Unbind a host driver.
    KernelDmaRelease,
    /// Make virtual functions, or take them away.
    Sriov,
}

impl IntentKind {
    /// The name, as in the store.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Replace => "replace",
            Self::HandOver => "hand_over",
            Self::Release => "release",
            Self::KernelDmaSet => "kernel_dma_set",
            Self::KernelDmaRelease => "kernel_dma_release",
            Self::Sriov => "sriov",
        }
    }
}

/// What an intent needs beside the reservation's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum IntentBody {
    /// The reservation's record says it all: targets, `taken`, back end, flags.
    Prepare,
    /// Attach the reservation's devices.
    Attach {
        /// The domain to attach; `None` is the reservation's own.
        domain: Option<DomainId>,
    },
    /// Detach the reservation's devices.
    Detach,
    /// Attach the reservation's groups to another domain of its context.
    Replace {
        /// The new domain.
        domain: DomainId,
    },
    /// Let go of the reservation's groups, and open them to its holder. What is under way in the
    /// reservation's record says to which process.
    HandOver,
    /// Give the reservation's devices back.
    Release {
        /// Without the holder's consent.
        force: bool,
        /// Why: `request`, `lease ended`.
        cause: String,
    },
    /// Bind a host driver on purpose.
    KernelDmaSet {
        /// The device.
        device: DeviceId,
        /// The driver; `None` asks for the baseline's, else the kernel's choice.
        driver: Option<String>,
    },
    /// Unbind a host driver on purpose.
    KernelDmaRelease {
        /// The device.
        device: DeviceId,
    },
    /// Make virtual functions, or take them away.
    Sriov {
        /// The physical function.
        device: DeviceId,
        /// From what to what.
        op: SriovOp,
    },
}

impl IntentBody {
    /// The kind.
    #[must_use]
    pub fn kind(&self) -> IntentKind {
        match self {
            Self::Prepare => IntentKind::Prepare,
            Self::Attach { .. } => IntentKind::Attach,
            Self::Detach => IntentKind::Detach,
            Self::Replace { .. } => IntentKind::Replace,
            Self::HandOver => IntentKind::HandOver,
            Self::Release { .. } => IntentKind::Release,
            Self::KernelDmaSet { .. } => IntentKind::KernelDmaSet,
            Self::KernelDmaRelease { .. } => IntentKind::KernelDmaRelease,
            Self::Sriov { .. } => IntentKind::Sriov,
        }
    }

    /// The device of an intent that is for no reservation.
    #[must_use]
    pub fn device(&self) -> Option<&DeviceId> {
        match self {
            Self::KernelDmaSet { device, .. }
            | Self::KernelDmaRelease { device }
            | Self::Sriov { device, .. } => Some(device),
            Self::Prepare
            | Self::Attach { .. }
            | Self::Detach
            | Self::Replace { .. }
            | Self::HandOver
            | Self::Release { .. } => None,
        }
    }
}

/// Kernel work that is recorded and not yet done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Unique in the store's life; grows.
    pub id: u64,
    /// The reservation that it is for; those for a device alone have none.
    pub reservation: Option<ReservationId>,
    /// What kind.
    pub kind: IntentKind,
    /// What to do.
    pub body: IntentBody,
}

/// A durable note that a step of an intent is about to be taken or was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepNote {
    /// The step: `hold dropped`, `unbind`.
    pub step: String,
    /// The device or group, and what there is to know.
    pub detail: String,
}

/// An intent without an outcome, as found at start, with the steps that were noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenIntent {
    /// The intent.
    pub intent: Intent,
    /// Its steps, oldest first.
    pub steps: Vec<StepNote>,
    /// The boot that it was recorded on.
    pub boot_id: String,
}

/// Does the kernel work.
pub trait Executor: Send + Sync + Debug {
    /// Takes an intent that is committed. Returns at once; the outcome goes to the ledger.
    fn submit(&self, intent: Intent, snapshot: Arc<Snapshot>);

    /// Devices went: what is open of them is to be closed. Returns at once.
    fn gone(&self, devices: &[Gone]) {
        let _ = devices;
    }

    /// What the daemon sees of a domain now; `None` when it isn't open here.
    fn domain(&self, domain: &DomainId) -> Option<DomainNow> {
        let _ = domain;
        None
    }

    /// How many mappings of client memory each reservation has here.
    fn dma_entries(&self) -> Vec<(ReservationId, u64)> {
        Vec::new()
    }

    /// How long mapping and unmapping took since the start; `None` where nothing maps here.
    fn dma_latencies(&self) -> Option<DmaLatencies> {
        None
    }
}

/// A device that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// It.
    pub device: PciAddress,
    /// The kernel's number of its group, where no other device is left in that.
    pub group: Option<u32>,
}

/// What the daemon sees of a domain that it has open.
#[derive(Debug, Clone, Default)]
pub struct DomainNow {
    /// Permitted ranges.
    pub ranges: Vec<IovaRange>,
    /// Mapped now, by the daemon for its clients.
    pub mapped_bytes: u64,
    /// In how many mappings.
    pub mappings: u64,
    /// Pinned in the daemon's name.
    pub pinned_bytes: u64,
    /// How long mapping and unmapping took since the domain was opened or taken over.
    pub latencies: DmaLatencies,
}

/// Driver and override that a device had before it was touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// The device.
    pub device: DeviceId,
    /// The driver; `None` is none.
    pub driver: Option<String>,
    /// The override; `None` is unset.
    pub driver_override: Option<String>,
}

/// How one device was given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenBack {
    /// The device.
    pub device: DeviceId,
    /// What came of its reset.
    pub reset: ResetOutcome,
    /// The method that was used; empty when none was.
    pub reset_method: String,
    /// Whether it has its driver and override back.
    pub baseline_restored: bool,
    /// The driver now; empty when none.
    pub driver: String,
    /// What there is to say.
    pub note: String,
}

/// How an intent ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The outcome as a command: `PrepareDone`, `AttachFailed`, …
    pub command: Command,
    /// Why it failed; the waiting caller gets it, and the record keeps it.
    pub failure: Option<Box<Refusal>>,
    /// How devices were given back.
    pub given_back: Vec<GivenBack>,
    /// Devices whose baseline is restored: it is forgotten.
    pub restored: Vec<DeviceId>,
}

impl Outcome {
    /// A success.
    #[must_use]
    pub fn done(command: Command) -> Self {
        Self { command, failure: None, given_back: Vec::new(), restored: Vec::new() }
    }

    /// A failure.
    #[must_use]
    pub fn failed(command: Command, failure: Box<Refusal>) -> Self {
        Self { command, failure: Some(failure), given_back: Vec::new(), restored: Vec::new() }
    }
}

/// What the answer to a call is about, so that a repeated call can be given the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "of", content = "id")]
pub enum AnswerOf {
    /// The reservation's record.
    Reservation(ReservationId),
    /// The device's kernel DMA.
    KernelDma(DeviceId),
    /// The device's SR-IOV.
    Sriov(DeviceId),
    /// The device.
    Device(DeviceId),
    /// The domain.
    Domain(DomainId),
    /// Nothing but that it was done.
    Nothing,
}

/// A caller's request id with the hash of what was asked under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId {
    /// The id.
    pub id: String,
    /// A hash of the call's name and body.
    pub body: [u8; 32],
    /// What the answer is about.
    pub answer: AnswerOf,
}

/// What goes into each event beside the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Who asked: `uid:0`, `berthd`.
    pub actor: String,
    /// What led to it: the call's name, `reconcile`, `expiry`, `uevent`.
    pub cause: String,
    /// The caller's request id.
    pub request_id: Option<RequestId>,
    /// Whose quotas count; the daemon's own doing has none.
    pub payer: Option<super::Payer>,
}

impl Meta {
    /// The daemon's own doing.
    #[must_use]
    pub fn internal(cause: impl Into<String>) -> Self {
        Self { actor: "berthd".to_owned(), cause: cause.into(), request_id: None, payer: None }
    }
}

/// A command that is committed, or the stored answer to a repeated one.
#[derive(Debug)]
pub struct Applied {
    /// The sequence number of its last event; of the last event before it where it changed nothing.
    pub seq: u64,
    /// What was published with it.
    pub snapshot: Arc<Snapshot>,
    /// What happened. Empty for a repeated call.
    pub events: Vec<Event>,
    /// Answers when the kernel work that it asked for has ended; `None` when it asked for none.
    pub completion: Option<oneshot::Receiver<Completion>>,
    /// What the answer is about, where the call had a request id: for a repeated call, the object
    /// of the first one.
    pub about: Option<AnswerOf>,
    /// The stored answer of a repeated call, proto3 JSON.
    pub replayed: Option<Result<String, Box<Refusal>>>,
}

/// The end of the kernel work that a command asked for.
#[derive(Debug, Clone)]
pub struct Completion {
    /// What was published with the outcome.
    pub snapshot: Arc<Snapshot>,
    /// Why it failed.
    pub failure: Option<Box<Refusal>>,
    /// The stored answer, proto3 JSON, where the call had a request id.
    pub answer: Option<String>,
}
