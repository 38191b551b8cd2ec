//! `[[rate]]`: how often one identity or label may call.

use std::num::NonZeroU32;

use toml::Spanned;

use super::{
    ConfigError,
    error::Source,
    raw::RawRate,
    whom::{Named, only_one},
};
use crate::model::{Pace, Rate, Rates};

/// The rates in the file's order.
pub(super) fn rates(raw: Vec<Spanned<RawRate>>, source: &Source<'_>) -> Result<Rates, ConfigError> {
    let mut found: Vec<Rate> = Vec::new();
    for raw in raw {
        let span = raw.span();
        let place = format!("{}:{}", source.file.display(), source.line_of(span.start));
        let raw = raw.into_inner();
        let named = Named {
            section: "rate",
            uid: raw.uid.as_ref(),
            gid: raw.gid.as_ref(),
            uri: raw.uri.as_ref(),
            label: raw.label.as_ref(),
        };
        let who = named.whom(span.clone(), source)?;
        only_one(&who, found.iter().map(|rate| &rate.who), "rate", span.clone(), source)?;
        let commands = pace(raw.commands_per_s, raw.commands_burst, "commands", source)?;
        let reads = pace(raw.reads_per_s, raw.reads_burst, "reads", source)?;
        if commands.is_none() && reads.is_none() {
            let message = "a rate that limits nothing";
            let way_out = "give commands_per_s or reads_per_s";
            return Err(source.error(Some(span), "[[rate]]", message, way_out));
        }
        found.push(Rate { who, commands, reads, place });
    }
    Ok(Rates(found))
}

/// So many a second, and at once as many as in a second where nothing else is said.
fn pace(
    per_second: Option<Spanned<u32>>,
    burst: Option<Spanned<u32>>,
    key: &str,
    source: &Source<'_>,
) -> Result<Option<Pace>, ConfigError> {
    let number = |value: &Spanned<u32>, key: String| {
        NonZeroU32::new(*value.get_ref()).ok_or_else(|| {
            let way_out = "use 1 or more; role = \"none\" in a [[listen.rule]] shuts somebody out";
            source.error(Some(value.span()), &key, "0 lets nothing through", way_out)
        })
    };
    let burst_key = format!("rate.{key}_burst");
    let Some(per_second) = per_second else {
        return match burst {
            None => Ok(None),
            Some(burst) => {
                let message = format!("a burst without {key}_per_s");
                let way_out = format!("give {key}_per_s, too");
                Err(source.error(Some(burst.span()), &burst_key, message, way_out))
            }
        };
    };
    let per_second = number(&per_second, format!("rate.{key}_per_s"))?;
    let burst = burst.map(|burst| number(&burst, burst_key)).transpose()?;
    Ok(Some(Pace { per_second, burst: burst.unwrap_or(per_second) }))
}
