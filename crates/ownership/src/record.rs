//! The records that a state consists of. They can be read anywhere and made only here.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::health::Health;
use crate::ids::{
    BootId, ContextId, DeviceId, DomainId, Epoch, Expiry, GroupId, Holder, Label, ReservationId,
    UnixMs,
};
use crate::model::{
    Backend, Condition, Delivery, DriverDma, Hold, OperationKind, Ownership, Policy,
    ReservationState, ResetPolicy,
};

/// One thing that the host does with a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostUse {
    /// mount, swap, md, route, bond, console, …
    pub kind: String,
    /// The mount point, the route, the name of the array.
    pub what: String,
}

/// What the host says of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// The device.
    pub id: DeviceId,
    /// Whether it is a bridge. A bridge counts as a member and is never reserved by itself.
    pub bridge: bool,
    /// What its driver does with DMA.
    pub dma: DriverDma,
    /// Which driver alone may have it, if that is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_override: Option<String>,
    /// Whether its driver attached a domain of its own.
    pub private_domain: bool,
    /// What the host does with it.
    pub uses: Vec<HostUse>,
    /// The processes that use it, for refusals: `qemu (1234)`.
    pub processes: Vec<String>,
    /// The others on its bus or slot: a reset of that hits all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reset_peers: Vec<DeviceId>,
    /// It has no reset that hits it alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resets_peers: bool,
    /// Its physical function, where it is a virtual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_function: Option<DeviceId>,
}

impl DeviceFacts {
    /// A driverless device that nobody uses.
    pub fn new(id: impl Into<DeviceId>) -> Self {
        Self {
            id: id.into(),
            bridge: false,
            dma: DriverDma::None,
            driver_override: None,
            private_domain: false,
            uses: Vec::new(),
            processes: Vec::new(),
            reset_peers: Vec::new(),
            resets_peers: false,
            physical_function: None,
        }
    }

    /// Whether the driver counts as a claim of the kernel.
    pub fn uses_kernel_dma(&self) -> bool {
        self.private_domain || self.dma.uses_kernel_dma()
    }

    /// Whether processes keep the driver's own domain: until they end it, nobody can give it up,
    /// as unbinding the driver would wait for them.
    pub fn is_kept(&self) -> bool {
        self.private_domain && !self.processes.is_empty()
    }
}

/// What the host says of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupFacts {
    /// The group.
    pub id: GroupId,
    /// Its members.
    pub devices: Vec<DeviceFacts>,
    /// Processes that own it without our knowing.
    pub foreign_pids: Vec<u32>,
    /// What is known of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<ForeignProcess>,
}

/// A process that owns a group without our knowing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ForeignProcess {
    /// Its pid.
    pub pid: u32,
    /// What it is called.
    pub name: String,
    /// The service manager's unit that it is in; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
}

impl fmt::Display for ForeignProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.pid)?;
        if self.unit.is_empty() { Ok(()) } else { write!(f, " in {}", self.unit) }
    }
}

/// A host driver being bound or unbound on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum KernelDmaOp {
    /// A host driver is being bound.
    Set {
        /// The driver, if one was named.
        driver: Option<String>,
    },
    /// The host driver is being unbound.
    Release,
}

/// How SR-IOV of a physical function is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sriov {
    /// How many virtual functions there are.
    pub vfs: u16,
    /// Whether host drivers are offered new ones.
    pub autoprobe: bool,
}

impl fmt::Display for Sriov {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offered = if self.autoprobe { "" } else { "not " };
        write!(f, "{} VFs, {offered}offered to host drivers", self.vfs)
    }
}

/// SR-IOV of a physical function being changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SriovOp {
    /// What it was.
    pub from: Sriov,
    /// What it becomes.
    pub to: Sriov,
}

/// How SR-IOV of a physical function was set before it was changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SriovBaseline {
    /// How.
    pub was: Sriov,
    /// The boot that it is of: the next one begins anew.
    pub boot_id: BootId,
}

/// Among foreign pids: the kernel says that somebody owns the group, and no process could be seen
/// to.
pub const UNSEEN: u32 = 0;

