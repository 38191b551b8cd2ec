//! Contexts and domains as the API has them.

use berth_ownership::{Context, Domain, State};
use berth_proto::v1;

use super::{reservation::claims, words};
use crate::model::{DomainNow, Latency};

/// A context as the API has it.
#[must_use]
pub fn context(record: &Context) -> v1::Context {
    v1::Context {
        id: record.id.to_string(),
        label: record.label.to_string(),
        backend: words::backend_word(record.backend).into(),
        domains: record.domains.iter().map(ToString::to_string).collect(),
        reservations: record.reservations.iter().map(ToString::to_string).collect(),
    }
}

/// A domain as the API has it, with what the daemon sees of it now.
#[must_use]
pub fn domain(state: &State, record: &Domain, now: Option<DomainNow>) -> v1::Domain {
    let context = state.context(&record.context);
    let now = now.unwrap_or_default();
    let attached = context
        .into_iter()
        .flat_map(|context| &context.reservations)
        .filter_map(|id| state.reservation(id))
        .filter(|reservation| reservation.domain == record.id);
    v1::Domain {
        id: record.id.to_string(),
        context: record.context.to_string(),
        label: record.label.to_string(),
        backend: context
            .map_or(v1::Backend::Auto, |context| words::backend_word(context.backend))
            .into(),
        claims: attached.flat_map(claims).collect(),
        ranges: now
            .ranges
            .into_iter()
            .map(|range| v1::IovaRange { first: range.first, last: range.last, kind: range.kind })
            .collect(),
        mapped_bytes: now.mapped_bytes,
        mappings: now.mappings,
        pinned_bytes: now.pinned_bytes,
        map_latency: Some(latency(&now.latencies.map)),
        unmap_latency: Some(latency(&now.latencies.unmap)),
    }
}

fn latency(counted: &Latency) -> v1::DmaLatency {
    v1::DmaLatency {
        count: counted.count(),
        median_us: counted.percentile_us(50),
        p99_us: counted.percentile_us(99),
        max_us: counted.max_us,
    }
}
