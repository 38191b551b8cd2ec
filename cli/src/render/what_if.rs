//! What would become of groups.

use std::fmt::Write as _;

use berth_proto::v1;

use crate::address;

/// Groups that would split, those that wouldn't, and those of which nothing can be said.
pub(crate) fn text(answer: &v1::WhatIfResponse) -> String {
    let mut out = String::new();
    for split in &answer.splits {
        let _ = writeln!(
            out,
            "group {} (number {}) would split into {}:",
            split.group,
            split.number,
            split.parts.len()
        );
        for part in &split.parts {
            let _ = writeln!(out, "  {}", addresses(&part.devices));
        }
        let _ = writeln!(out, "  by ACS on {}", split.ports.join(", "));
    }
    for stays in &answer.stays {
        let _ = writeln!(out, "{} would stay together: {}", named(stays), stays.text);
    }
    for odd in &answer.unexplained {
        let _ = writeln!(out, "{}: nothing can be said: {}", named(odd), odd.text);
    }
    if out.is_empty() {
        return format!("{}: no group has more than one device", answer.machine);
    }
    if answer.splits.is_empty() {
        let _ = writeln!(out, "{}: no group would split", answer.machine);
    }
    super::narrow::folded(out.trim_end())
}

fn named(stays: &v1::GroupStays) -> String {
    format!("group {} (number {}: {})", stays.group, stays.number, addresses(&stays.devices))
}

fn addresses(devices: &[v1::DeviceAddress]) -> String {
    devices.iter().map(|device| address::text(Some(device))).collect::<Vec<_>>().join(" ")
}
