//! Limits, and what is used of them: pairs of gauges, `berth_limit_X` and `berth_X`.

use std::fmt::Write as _;

use super::{super::Front, head};
use crate::config::Serve;

/// Writes all of them.
pub(super) fn write(text: &mut String, front: &Front) {
    let (limits, timeouts) = (**front.limits.get(), **front.timeouts.get());
    write_doors(text, front);
    pair(text, "watchers", "Clients that follow events.", limits.watchers, front.watchers.in_use());
    let (waiting, most) = front.service.ledger().waiting();
    pair(text, "waiting_commands", "Commands that wait to be decided.", most, waiting);
    let (identities, most) = front.meters.identities();
    pair(text, "metered_identities", "Identities whose calls are counted.", most, identities);
    head(text, "berth_rate_limited_total", "counter", "Calls that were one too many.");
    let _ = writeln!(text, "berth_rate_limited_total {}", front.meters.refused());
    let help = "Sessions of browsers, and links that may become one.";
    let web = front.service.web_sessions();
    pair(text, "web_sessions", help, web.settings().get().sessions, web.in_use());
    let streams = usize::try_from(limits.streams).unwrap_or(usize::MAX);
    let header_bytes = usize::try_from(limits.header_bytes).unwrap_or(usize::MAX);
    for (name, help, limit) in [
        ("streams", "Requests under way on one HTTP/2 connection, at most.", streams),
        ("header_bytes", "The largest head of a request.", header_bytes),
        ("body_bytes", "The largest body of a request.", front.body_bytes),
    ] {
        limit_alone(text, name, help, limit);
    }
    head(text, "berth_timeout_ms", "gauge", "How long things may take, in milliseconds.");
    for (of, ms) in [
        ("wait", timeouts.wait_ms),
        ("header", timeouts.header_ms),
        ("handshake", timeouts.handshake_ms),
        ("body", timeouts.body_ms),
        ("drain", timeouts.drain_ms),
    ] {
        let _ = writeln!(text, "berth_timeout_ms{{of=\"{of}\"}} {ms}");
    }
}

fn write_doors(text: &mut String, front: &Front) {
    let limits = **front.limits.get();
    let most = |serve| match serve {
        Serve::Handover => (limits.handover_connections, limits.handover_connections_per_uid),
        Serve::Grpc | Serve::Http => (limits.connections, limits.connections_per_uid),
    };
    let doors = front.doors.all();
    let mut gauge = |name: &str, help: &str, values: Vec<usize>| {
        head(text, name, "gauge", help);
        for ((serve, at, _), value) in doors.iter().zip(values) {
            let (serve, at) = (serve.word(), at.escape_default());
            let _ = writeln!(text, "{name}{{serve=\"{serve}\",listener=\"{at}\"}} {value}");
        }
    };
    let limit = doors.iter().map(|(serve, ..)| most(*serve).0).collect();
    gauge("berth_limit_connections", "Connections to a listener, at most.", limit);
    let used = doors.iter().map(|(_, _, seats)| seats.in_use()).collect();
    gauge("berth_connections", "Connections to a listener.", used);
    let limit = doors.iter().map(|(serve, ..)| most(*serve).1).collect();
    let help = "Connections of one uid, or of one address, to a listener, at most.";
    gauge("berth_limit_connections_per_uid", help, limit);
    let used = doors.iter().map(|(_, _, seats)| seats.of_busiest()).collect();
    let help = "Connections of the uid, or the address, that has most of them.";
    gauge("berth_connections_per_uid", help, used);
}

fn pair(text: &mut String, name: &str, help: &str, limit: usize, used: usize) {
    limit_alone(text, name, help, limit);
    head(text, &format!("berth_{name}"), "gauge", help);
    let _ = writeln!(text, "berth_{name} {used}");
}

fn limit_alone(text: &mut String, name: &str, help: &str, limit: usize) {
    head(text, &format!("berth_limit_{name}"), "gauge", help);
    let _ = writeln!(text, "berth_limit_{name} {limit}");
}
