//! Refusals, as data.

use serde::{Deserialize, Serialize};

use crate::ids::{DeviceId, Holder, Label, ReservationId};
use crate::reason::{Errno, Reason};

/// Who stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerInfo {
    /// kernel, private, exclusive, shared, group, foreign, hold.
    pub kind: String,
    /// For whom the group is reserved.
    pub holder: Option<Holder>,
    /// The owner's label.
    pub label: Option<Label>,
    /// The owner's reservation.
    pub reservation: Option<ReservationId>,
    /// How many claims the owner has on the group.
    pub claims: u32,
}

/// A device that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The device.
    pub device: DeviceId,
    /// Its driver.
    pub driver: Option<String>,
    /// The processes that use it.
    pub processes: Vec<String>,
    /// What the host does with it: `mount /srv`.
    pub mounts: Vec<String>,
    /// All of it in words.
    pub text: String,
}

/// Why a command was refused, who stands in the way, and what would resolve it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// The errno: the kernel's number.
    pub errno: i32,
    /// The group, device, reservation, context or domain that was acted on.
    pub object: String,
    /// What was attempted, on what, and why not.
    pub message: String,
    /// Who stands in the way.
    pub owner: Option<OwnerInfo>,
    /// The devices that stand in the way.
    pub blockers: Vec<Blocker>,
    /// Commands and acts that would resolve it.
    pub resolve: Vec<String>,
}

impl Refusal {
    /// A refusal with the reason's own errno and way out.
    pub fn new(reason: Reason, object: impl ToString, message: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            reason,
            errno: reason.errno().number,
            object: object.to_string(),
            message: message.into(),
            owner: None,
            blockers: Vec::new(),
            resolve: vec![reason.row().way_out.to_owned()],
        })
    }

    /// The same with an errno that the kernel gave, or that the table has for this operation.
    #[must_use]
    pub fn with_errno(mut self: Box<Self>, errno: i32) -> Box<Self> {
        self.errno = errno;
        self
    }

    /// The same with the errno of a table cell.
    pub(crate) fn with_cell_errno(self: Box<Self>, errno: Errno) -> Box<Self> {
        self.with_errno(errno.number)
    }

    /// The same with the one who stands in the way.
    #[must_use]
    pub fn with_owner(mut self: Box<Self>, owner: Option<OwnerInfo>) -> Box<Self> {
        self.owner = owner;
        self
    }

    /// The same with the devices that stand in the way.
    #[must_use]
    pub fn with_blockers(mut self: Box<Self>, blockers: Vec<Blocker>) -> Box<Self> {
        self.blockers = blockers;
        self
    }

    /// The same with ways out of its own.
    #[must_use]
    pub fn with_resolve(mut self: Box<Self>, resolve: Vec<String>) -> Box<Self> {
        self.resolve = resolve;
        self
    }
}
