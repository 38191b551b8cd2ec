//! The types that the parts of the daemon share: who calls, what was answered, what is published,
//! what kernel work is asked for.

mod caller;
mod config_state;
mod degraded;
mod error;
mod health;
mod intent;
mod latency;
mod live;
mod quota;
mod rate;
mod rules;
mod snapshot;
mod who;
mod whom;

pub use berth_roles::{Call, Over, Role, Row, Standing, Transport, Verdict, Whose};
pub use caller::{Caller, Origin};
pub use config_state::ConfigState;
pub use degraded::Degraded;
pub use error::ApiError;
pub use health::{ConditionRules, ShownHealth};
pub use intent::{
    AnswerOf, Applied, Baseline, Completion, DomainNow, Executor, GivenBack, Gone, Intent,
    IntentBody, IntentKind, Meta, OpenIntent, Outcome, RequestId, StepNote,
};
pub use latency::{DmaLatencies, Latency};
pub use live::Live;
pub use quota::{
    Account, Asked, Payer, Quota, Quotas, Resource, UNSTATED_BYTES, check as check_quota,
    promised_bytes,
};
pub use rate::{Pace, Rate, Rates};
pub use rules::{DeviceRule, DeviceRules, Ruling};
pub use snapshot::{Extra, HostUses, InventoryIndex, Looked, Snapshot};
pub use who::{PeerId, Who};
pub use whom::Whom;
