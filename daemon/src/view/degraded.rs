//! Why nothing can be changed, as the API has it.

use berth_proto::v1;

use super::{errno, words};
use crate::model::Degraded;

/// Why nothing can be changed at present.
#[must_use]
pub fn degraded(degraded: &Degraded) -> v1::Degraded {
    v1::Degraded {
        since: Some(words::timestamp(degraded.since_unix_ms)),
        errno: degraded.errno,
        errno_name: errno::name(degraded.errno),
        path: degraded.path.clone(),
        message: degraded.message.clone(),
        way_out: degraded.way_out.clone(),
    }
}
