//! The types that the parts of the daemon share: who calls, what was answered, what is published,
//! what kernel work is asked for.

mod caller;
mod degraded;
mod error;
mod health;
mod intent;
mod latency;
mod roles;
mod rules;
mod snapshot;

pub use caller::{Caller, Origin, Role, Transport};
pub use degraded::Degraded;
pub use error::ApiError;
pub use health::{ConditionRules, ShownHealth};
pub use intent::{
    AnswerOf, Applied, Baseline, Completion, DomainNow, Executor, GivenBack, Gone, Intent,
    IntentBody, IntentKind, Meta, OpenIntent, Outcome, RequestId, StepNote,
};
pub use latency::{DmaLatencies, Latency};
pub use roles::{Call, Over, Row, Standing, Verdict, Whose};
pub use rules::{DeviceRule, DeviceRules, Ruling};
pub use snapshot::{Extra, HostUses, InventoryIndex, Looked, Snapshot};
