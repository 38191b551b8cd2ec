//! Numbers of the memory that the daemon maps for its clients.

use std::fmt::Write as _;

use super::head;
use crate::{model::Latency, service::Service};

const PINNED: &str = "berth_domain_pinned_bytes";
const MAPPED: &str = "berth_domain_mapped_bytes";
const MAPPINGS: &str = "berth_domain_mappings";
const DURATION: &str = "berth_dma_duration_seconds";

pub(super) fn write(text: &mut String, service: &Service) {
    let domains = service.open_domains();
    let mut gauge = |name: &str, help: &str, of: fn(&crate::model::DomainNow) -> u64| {
        head(text, name, "gauge", help);
        for (domain, context, now) in &domains {
            let value = of(now);
            // Writing to a String can't fail.
            let _ = writeln!(text, "{name}{{domain=\"{domain}\",context=\"{context}\"}} {value}");
        }
    };
    gauge(PINNED, "Client memory pinned in the daemon's name.", |now| now.pinned_bytes);
    gauge(MAPPED, "Client memory mapped by the daemon.", |now| now.mapped_bytes);
    gauge(MAPPINGS, "Mappings made by the daemon for clients.", |now| now.mappings);
    if let Some(latencies) = service.dma_latencies() {
        head(
            text,
            DURATION,
            "histogram",
            "How long the kernel took to map and unmap client memory.",
        );
        histogram(text, "map", &latencies.map);
        histogram(text, "unmap", &latencies.unmap);
    }
}

fn histogram(text: &mut String, op: &str, latency: &Latency) {
    let mut below = 0;
    for (bucket, count) in latency.buckets.iter().enumerate() {
        below += count;
        // Every other power of two; the last one is in +Inf.
        if let Some(us) = Latency::below_us(bucket).filter(|_| bucket.is_multiple_of(2)) {
            let le = seconds(us);
            let _ = writeln!(text, "{DURATION}_bucket{{op=\"{op}\",le=\"{le}\"}} {below}");
        }
    }
    let _ = writeln!(text, "{DURATION}_bucket{{op=\"{op}\",le=\"+Inf\"}} {below}");
    let _ = writeln!(text, "{DURATION}_sum{{op=\"{op}\"}} {}", seconds(latency.sum_us));
    let _ = writeln!(text, "{DURATION}_count{{op=\"{op}\"}} {below}");
}

/// Microseconds as seconds, exactly.
fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}
