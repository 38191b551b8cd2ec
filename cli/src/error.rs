//! What can go wrong, how it is said, and the exit code.

use std::{fmt::Write as _, time::Duration};

use berth_proto::{REFUSAL_TYPE_URL, v1};
use prost::Message as _;
use tonic::{Code, Status};

use crate::{address, render};

/// Why the command didn't do what was asked.
#[derive(Debug)]
pub(crate) enum CliError {
    /// The words of the call are off.
    Usage(String),
    /// The daemon can't be reached.
    Unreachable { endpoint: String, cause: String, option: &'static str },
    /// The daemon answered with an error.
    Daemon(Box<Status>),
    /// What was asked is refused, with the exit code.
    Refused(Box<v1::Refusal>, u8),
    /// The doctor found so many.
    Problems(usize),
    /// `--timeout` passed.
    TimedOut(Duration),
    /// Anything else.
    Failed(String),
}

impl CliError {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// A refusal of the hand-over socket.
    pub(crate) fn handover(refusal: &berth_handover::Refusal) -> Self {
        Self::Refused(Box::new(refusal_over(refusal)), exit_code_for(&refusal.reason))
    }

    /// 0 done, 1 failed, 2 usage, 3 refused, 4 not found, 5 unreachable, 6 not permitted, 7 timed out.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 5,
            Self::TimedOut(_) => 7,
            Self::Failed(_) => 1,
            Self::Daemon(status) => exit_code_of(status),
            Self::Problems(_) => 3,
            Self::Refused(_, code) => *code,
        }
    }

    pub(crate) fn print(&self) {
        eprintln!("berth: {}", self.text());
    }

    fn text(&self) -> String {
        match self {
            Self::Usage(message) | Self::Failed(message) => message.clone(),
            Self::Unreachable { endpoint, cause, option } => format!(
                "no daemon answers at {endpoint}: {cause}\n  to resolve: start berthd, or name its socket \
                 with {option}"
            ),
            Self::TimedOut(limit) => format!(
                "no answer within {limit:?}; what was recorded goes on: ask with `berth reservation list`"
            ),
            Self::Problems(1) => "one problem keeps devices from being given away".to_owned(),
            Self::Problems(count) => {
                format!("{count} problems keep devices from being given away")
            }
            Self::Refused(refusal, _) => refusal_text(refusal),
            Self::Daemon(status) => match refusal_of(status) {
                Some(refusal) => refusal_text(&refusal),
                None => format!("{}: {}", render::code_name(status.code()), status.message()),
            },
        }
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        Self::Daemon(Box::new(status))
    }
}

/// What the reasons' table has, for refusals that carry no gRPC code.
fn exit_code_for(reason: &str) -> u8 {
    match reason {
        "NOT_FOUND" | "DEVICE_GONE" => 4,
        "INVALID_ARGUMENT" | "REQUEST_ID_REUSED" => 2,
        "DENIED_BY_RULE" | "NOT_FOR_YOU" | "PERMISSION_DENIED" | "UNAUTHENTICATED" => 6,
        "UNAVAILABLE" | "STATE_UNWRITABLE" => 5,
        "DEADLINE_EXCEEDED" => 7,
        "DAEMON_RESTARTED" | "EVENTS_COMPACTED" | "HELPER_FAILED" | "INTERNAL"
        | "KERNEL_REFUSED" => 1,
        _ => 3,
    }
}

fn refusal_over(refusal: &berth_handover::Refusal) -> v1::Refusal {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let owner = refusal.owner.as_ref().map(|owner| v1::Owner {
        kind: v1::owner::Kind::from_str_name(&owner.kind.to_uppercase())
            // A reservation without claims holds the group, but owns no DMA yet.
            .unwrap_or(v1::owner::Kind::Free)
            .into(),
        holder: text(&owner.holder),
        label: text(&owner.label),
        reservation: text(&owner.reservation),
        claims: owner.claims,
        ..v1::Owner::default()
    });
    let blocker = |blocker: &berth_handover::Blocker| v1::Blocker {
        device: address::parse(&blocker.device).ok(),
        driver: text(&blocker.driver),
        text: blocker.text.clone(),
        ..v1::Blocker::default()
    };
    v1::Refusal {
        reason: refusal.reason.clone(),
        errno: refusal.errno,
        errno_name: refusal.errno_name.clone(),
        object: refusal.object.clone(),
        message: refusal.message.clone(),
        owner,
        blockers: refusal.blockers.iter().map(blocker).collect(),
        resolve: refusal.resolve.clone(),
    }
}

