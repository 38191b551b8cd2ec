//! The privileged acts: a closed list of verbs.
//!
//! The daemon asks for them; `berth-helper` does them, one process per request, because an unbind
//! can wait without limit in the kernel and because none of the daemon's own threads may need a
//! capability.

use std::{
    fmt::{self, Debug},
    os::fd::OwnedFd,
};

use serde::{Deserialize, Serialize};

use super::{Attribute, HostError, PciAddress, ProcessUse};

/// One privileged act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Act {
    /// Bind a driver: `driver_override`, then `drivers_probe`, then the `driver` link is read
    /// again. The override stays.
    Bind {
        /// The device.
        device: PciAddress,
        /// The driver to bind.
        driver: String,
    },
    /// Unbind whatever driver is bound. Can wait without limit while the device is in use.
    Unbind {
        /// The device.
        device: PciAddress,
    },
    /// Write `driver_override`; `None` clears it.
    Override {
        /// The device.
        device: PciAddress,
        /// The driver's name.
        driver: Option<String>,
    },
    /// Put driver and override back: unbind what is bound, restore the override, probe or bind.
    Restore {
        /// The device.
        device: PciAddress,
        /// The driver it had; `None` leaves it without.
        driver: Option<String>,
        /// The override it had.
        driver_override: Option<String>,
    },
    /// Write what [`sriov_writes`] says: `sriov_numvfs` and `sriov_drivers_autoprobe`.
    Sriov {
        /// The physical function.
        device: PciAddress,
        /// How many virtual functions. From one number to another the way leads over 0.
        count: u16,
        /// Whether host drivers are offered virtual functions.
        autoprobe: bool,
    },
    /// Reset by writing `reset`; then check that the configuration space answers.
    Reset {
        /// The device.
        device: PciAddress,
    },
    /// Read the configuration space.
    ReadConfig {
        /// The device.
        device: PciAddress,
    },
    /// Find the processes that have any of these nodes open.
    WhoHolds {
        /// Paths below /dev/vfio, /dev/iommu, or /dev/vhost-vdpa-N.
        nodes: Vec<String>,
    },
    /// Raise a process's `RLIMIT_MEMLOCK`.
    Prlimit {
        /// The process.
        pid: i32,
        /// Its start time from `/proc/PID/stat`, so that a reused pid is not hit.
        start_time: u64,
        /// The new soft and hard limit.
        memlock_bytes: u64,
    },
    /// Send a signal to a process.
    Kill {
        /// The process.
        pid: i32,
        /// As in [`Act::Prlimit`].
        start_time: u64,
        /// Signal number: SIGSTOP, SIGCONT, SIGTERM or SIGKILL.
        signal: i32,
    },
    /// Open `/dev/iommu` and set `IOMMU_OPTION_RLIMIT_MODE` to count per process.
    OpenIommu,
    /// Let a user open a node, or no more, by an entry in the node's access list. Entries of others
    /// stay, and so does what they may. A node that isn't there lets nobody in.
    Access {
        /// The node.
        node: Node,
        /// The user.
        uid: u32,
        /// Whether it may read and write the node.
        allow: bool,
    },
}

/// The attributes of a physical function that [`Act::Sriov`] writes, in this order, and the values.
/// `sriov_drivers_autoprobe` says what becomes of functions that are there, so it is set before they
/// come and after they went.
#[must_use]
pub fn sriov_writes(count: u16, autoprobe: bool) -> [(Attribute, String); 2] {
    let count_of = (Attribute::Vfs, count.to_string());
    let probe = (Attribute::Autoprobe, u8::from(autoprobe).to_string());
    if count == 0 { [count_of, probe] } else { [probe, count_of] }
}

/// A node that a holder opens by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Node {
    /// `/dev/vfio/devices/vfioN` of a device.
    Cdev(PciAddress),
    /// `/dev/vfio/N` of the group with this number.
    Group(u32),
    /// `/dev/iommu`.
    Iommu,
    /// `/dev/vfio/vfio`.
    Container,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cdev(device) => write!(f, "cdev of {device}"),
            Self::Group(number) => write!(f, "/dev/vfio/{number}"),
            Self::Iommu => f.write_str("/dev/iommu"),
            Self::Container => f.write_str("/dev/vfio/vfio"),
        }
    }
}

/// What an act answered.
#[derive(Debug)]
pub enum ActOutcome {
    /// It is done.
    Done,
    /// The driver that is bound afterwards.
    Driver(Option<String>),
    /// How a reset went.
    Reset(ResetOutcome),
    /// Bytes of the configuration space.
    Config(Vec<u8>),
    /// Who has the nodes open.
    Holders(Vec<ProcessUse>),
    /// An opened descriptor.
    Fd(OwnedFd),
}

/// How a reset went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum ResetOutcome {
    /// The write succeeded and the configuration space answers.
    Verified {
        /// First of `reset_method`, the one the kernel tries first.
        method: String,
    },
    /// There is nothing to write to, or the kernel has no method (ENOTTY).
    NotPossible {
        /// What was missing.
        note: String,
    },
    /// The write failed, or the device doesn't answer.
    Failed {
        /// The errno or the reading.
        note: String,
    },
}

/// Who does the privileged acts of a real host.
pub trait Privileged: Send + Sync + Debug {
    /// Does one act within the implementation's deadline.
    ///
    /// # Errors
    /// The act's own error, or [`HostError::Helper`] when the helper failed or timed out; then the
    /// act may still be under way.
    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError>;
}
