//! Explanations.

use std::fmt::Write as _;

use berth_proto::v1;

use super::{device::processes, owner_line, word};
use crate::{address, error::refusal_text};

/// The whole explanation: summary, device by device, policy by policy.
pub(crate) fn text(explanation: &v1::Explanation) -> String {
    let mut out = String::new();
    if let Some(group) = &explanation.group {
        let _ = writeln!(out, "group {} (number {} now)", group.stable_id, group.number);
        if let Some(owner) = &group.owner {
            let _ = writeln!(out, "owner: {}", owner_line(owner));
        }
    }
    if !explanation.summary.is_empty() {
        let _ = writeln!(out, "{}", explanation.summary);
    }
    for verdict in &explanation.devices {
        device(&mut out, verdict);
    }
    for verdict in &explanation.policies {
        policy(&mut out, verdict);
    }
    for finding in &explanation.findings {
        let _ = writeln!(out, "{}", super::doctor::finding(finding));
    }
    for note in &explanation.host_notes {
        let _ = writeln!(out, "host: {note}");
    }
    for note in &explanation.memory_notes {
        let _ = writeln!(out, "{note}");
    }
    super::narrow::folded(out.trim_end())
}

fn device(out: &mut String, verdict: &v1::DeviceVerdict) {
    let device = verdict.device.clone().unwrap_or_default();
    let state = if verdict.blocks { "BLOCKS" } else { "ok    " };
    let driver = if device.driver.is_empty() { "no driver" } else { &device.driver };
    let _ = writeln!(
        out,
        "  {state} {} {driver}: {}",
        address::text(device.address.as_ref()),
        verdict.text
    );
    if !verdict.processes.is_empty() {
        let _ = writeln!(out, "         used by {}", processes(&verdict.processes));
    }
    if !verdict.resolve.is_empty() {
        let _ = writeln!(out, "         to resolve: {}", verdict.resolve);
    }
}

fn policy(out: &mut String, verdict: &v1::PolicyVerdict) {
    let name = word(verdict.policy().as_str_name());
    match (&verdict.refusal, verdict.may) {
        (Some(refusal), false) => {
            let _ =
                writeln!(out, "  {name}: refused, {}", refusal_text(refusal).replace('\n', "\n  "));
        }
        (_, true) => {
            let _ = writeln!(out, "  {name}: possible");
        }
        (None, false) => {
            let _ = writeln!(out, "  {name}: not possible");
        }
    }
}
