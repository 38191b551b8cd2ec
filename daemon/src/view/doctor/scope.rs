//! What concerns one group, for an explanation.

use berth_host::GroupFacts;
use berth_ownership::{Group, Reservation};
use berth_proto::v1;

use super::{Code, Machine, drivers, finding, fixed_by, groups, host, memory, records};
use crate::{
    model::{DeviceRules, Snapshot},
    view::explain::{by_reset, by_rule},
};

/// What is asked beside the group.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The machine.
    pub machine: Machine<'a>,
    /// Which devices may be given away.
    pub rules: &'a DeviceRules,
    /// So much memory is to be mapped; 0 asks nothing.
    pub memory_bytes: u64,
    /// The reservation that was asked about.
    pub reservation: Option<&'a Reservation>,
}

/// All findings that concern a group, the worst first.
#[must_use]
pub fn findings_of(snapshot: &Snapshot, group: &Group, scope: &Scope<'_>) -> Vec<v1::Finding> {
    let facts: Vec<GroupFacts> = snapshot.group(&group.id).into_iter().cloned().collect();
    let mut found = host::findings(&facts, &scope.machine);
    for facts in &facts {
        found.extend(groups::findings(snapshot, Some(facts.number)));
    }
    found.extend(drivers::of(snapshot, group));
    found.extend(records::of(snapshot, group));
    found.extend(owned(snapshot, group));
    found.extend(kept(snapshot, group, scope.rules));
    if scope.memory_bytes > 0 {
        let object = scope.reservation.map_or(group.id.as_str(), |asked| asked.id.as_str());
        found.extend(memory::findings(object, scope.memory_bytes, scope.reservation));
    }
    found.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    found
}

/// Reservations that have it, or what is only reset together with it.
fn owned(snapshot: &Snapshot, group: &Group) -> Vec<v1::Finding> {
    let state = &snapshot.state;
    let mut found: Vec<v1::Finding> = state
        .reservations_of(group)
        .map(|owner| {
            let cause = format!(
                "{} for {} has it ({}, {}, label {})",
                owner.id, owner.holder, owner.state, owner.policy, owner.label
            );
            let finding = finding(Code::Reserved, &group.id, cause);
            fixed_by(finding, owner.release_command())
        })
        .collect();
    let devices = group.devices.iter().filter_map(|id| state.device(id));
    found.extend(devices.filter_map(|record| {
        let together = by_reset(state, record)?;
        let finding = finding(Code::ResetTogether, &record.facts.id, together.text);
        Some(fixed_by(finding, together.resolve))
    }));
    found
}

/// Devices that the configuration keeps.
fn kept(snapshot: &Snapshot, group: &Group, rules: &DeviceRules) -> Vec<v1::Finding> {
    let members = group.devices.iter().filter_map(|id| snapshot.device_by_id(id));
    let kept = members.filter_map(|facts| {
        let rule = by_rule(facts, rules)?;
        let finding = finding(Code::NotGivenAway, facts.address, rule.text);
        Some(fixed_by(finding, rule.resolve))
    });
    kept.collect()
}
