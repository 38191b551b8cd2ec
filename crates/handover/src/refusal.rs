//! Why the daemon said no.

use serde::{Deserialize, Serialize};

/// Why a request was refused, who stands in the way, and what would resolve it. Fields that a later
/// daemon adds are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}: {message}")]
#[serde(default, rename_all = "camelCase")]
pub struct Refusal {
    /// The reason's name: `NOT_ATTACHED`.
    pub reason: String,
    /// The errno, as on Linux.
    pub errno: i32,
    /// Its name: `EINVAL`.
    pub errno_name: String,
    /// The group, device or reservation that was acted on.
    pub object: String,
    /// What was attempted, on what, and why not.
    pub message: String,
    /// Who stands in the way.
    pub owner: Option<Owner>,
    /// The devices that stand in the way.
    pub blockers: Vec<Blocker>,
    /// Commands and acts that would resolve it.
    pub resolve: Vec<String>,
}

/// Who stands in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// `kernel`, `private`, `exclusive`, `shared`, `group`, `foreign`, `hold`.
    pub kind: String,
    /// For whom the group is reserved.
    pub holder: Option<String>,
    /// The trust label.
    pub label: Option<String>,
    /// The reservation.
    pub reservation: Option<String>,
    /// How many claims the owner has on the group.
    pub claims: u32,
}

/// A device that stands in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Blocker {
    /// Its address.
    pub device: String,
    /// Its driver.
    pub driver: Option<String>,
    /// The processes that use it.
    pub processes: Vec<String>,
    /// What the host does with it: `mount /srv`.
    pub mounts: Vec<String>,
    /// All of it in words.
    pub text: String,
}