/// The processes of these pids in words: `qemu (4321) in machine-qemu.scope`.
pub fn name_foreign(pids: &[u32], known: &[ForeignProcess]) -> Vec<String> {
    let named = |pid: &u32| match known.iter().find(|process| process.pid == *pid) {
        Some(process) => process.to_string(),
        None if *pid == UNSEEN => "a process that berthd can't see".to_owned(),
        None => format!("process {pid}"),
    };
    pids.iter().map(named).collect()
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Group {
    /// The group.
    pub id: GroupId,
    /// Its members, bridges included.
    pub devices: Vec<DeviceId>,
    /// Who holds its DMA.
    pub ownership: Ownership,
    /// The worst condition of its members.
    pub condition: Condition,
    /// Why, for every condition but `ok`.
    pub note: String,
    /// The highest epoch that any reservation of it had.
    pub epoch: Epoch,
    /// The reservations that hold it.
    pub reservations: Vec<ReservationId>,
    /// Processes that own it without our knowing.
    pub foreign_pids: Vec<u32>,
    /// What is known of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<ForeignProcess>,
    /// Under the group policy: the domain that the token's owner attached.
    pub attached: Option<DomainId>,
    /// Truth and record differ: a host driver or a foreign process is there beside our claims.
    pub drift: bool,
}

/// How long a device is cordoned.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CordonTerm {
    /// In milliseconds, as it was asked for.
    pub ttl_ms: u64,
    /// When it ends.
    pub expires: Expiry,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Device {
    /// Its group.
    pub group: GroupId,
    /// What the host says of it.
    pub facts: DeviceFacts,
    /// The condition's notes: every mark that stands, with its reason.
    pub marks: BTreeMap<Condition, String>,
    /// Only this label may have it: its last holder's, as it could not be reset.
    pub only_label: Option<Label>,
    /// A host driver being bound or unbound on purpose.
    pub kernel_dma_op: Option<KernelDmaOp>,
    /// When its cordon ends by itself, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordon: Option<CordonTerm>,
    /// What the machine shows against it.
    #[serde(default, skip_serializing_if = "Health::is_empty")]
    pub health: Health,
    /// How many of its resets failed since the last one that worked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub failed_resets: u32,
    /// SR-IOV of it being changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sriov_op: Option<SriovOp>,
    /// How its SR-IOV was set before it was changed; none while it is as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sriov_baseline: Option<SriovBaseline>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Device {
    /// The worst mark that stands.
    pub fn condition(&self) -> Condition {
        self.marks.keys().next_back().copied().unwrap_or_default()
    }

    /// Whether kernel work is under way on it that no reservation asked for.
    pub fn is_worked_on(&self) -> bool {
        self.kernel_dma_op.is_some() || self.sriov_op.is_some()
    }
}

/// One group of a reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The group.
    pub group: GroupId,
    /// The devices of it that are claimed.
    pub devices: Vec<DeviceId>,
}

/// A process that a reservation was handed to. Two are the same by pid and start time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HolderProcess {
    /// Its pid.
    pub pid: u32,
    /// Its start time, in clock ticks since boot, so that a reused pid is told apart.
    pub start_ticks: u64,
    /// What it was called when it was recorded; empty where that is unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The control group that it was in then, by which those that come of it are known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cgroup: String,
}

impl HolderProcess {
    /// A process of which no more is known.
    pub fn new(pid: u32, start_ticks: u64) -> Self {
        Self { pid, start_ticks, name: String::new(), cgroup: String::new() }
    }
}

impl PartialEq for HolderProcess {
    fn eq(&self, other: &Self) -> bool {
        (self.pid, self.start_ticks) == (other.pid, other.start_ticks)
    }
}

impl Eq for HolderProcess {}

impl Hash for HolderProcess {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.pid, self.start_ticks).hash(state);
    }
}

impl fmt::Display for HolderProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => write!(f, "process {}", self.pid),
            name => write!(f, "{name} ({})", self.pid),
        }
    }
}

/// Kernel work under way for a reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What is being done.
    pub kind: OperationKind,
    /// The domain that is being attached or put in place of the old one.
    pub domain: Option<DomainId>,
    /// The process that devices are being handed over to, or that is being adopted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<HolderProcess>,
    /// Whether the holder's consent is not needed.
    pub force: bool,
    /// Why: `request`, `lease ended`.
    pub cause: String,
    /// Since when.
    pub since_ms: UnixMs,
}

