//! The closed vocabularies of the state machine: policies, deliveries, drivers, the three axes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{ContextId, DomainId, ReservationId};

/// How a claim on a group is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// A device attaches its own private domain and is the only DMA user of its group.
    Exclusive,
    /// The claim presents a domain: the same domain joins, another is refused.
    Shared,
    /// The claim presents an owner token: its owner attaches and replaces the group's domain.
    Group,
}

impl Policy {
    /// All policies.
    pub const ALL: [Self; 3] = [Self::Exclusive, Self::Shared, Self::Group];
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
            Self::Group => "group",
        })
    }
}

/// How the holder gets the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// The daemon keeps the device and drives its domain for clients that register memory.
    Held,
    /// The daemon binds and attaches, then hands the device's descriptor over.
    Bound,
    /// The holder gets a fresh cdev and a fresh iommufd and binds by itself.
    Unbound,
    /// The holder opens the nodes by path; it is let in by an access list.
    Node,
}

impl Delivery {
    /// All deliveries.
    pub const ALL: [Self; 4] = [Self::Held, Self::Bound, Self::Unbound, Self::Node];

    /// Whether the holder makes its own I/O address spaces, unseen by the daemon.
    pub fn holder_owns_domain(self) -> bool {
        match self {
            Self::Held | Self::Bound => false,
            Self::Unbound | Self::Node => true,
        }
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "held",
            Self::Bound => "bound",
            Self::Unbound => "unbound",
            Self::Node => "node",
        })
    }
}

/// The kernel interface that a context is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// An iommufd.
    Iommufd,
    /// A VFIO container with the type1 back end: one domain, no replace.
    Type1,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iommufd => "iommufd",
            Self::Type1 => "type1",
        })
    }
}

/// What must come of a device's reset before another holder may have it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum ResetPolicy {
    /// Only a verified reset frees the device; otherwise it is quarantined.
    Require,
    /// A device that can't be reset goes to the same label only.
    #[default]
    AllowSameLabel,
    /// The reset's outcome does not matter.
    None,
}

/// What came of a device's reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetOutcome {
    /// The reset was done and the device answered after it.
    Verified,
    /// The device has no way to be reset.
    NotPossible,
    /// The reset was tried and failed.
    Failed,
    /// No holder ever did DMA with the device, so none was needed.
    NotNeeded,
}

/// Who holds the promise while nothing is attached.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// The kernel refuses everyone else: the daemon holds the group's owner token.
    Kernel,
    /// Only the daemon's record refuses.
    #[default]
    Ledger,
}

/// What the driver on a device does with DMA.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "driver")]
pub enum DriverDma {
    /// No driver is on the device.
    #[default]
    None,
    /// The driver has `driver_managed_dma` (vfio-pci and variants, pci-stub, pcieport): no claim.
    Managed(String),
    /// A host driver that uses the default domain: one claim.
    Kernel(String),
    /// A driver that we don't know. It counts as one that uses the default domain.
    Assumed(String),
}

impl DriverDma {
    /// The driver's name.
    pub fn driver(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Managed(name) | Self::Kernel(name) | Self::Assumed(name) => Some(name),
        }
    }

    /// Whether the driver counts as a claim of the kernel.
    pub fn uses_kernel_dma(&self) -> bool {
        match self {
            Self::None | Self::Managed(_) => false,
            Self::Kernel(_) | Self::Assumed(_) => true,
        }
    }
}

/// First axis: who holds a group's DMA.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Ownership {
    /// Nobody.
    #[default]
    Free,
    /// Host drivers, on the default domain.
    Kernel {
        /// How many.
        n: u32,
    },
    /// Host drivers, one of which attached a domain of its own.
    Private {
        /// How many.
        n: u32,
    },
    /// One device with its private domain.
    Exclusive {
        /// The reservation that made the claim.
        claim: ReservationId,
    },
    /// The devices that presented one domain.
    Shared {
        /// The context that the domain is in.
        context: ContextId,
        /// The domain that every claim presented.
        domain: DomainId,
        /// How many devices.
        claims: u32,
    },
    /// The devices of one owner token.
    Group {
        /// The token: the first reservation that presented it.
        token: ReservationId,
        /// How many devices.
        claims: u32,
        /// The attached domain; DMA is blocked while there is none.
        domain: Option<DomainId>,
    },
    /// Processes that the daemon knows nothing of.
    Foreign {
        /// Who they are.
        pids: Vec<u32>,
    },
}

