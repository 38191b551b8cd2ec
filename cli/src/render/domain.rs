//! Domains.

use berth_proto::v1;

use super::{Meaning, block as fields, cell, table as render, word};
use crate::{address, quantity};

/// One line a domain.
pub(crate) fn table(domains: &[v1::Domain]) -> String {
    render(
        &["DOMAIN", "CONTEXT", "LABEL", "BACKEND", "DEVICES", "MAPPED"],
        domains.iter().map(|domain| {
            vec![
                cell(&domain.id, Meaning::Plain),
                cell(&domain.context, Meaning::Plain),
                cell(&domain.label, Meaning::Plain),
                cell(word(domain.backend().as_str_name()), Meaning::Plain),
                cell(devices(domain).join(" "), Meaning::Plain),
                cell(quantity::human(domain.mapped_bytes), Meaning::Plain),
            ]
        }),
    )
}

fn devices(domain: &v1::Domain) -> Vec<String> {
    domain.claims.iter().map(|claim| address::text(claim.device.as_ref()).to_owned()).collect()
}

/// Everything about one domain.
pub(crate) fn block(domain: &v1::Domain) -> String {
    let ranges: Vec<String> =
        domain.ranges.iter().map(|range| format!("{:#x}-{:#x}", range.first, range.last)).collect();
    fields(&[
        ("domain", domain.id.clone()),
        ("context", domain.context.clone()),
        ("label", domain.label.clone()),
        ("backend", word(domain.backend().as_str_name())),
        ("devices", devices(domain).join(" ")),
        ("mapped", mapped(domain)),
        ("map", latency(domain.map_latency.as_ref())),
        ("unmap", latency(domain.unmap_latency.as_ref())),
        ("IOVA", ranges.join("\n")),
    ])
}

fn mapped(domain: &v1::Domain) -> String {
    let bytes = quantity::human(domain.mapped_bytes);
    match domain.mappings {
        0 => bytes,
        mappings => {
            let pinned = quantity::human(domain.pinned_bytes);
            format!("{bytes} in {mappings} registrations, {pinned} of it pinned by berthd")
        }
    }
}

fn latency(counted: Option<&v1::DmaLatency>) -> String {
    match counted {
        Some(it) if it.count > 0 => {
            let v1::DmaLatency { count, median_us, p99_us, max_us } = it;
            format!("{count} calls, median {median_us} us, 99% {p99_us} us, longest {max_us} us")
        }
        _ => String::new(),
    }
}