/// Flags that the requester gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    /// Host drivers are unbound on purpose.
    pub take_from_host: bool,
    /// Even where the host is using the device.
    pub host_uses_it_anyway: bool,
}

/// A durable promise of one or more groups to a holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reservation {
    /// The reservation.
    pub id: ReservationId,
    /// For whom.
    pub holder: Holder,
    /// Under which trust label.
    pub label: Label,
    /// The identity that asked: `uid:0`, `cert:…`.
    pub requester: String,
    /// The identity that may fetch: `uid:1000`.
    pub for_identity: String,
    /// How its claims are made.
    pub policy: Policy,
    /// How the holder gets the devices.
    pub delivery: Delivery,
    /// The kernel interface.
    pub backend: Backend,
    /// What is reserved.
    pub targets: Vec<Target>,
    /// Its context; none where the holder opens nodes by itself.
    pub context: ContextId,
    /// The domain that it presents or attaches.
    pub domain: DomainId,
    /// The owner token that it presents: its own id, or that of the reservation it joined.
    pub token: ReservationId,
    /// Its fencing number.
    pub epoch: Epoch,
    /// How much memory the holder may pin.
    pub memory_bytes: u64,
    /// How long it lasts without being renewed.
    pub ttl_ms: Option<u64>,
    /// When it ends.
    pub expires: Option<Expiry>,
    /// How far it has come.
    pub state: ReservationState,
    /// The state that a renewal returns to.
    pub resume: Option<ReservationState>,
    /// How many devices are attached or handed over: 0, or all of them.
    pub claims: u32,
    /// Whether any device was ever attached or handed over.
    pub ever_claimed: bool,
    /// Whether kernel work was done that a release has to undo.
    pub prepared: bool,
    /// Flags that the requester gave.
    pub flags: Flags,
    /// The devices that had to be taken from host drivers.
    pub taken: Vec<DeviceId>,
    /// What must come of the reset.
    pub reset_policy: ResetPolicy,
    /// Kernel work under way.
    pub pending: Option<Pending>,
    /// Who holds the promise while nothing is attached.
    pub hold: Hold,
    /// The process that the devices were handed to, or the one that still has them open.
    pub process: Option<HolderProcess>,
    /// Its holder had the groups before, unknown to us; it ends with that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// What there is to say beside the state.
    pub detail: String,
    /// When it was made.
    pub created_ms: UnixMs,
}

impl Reservation {
    /// How many devices are reserved.
    pub fn device_count(&self) -> u32 {
        let count: usize = self.targets.iter().map(|target| target.devices.len()).sum();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The command that ends it, as far as its state goes: what a lease or a dead holder left is only
    /// ended by force.
    #[must_use]
    pub fn release_command(&self) -> String {
        let forced = matches!(self.state, ReservationState::Expired | ReservationState::Draining);
        format!("berth release {}{}", self.id, if forced { " --force" } else { "" })
    }

    /// The devices that are reserved.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceId> {
        self.targets.iter().flat_map(|target| target.devices.iter())
    }

    /// Whether its holder attaches by itself and has what it takes, or is about to get it: then the
    /// daemon keeps out of its groups.
    pub fn is_handed_out(&self) -> bool {
        let under_way = self.pending.as_ref().map(|pending| pending.kind);
        self.delivery.holder_owns_domain()
            && (self.claims > 0 || under_way == Some(OperationKind::HandOver))
    }

    /// Whether it blocks others.
    pub fn holds(&self) -> bool {
        self.state.holds()
    }
}

/// One iommufd or container: one owner token under one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Context {
    /// The context.
    pub id: ContextId,
    /// Its trust label.
    pub label: Label,
    /// The policy of the claims in it.
    pub policy: Policy,
    /// The kernel interface.
    pub backend: Backend,
    /// Whether the holder makes its I/O address spaces, unseen by the daemon.
    pub holder_owned: bool,
    /// Whether it goes with its last reservation; an operator's stays.
    pub automatic: bool,
    /// Its domains.
    pub domains: Vec<DomainId>,
    /// The reservations that use it, until they are released.
    pub reservations: Vec<ReservationId>,
}

/// One I/O address space in a context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Domain {
    /// The domain.
    pub id: DomainId,
    /// Its context.
    pub context: ContextId,
    /// Its trust label.
    pub label: Label,
}
