//! Which groups the kernel would make of a machine, also if its ports isolated better than they do.
//!
//! The rules are applied to what functions show of isolation. They are checked before they are
//! believed: where they don't yield the groups that the machine has (a quirk of the kernel, an IOMMU
//! that has rules of its own), that is the answer, and nothing is said of what would be.
//!
//! # Kernel
//! `pci_device_group` in `drivers/iommu/iommu.c`: aliases of the requester id first, then the path to
//! the root, then functions of one device.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub use self::rules::Assumed;
use self::rules::{Joined, Rules};
use crate::{GroupFacts, Inventory, PciAddress};

/// What would become of the groups of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WhatIf {
    /// Those that would fall into several.
    pub splits: Vec<Split>,
    /// Groups of several that would stay as they are.
    pub stays: Vec<Stays>,
    /// Groups that the rules don't explain as they are.
    pub unexplained: Vec<Stays>,
}

/// One group that would split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Its number.
    pub number: u32,
    /// Its members, as they would be groups.
    pub parts: Vec<Vec<PciAddress>>,
    /// Whose Access Control Services make the difference.
    pub ports: Vec<PciAddress>,
}

/// One group of which nothing else is said, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stays {
    /// Its number.
    pub number: u32,
    /// Its members.
    pub members: Vec<PciAddress>,
    /// One sentence.
    pub text: String,
}

/// What would be if ACS were on where it is assumed.
#[must_use]
pub fn what_if(machine: &Inventory, assumed: &Assumed) -> WhatIf {
    let (now, then) = (Rules::new(machine, &Assumed::AsItIs), Rules::new(machine, assumed));
    let mut answer = WhatIf::default();
    let leaders = leaders(machine, &now);
    for group in &machine.groups {
        if let Some(text) = unexplained(group, &leaders) {
            answer.unexplained.push(stays(group, text));
            continue;
        }
        let mut parts: BTreeMap<PciAddress, Vec<PciAddress>> = BTreeMap::new();
        for member in &group.members {
            // What can't be told was found above.
            let leader = then.leader(*member).unwrap_or(*member);
            parts.entry(leader).or_default().push(*member);
        }
        if parts.len() > 1 {
            answer.splits.push(Split {
                number: group.number,
                parts: parts.into_values().collect(),
                ports: difference(group, &now, &then),
            });
        } else if group.members.len() > 1 {
            answer.stays.push(stays(group, kept_by(group, &then)));
        }
    }
    answer
}

/// The first of the group that each function would be in; an error names what can't be read.
type Leaders = BTreeMap<PciAddress, (Option<u32>, Result<PciAddress, PciAddress>)>;

fn leaders(machine: &Inventory, rules: &Rules<'_>) -> Leaders {
    let grouped = machine.devices.iter().filter(|facts| facts.group.is_some());
    grouped.map(|facts| (facts.address, (facts.group, rules.leader(facts.address)))).collect()
}

/// Why the rules don't yield this group as it is.
fn unexplained(group: &GroupFacts, leaders: &Leaders) -> Option<String> {
    let of = |member: &PciAddress| leaders.get(member).map(|(_, leader)| *leader);
    let mut own = BTreeSet::new();
    for member in &group.members {
        match of(member) {
            Some(Ok(leader)) => {
                own.insert(leader);
            }
            Some(Err(unread)) => {
                return Some(format!("the capabilities of {unread} can't be read"));
            }
            None => return Some(format!("{member} isn't known")),
        }
    }
    if own.len() > 1 {
        let names: Vec<String> = own.iter().map(ToString::to_string).collect();
        let names = names.join(", ");
        return Some(format!("by the kernel's rules it would be several, led by {names}"));
    }
    let outside = leaders.iter().find(|(_, (number, leader))| {
        *number != Some(group.number) && leader.is_ok_and(|leader| own.contains(&leader))
    });
    outside.map(|(other, _)| format!("by the kernel's rules {other} would belong to it"))
}

fn stays(group: &GroupFacts, text: String) -> Stays {
    Stays { number: group.number, members: group.members.clone(), text }
}

/// Functions that isolate under the assumption only, and stand in the way of a member.
fn difference(group: &GroupFacts, now: &Rules<'_>, then: &Rules<'_>) -> Vec<PciAddress> {
    let concerned: BTreeSet<PciAddress> =
        group.members.iter().flat_map(|member| now.above(*member).chain([*member])).collect();
    let differs = |at: &PciAddress| !now.isolates(*at) && then.isolates(*at);
    concerned.into_iter().filter(differs).collect()
}

/// What still joins its members, of the last one that is joined.
fn kept_by(group: &GroupFacts, then: &Rules<'_>) -> String {
    let joined = group.members.iter().rev().find_map(|member| {
        let (_, joined) = then.joined(*member).ok()?;
        Some((member, joined?))
    });
    match joined {
        Some((_, Joined::Alias(bridge))) => {
            format!("all behind {bridge} have its requester id, which no ACS changes")
        }
        Some((_, Joined::Port(port))) => format!("port {port} doesn't isolate what is below it"),
        Some((member, Joined::Functions(other))) => format!(
            "{member} and {other} are functions of one device without ACS between them, or with none \
             that can be turned on"
        ),
        None => "nothing of it would change".to_owned(),
    }
}
