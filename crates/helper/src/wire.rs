//! What travels between the daemon and a helper.
//!
//! One `SOCK_SEQPACKET` connection carries one request and one response, each one packet with one
//! JSON object:
//!
//! ```text
//! -> {"v":1,"act":{"verb":"bind","device":"0000:00:05.0","driver":"vfio-pci"}}
//! <- {"v":1,"answer":{"ok":{"driver":"vfio-pci"}}}
//! <- {"v":1,"answer":{"error":{"file":{"op":"write","path":"...","errno":16}}}}
//! ```
//!
//! `open-iommu` answers `{"ok":"fd"}` with the descriptor beside the packet (`SCM_RIGHTS`). A
//! request of another version, with a field or a verb that isn't known, or of more than
//! [`MAX_REQUEST_BYTES`] is refused as a whole.

use berth_host::{Act, ActOutcome, HostError, PciAddress, ProcessUse, ResetOutcome};
use serde::{Deserialize, Serialize};

use std::os::fd::OwnedFd;

/// The version of the format. Both ends come from one build, so no other is understood.
pub const VERSION: u32 = 1;

/// The longest request.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The longest response: what a socket takes by default in one packet, with room to spare.
pub const MAX_RESPONSE_BYTES: usize = 128 * 1024;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub v: u32,
    /// What to do.
    pub act: Act,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// [`VERSION`].
    pub v: u32,
    /// How it went.
    pub answer: Answer,
}

/// How an act went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It was done.
    Ok(Done),
    /// It failed.
    Error(Failure),
}

/// What an act answered: [`ActOutcome`] without its descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Done {
    /// It is done.
    Done,
    /// The driver that is bound afterwards.
    Driver(Option<String>),
    /// How a reset went.
    Reset(ResetOutcome),
    /// The configuration space in hex digits.
    Config(String),
    /// Who has the nodes open.
    Holders(Vec<ProcessUse>),
    /// The descriptor comes beside the packet.
    Fd,
}

/// Why an act failed: [`HostError`] as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// There is no such device.
    NoDevice(PciAddress),
    /// A file or call failed.
    File {
        /// What was tried.
        op: String,
        /// On what.
        path: String,
        /// The kernel's errno.
        errno: i32,
    },
    /// Another driver is bound than should be.
    DriverMismatch {
        /// The device.
        device: PciAddress,
        /// Wanted, `none` for no driver.
        wanted: String,
        /// Found, `none` for no driver.
        found: String,
    },
    /// The request is not one, or the helper itself failed.
    Helper(String),
}

/// Operations that errors of acts name; [`HostError::File`] holds a static text.
const OPERATIONS: &[&str] = &[
    "read",
    "write",
    "open",
    "find",
    "find driver",
    "use driver name",
    "look for",
    "prlimit",
    "send",
    "kill",
    "IOMMU_OPTION",
    "getxattr",
    "setxattr",
    "stat",
];

impl Failure {
    /// The error of an act, as data.
    #[must_use]
    pub fn of(error: &HostError) -> Self {
        match error {
            HostError::NoDevice(device) => Self::NoDevice(*device),
            HostError::File { op, path, errno } => {
                Self::File { op: (*op).to_owned(), path: path.clone(), errno: *errno }
            }
            HostError::DriverMismatch { device, wanted, found } => Self::DriverMismatch {
                device: *device,
                wanted: wanted.clone(),
                found: found.clone(),
            },
            other => Self::Helper(other.to_string()),
        }
    }

    /// The error again; `act` is what it was about.
    #[must_use]
    pub fn into_error(self, act: &Act) -> HostError {
        match self {
            Self::NoDevice(device) => HostError::NoDevice(device),
            Self::File { op, path, errno } => match OPERATIONS.iter().find(|known| **known == op) {
                Some(op) => HostError::File { op, path, errno },
                None => HostError::File { op: "do", path: format!("{op} {path}"), errno },
            },
            Self::DriverMismatch { device, wanted, found } => {
                HostError::DriverMismatch { device, wanted, found }
            }
            Self::Helper(message) => helper_error(act, message, false),
        }
    }
}

impl Done {
    /// An outcome as data, and its descriptor.
    #[must_use]
    pub fn of(outcome: ActOutcome) -> (Self, Option<OwnedFd>) {
        let done = match outcome {
            ActOutcome::Done => Self::Done,
            ActOutcome::Driver(driver) => Self::Driver(driver),
            ActOutcome::Reset(outcome) => Self::Reset(outcome),
            ActOutcome::Config(bytes) => {
                Self::Config(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
            }
            ActOutcome::Holders(holders) => Self::Holders(holders),
            ActOutcome::Fd(fd) => return (Self::Fd, Some(fd)),
        };
        (done, None)
    }

    /// The outcome again; `None` when data or descriptor don't fit.
    #[must_use]
    pub fn into_outcome(self, fd: Option<OwnedFd>) -> Option<ActOutcome> {
        Some(match self {
            Self::Done => ActOutcome::Done,
            Self::Driver(driver) => ActOutcome::Driver(driver),
            Self::Reset(outcome) => ActOutcome::Reset(outcome),
            Self::Config(hex) => ActOutcome::Config(from_hex(&hex)?),
            Self::Holders(holders) => ActOutcome::Holders(holders),
            Self::Fd => ActOutcome::Fd(fd?),
        })
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

/// The verb of an act, as on the wire.
#[must_use]
pub fn verb(act: &Act) -> &'static str {
    match act {
        Act::Bind { .. } => "bind",
        Act::Unbind { .. } => "unbind",
        Act::Override { .. } => "override",
        Act::Restore { .. } => "restore",
        Act::Sriov { .. } => "sriov",
        Act::Reset { .. } => "reset",
        Act::ReadConfig { .. } => "read-config",
        Act::WhoHolds { .. } => "who-holds",
        Act::Prlimit { .. } => "prlimit",
        Act::Kill { .. } => "kill",
        Act::OpenIommu => "open-iommu",
        Act::Access { .. } => "access",
    }
}

/// What an act is about.
#[must_use]
pub fn object(act: &Act) -> String {
    match act {
        Act::Bind { device, .. }
        | Act::Unbind { device }
        | Act::Override { device, .. }
        | Act::Restore { device, .. }
        | Act::Sriov { device, .. }
        | Act::Reset { device }
        | Act::ReadConfig { device } => device.to_string(),
        Act::WhoHolds { nodes } => nodes.join(" "),
        Act::Prlimit { pid, .. } | Act::Kill { pid, .. } => format!("process {pid}"),
        Act::OpenIommu => "/dev/iommu".to_owned(),
        Act::Access { node, .. } => node.to_string(),
    }
}

/// An error of the helper itself.
pub(crate) fn helper_error(
    act: &Act,
    message: impl Into<String>,
    still_running: bool,
) -> HostError {
    HostError::Helper {
        verb: verb(act).to_owned(),
        object: object(act),
        message: message.into(),
        still_running,
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
