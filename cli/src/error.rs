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
    Unreachable { endpoint: String, cause: String },
    /// The daemon answered with an error.
    Daemon(Box<Status>),
    /// `--timeout` passed.
    TimedOut(Duration),
    /// Anything else.
    Failed(String),
}

impl CliError {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// 0 done, 1 failed, 2 usage, 3 refused, 4 not found, 5 unreachable, 6 not permitted, 7 timed out.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 5,
            Self::TimedOut(_) => 7,
            Self::Failed(_) => 1,
            Self::Daemon(status) => exit_code_of(status),
        }
    }

    pub(crate) fn print(&self) {
        eprintln!("berth: {}", self.text());
    }

    fn text(&self) -> String {
        match self {
            Self::Usage(message) | Self::Failed(message) => message.clone(),
            Self::Unreachable { endpoint, cause } => format!(
                "no daemon answers at {endpoint}: {cause}\n  to resolve: start berthd, or name its socket \
                 with --endpoint or BERTH_ENDPOINT"
            ),
            Self::TimedOut(limit) => format!(
                "no answer within {limit:?}; what was recorded goes on: ask with `berth reservation list`"
            ),
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
