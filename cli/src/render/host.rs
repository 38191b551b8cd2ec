//! The host's capabilities, and the daemon's configuration.

use berth_proto::v1;

use super::{block as fields, event, word};

/// What the host and its kernel can do.
pub(crate) fn block(answer: &v1::Capabilities) -> String {
    let host = if answer.simulated {
        format!("simulated: {}", answer.topology)
    } else {
        "real".to_owned()
    };
    let health = answer.degraded.as_ref().map_or_else(|| "ok".to_owned(), degraded);
    fields(&[
        ("berthd", format!("{} ({})", answer.version, answer.api)),
        ("host", host),
        ("kernel", answer.kernel_release.clone()),
        ("hold", word(answer.hold().as_str_name())),
        ("features", answer.features.iter().map(feature).collect::<Vec<_>>().join("\n")),
        ("back ends", answer.backends.iter().map(backend).collect::<Vec<_>>().join("\n")),
        ("boot id", answer.boot_id.clone()),
        ("state", answer.state_dir.clone()),
        ("health", health),
    ])
}

fn degraded(degraded: &v1::Degraded) -> String {
    format!(
        "degraded, nothing can be changed: {} ({})\n{}",
        degraded.message, degraded.errno_name, degraded.way_out
    )
}

fn feature(feature: &v1::Feature) -> String {
    let answer = word(feature.answer().as_str_name());
    if feature.note.is_empty() {
        format!("{} {answer}", feature.name)
    } else {
        format!("{} {answer}: {}", feature.name, feature.note)
    }
}

fn backend(backend: &v1::BackendCapabilities) -> String {
    let name = word(backend.backend().as_str_name());
    if !backend.available {
        return format!("{name} not available: {}", backend.note);
    }
    let policies: Vec<String> =
        backend.policies().map(|policy| word(policy.as_str_name())).collect();
    let deliveries: Vec<String> =
        backend.deliveries().map(|delivery| word(delivery.as_str_name())).collect();
    let replace = if backend.replace { ", replace" } else { ", no replace" };
    format!("{name}: policies {}; deliveries {}{replace}", policies.join(" "), deliveries.join(" "))
}

/// Which configuration is in force.
pub(crate) fn config(answer: &v1::ConfigState) -> String {
    let file = if answer.file.is_empty() { "none: defaults" } else { &answer.file };
    let refused = match answer.refused.as_str() {
        "" => String::new(),
        why => format!("{} {why}", event::time_of(answer.refused_at.as_ref())),
    };
    fields(&[
        ("file", file.to_owned()),
        ("in force since", event::time_of(answer.in_force_since.as_ref())),
        ("refused", refused),
        ("needs a restart", answer.needs_restart.join("\n")),
    ])
}
