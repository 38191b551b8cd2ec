//! What the task is asked.

use berth_ownership::{Command, DeviceId, Refusal};
use berth_uapi::VfToken;
use tokio::sync::oneshot;

use super::{Scan, condition::Found};
use crate::model::{ApiError, Applied, Baseline, Looked, Meta, Outcome, RequestId, StepNote};

/// Where the answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// What the task is asked.
#[derive(Debug)]
pub(super) enum Message {
    Submit {
        commands: Vec<Command>,
        meta: Meta,
        /// A refusal isn't the answer yet: the caller may try something else.
        attempt: bool,
        reply: Reply<Applied>,
    },
    Refuse {
        refusal: Box<Refusal>,
        meta: Meta,
        reply: Reply<Applied>,
    },
    Outcome {
        intent: u64,
        outcome: Box<Outcome>,
        looked: Vec<Looked>,
        meta: Meta,
        reply: Reply<Applied>,
    },
    Note {
        intent: u64,
        note: StepNote,
        reply: Reply<()>,
    },
    Baselines {
        intent: u64,
        baselines: Vec<Baseline>,
        reply: Reply<()>,
    },
    /// The VF token of a physical function: the one that is kept, else this fresh one is from now on.
    VfToken {
        device: DeviceId,
        fresh: VfToken,
        reply: Reply<VfToken>,
    },
    Refresh {
        looked: Vec<Looked>,
        meta: Meta,
        reply: Reply<Applied>,
    },
    Observe {
        scan: Box<Scan>,
        meta: Meta,
        reply: Reply<Applied>,
    },
    /// What devices show of their health, where it is otherwise than before.
    Condition {
        found: Box<Found>,
        reply: Reply<()>,
    },
    /// Nothing: only that its turn came, behind whatever had to be written before.
    Turn {
        reply: Reply<()>,
    },
}

impl Message {
    /// Who asks under which request id, where it has one that is looked up.
    pub(super) fn request(&self) -> Option<(&str, &RequestId)> {
        match self {
            Self::Submit { meta, .. } | Self::Refuse { meta, .. } => {
                meta.request_id.as_ref().map(|request| (meta.actor.as_str(), request))
            }
            Self::Outcome { .. }
            | Self::Note { .. }
            | Self::Baselines { .. }
            | Self::VfToken { .. }
            | Self::Refresh { .. }
            | Self::Observe { .. }
            | Self::Condition { .. }
            | Self::Turn { .. } => None,
        }
    }

    /// Answers it with an error.
    pub(super) fn refuse(self, error: ApiError) {
        // A caller that went away needs no answer.
        match self {
            Self::Submit { reply, .. }
            | Self::Refuse { reply, .. }
            | Self::Outcome { reply, .. }
            | Self::Refresh { reply, .. }
            | Self::Observe { reply, .. } => drop(reply.send(Err(error))),
            Self::Note { reply, .. }
            | Self::Baselines { reply, .. }
            | Self::Condition { reply, .. }
            | Self::Turn { reply } => drop(reply.send(Err(error))),
            Self::VfToken { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}
