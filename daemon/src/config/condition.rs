//! `[condition]`: what is made of devices that are degraded or failed.

use std::time::Duration;

use toml::Spanned;

use super::{
    ConfigError,
    error::Source,
    limits::{HOUR_MS, Range},
    raw::RawCondition,
};
use crate::model::ConditionRules;

/// The rules of the file.
pub(super) fn rules(
    raw: &RawCondition,
    source: &Source<'_>,
) -> Result<ConditionRules, ConfigError> {
    let range = Range { source, section: "condition" };
    let default = ConditionRules::default();
    let millis = |value: Option<&Spanned<u64>>, key, default: Duration, allowed| {
        let default = u64::try_from(default.as_millis()).unwrap_or(u64::MAX);
        range.get(value, key, default, allowed).map(Duration::from_millis)
    };
    let (poll, quiet) = (raw.poll_ms.as_ref(), raw.quiet_ms.as_ref());
    Ok(ConditionRules {
        refuse_degraded: refuses(
            raw.degraded.as_ref(),
            "condition.degraded",
            default.refuse_degraded,
            source,
        )?,
        refuse_failed: refuses(
            raw.failed.as_ref(),
            "condition.failed",
            default.refuse_failed,
            source,
        )?,
        poll: millis(poll, "poll_ms", default.poll, 100..=HOUR_MS)?,
        quiet: millis(quiet, "quiet_ms", default.quiet, 1_000..=30 * 24 * HOUR_MS)?,
    })
}

fn refuses(
    raw: Option<&Spanned<String>>,
    key: &str,
    default: bool,
    source: &Source<'_>,
) -> Result<bool, ConfigError> {
    let Some(text) = raw else { return Ok(default) };
    match text.get_ref().as_str() {
        "warn" => Ok(false),
        "refuse" => Ok(true),
        other => {
            let message = format!("{other:?} is neither warn nor refuse");
            Err(source.error(Some(text.span()), key, message, "use warn or refuse"))
        }
    }
}