fn exit_code_of(status: &Status) -> u8 {
    match status.code() {
        Code::NotFound => 4,
        Code::InvalidArgument | Code::OutOfRange => 2,
        Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists => 3,
        Code::PermissionDenied | Code::Unauthenticated => 6,
        Code::DeadlineExceeded => 7,
        Code::Unimplemented | Code::ResourceExhausted if refusal_of(status).is_some() => 3,
        Code::Unavailable if refusal_of(status).is_none() => 5,
        _ => 1,
    }
}

/// The refusal among a status's details.
pub(crate) fn refusal_of(status: &Status) -> Option<v1::Refusal> {
    let details = tonic_types::pb::Status::decode(status.details()).ok()?;
    let any = details.details.into_iter().find(|any| any.type_url == REFUSAL_TYPE_URL)?;
    v1::Refusal::decode(any.value.as_slice()).ok()
}

/// A refusal for people: reason and message, owner, what blocks, the way out.
pub(crate) fn refusal_text(refusal: &v1::Refusal) -> String {
    let mut text = format!("{}: {}", refusal.reason, refusal.message);
    if !refusal.errno_name.is_empty() {
        let _ = write!(text, " ({})", refusal.errno_name);
    }
    if let Some(owner) = &refusal.owner {
        let _ = write!(text, "\n  owner: {}", render::owner_line(owner));
    }
    for blocker in &refusal.blockers {
        let _ = write!(text, "\n  {}", blocker_line(blocker));
    }
    for way in &refusal.resolve {
        let _ = write!(text, "\n  to resolve: {way}");
    }
    text
}

fn blocker_line(blocker: &v1::Blocker) -> String {
    let mut line = format!("BLOCKS {}", address::text(blocker.device.as_ref()));
    if !blocker.driver.is_empty() {
        let _ = write!(line, " driver {}", blocker.driver);
    }
    if !blocker.text.is_empty() {
        let _ = write!(line, ": {}", blocker.text);
    }
    for used in &blocker.uses {
        let _ = write!(line, "; {} {}", used.kind, used.detail);
    }
    for process in &blocker.processes {
        let _ = write!(line, "; {}", render::process(process));
    }
    if !blocker.resolve.is_empty() {
        let _ = write!(line, " — {}", blocker.resolve);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_reasons() {
        for reason in berth_ownership::Reason::all() {
            let code = exit_code_for(reason.name());
            assert_eq!(code, reason.exit_code().number(), "{reason}");
        }
    }

    #[test]
    fn a_refusal_of_the_hand_over_reads_like_one_of_the_api() {
        let refusal = berth_handover::Refusal {
            reason: "GROUP_OWNED".to_owned(),
            errno: 1,
            errno_name: "EPERM".to_owned(),
            message: "no".to_owned(),
            owner: Some(berth_handover::Owner {
                kind: "hold".to_owned(),
                holder: Some("vm1".to_owned()),
                ..berth_handover::Owner::default()
            }),
            blockers: vec![berth_handover::Blocker {
                device: "0000:65:00.0".to_owned(),
                driver: Some("nvme".to_owned()),
                text: "busy".to_owned(),
                ..berth_handover::Blocker::default()
            }],
            resolve: vec!["berth release r-1".to_owned()],
            ..berth_handover::Refusal::default()
        };
        let error = CliError::handover(&refusal);
        assert_eq!(error.exit_code(), 3);
        let text = error.text();
        for line in [
            "GROUP_OWNED: no (EPERM)",
            "holder vm1",
            "BLOCKS 0000:65:00.0 driver nvme: busy",
            "to resolve: berth release r-1",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
