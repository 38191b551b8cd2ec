//! `[[quota]]`: how much one identity or label may have.

use toml::Spanned;

use super::{
    ConfigError,
    error::Source,
    raw::RawQuota,
    whom::{Named, only_one},
};
use crate::model::{Quota, Quotas};

/// The quotas in the file's order.
pub(super) fn quotas(
    raw: Vec<Spanned<RawQuota>>,
    source: &Source<'_>,
) -> Result<Quotas, ConfigError> {
    let mut found: Vec<Quota> = Vec::new();
    for raw in raw {
        let span = raw.span();
        let place = format!("{}:{}", source.file.display(), source.line_of(span.start));
        let raw = raw.into_inner();
        let named = Named {
            section: "quota",
            uid: raw.uid.as_ref(),
            gid: raw.gid.as_ref(),
            uri: raw.uri.as_ref(),
            label: raw.label.as_ref(),
        };
        let who = named.whom(span.clone(), source)?;
        only_one(&who, found.iter().map(|quota| &quota.who), "quota", span.clone(), source)?;
        let quota = Quota {
            who,
            reservations: raw.reservations,
            dma_entries: raw.dma_entries,
            pinned_bytes: raw.pinned_bytes,
            place,
        };
        if (quota.reservations, quota.dma_entries, quota.pinned_bytes) == (None, None, None) {
            let message = "a quota that limits nothing";
            let way_out = "give reservations, dma_entries or pinned_bytes";
            return Err(source.error(Some(span), "[[quota]]", message, way_out));
        }
        found.push(quota);
    }
    Ok(Quotas(found))
}