impl Ownership {
    /// The number of claims, as the kernel's `owner_cnt` would count devices. 0 is free.
    pub fn owner_cnt(&self) -> u32 {
        match self {
            Self::Free => 0,
            Self::Kernel { n } | Self::Private { n } => *n,
            Self::Exclusive { .. } => 1,
            Self::Shared { claims, .. } | Self::Group { claims, .. } => *claims,
            Self::Foreign { pids } => u32::try_from(pids.len()).unwrap_or(u32::MAX).max(1),
        }
    }

    /// The axis' word: free, kernel, private, exclusive, shared, group, foreign.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Kernel { .. } => "kernel",
            Self::Private { .. } => "private",
            Self::Exclusive { .. } => "exclusive",
            Self::Shared { .. } => "shared",
            Self::Group { .. } => "group",
            Self::Foreign { .. } => "foreign",
        }
    }
}

/// Second axis: how far a reservation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReservationState {
    /// Recorded; the group is being made viable.
    Preparing,
    /// A hold: nobody else may claim, nothing is claimed.
    Reserved,
    /// Descriptors or nodes are with the holder, who has not bound them yet.
    Handed,
    /// Claimed.
    Held,
    /// The lease ended while claims stand: DMA goes on, orders are refused.
    Expired,
    /// The holder is dead, but another process still has the device open.
    Draining,
    /// The hold is gone: a device vanished or somebody else took the group.
    Lost,
    /// Given back. Terminal.
    Released,
}

impl ReservationState {
    /// All states.
    pub const ALL: [Self; 8] = [
        Self::Preparing,
        Self::Reserved,
        Self::Handed,
        Self::Held,
        Self::Expired,
        Self::Draining,
        Self::Lost,
        Self::Released,
    ];

    /// Whether a reservation in this state blocks others.
    pub fn holds(self) -> bool {
        match self {
            Self::Preparing
            | Self::Reserved
            | Self::Handed
            | Self::Held
            | Self::Expired
            | Self::Draining => true,
            Self::Lost | Self::Released => false,
        }
    }
}

impl fmt::Display for ReservationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preparing => "preparing",
            Self::Reserved => "reserved",
            Self::Handed => "handed",
            Self::Held => "held",
            Self::Expired => "expired",
            Self::Draining => "draining",
            Self::Lost => "lost",
            Self::Released => "released",
        })
    }
}

/// Third axis: whether a device may be relied on. Later ones outrank earlier ones.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Nothing is known against it.
    #[default]
    Ok,
    /// It works, less well than it should.
    Degraded,
    /// It doesn't work.
    Failed,
    /// An operator keeps new reservations away.
    Cordoned,
    /// Kernel work on it hangs.
    Wedged,
    /// It could not be given back clean; an operator has to clear it.
    Quarantined,
}

impl Condition {
    /// All conditions.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::Degraded, Self::Failed, Self::Cordoned, Self::Wedged, Self::Quarantined];
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
            Self::Cordoned => "cordoned",
            Self::Wedged => "wedged",
            Self::Quarantined => "quarantined",
        })
    }
}

/// Kernel work that is under way for a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// The groups are being made viable.
    Prepare,
    /// Devices are being bound and attached.
    Attach,
    /// Devices are being detached.
    Detach,
    /// The domain is being replaced.
    Replace,
    /// Groups are being let go of, and opened to the holder, which attaches by itself.
    HandOver,
    /// Devices are being revoked, reset and given back.
    Release,
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Replace => "replace",
            Self::HandOver => "hand over",
            Self::Release => "release",
        })
    }
}
