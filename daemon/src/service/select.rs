//! Choosing devices by class: those that may be had and are well, then those that aren't, on one NUMA
//! node where that is possible, from the groups with the fewest other devices.

use std::collections::BTreeMap;

use berth_host::DeviceFacts;
use berth_ownership::{Command, Condition, Refusal, Reserve, TargetRequest, Time};
use berth_proto::v1;

use super::reserve::add;
use crate::model::{ApiError, DeviceRules, Snapshot};

const MAX_COUNT: u32 = 256;
/// Class codes by the names that people use.
const NAMES: [(&str, &str); 6] = [
    ("gpu", "03"),
    ("nic", "02"),
    ("nvme", "0108"),
    ("storage", "01"),
    ("usb", "0c03"),
    ("accelerator", "12"),
];

/// A device that may be had.
struct Candidate<'a> {
    facts: &'a DeviceFacts,
    siblings: usize,
    /// Nothing is known against it.
    well: bool,
}

/// Targets of as many devices of a class as are asked for.
pub(super) fn by_class(
    snapshot: &Snapshot,
    class: &v1::ClassSelector,
    template: &Reserve,
    now: &Time,
    rules: &DeviceRules,
) -> Result<Vec<TargetRequest>, ApiError> {
    let prefix = class_prefix(&class.class)?;
    let vendor = Vendor::parse(&class.vendor)?;
    let count = match class.count {
        0 => 1,
        count @ 1..=MAX_COUNT => count,
        count => {
            return Err(ApiError::invalid_argument(
                "class.count",
                format!("class.count {count} is more than {MAX_COUNT}"),
                "split it into several reservations",
            ));
        }
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let matching = snapshot.devices().filter(|facts| {
        !facts.bridge
            && format!("{:06x}", facts.class).starts_with(&prefix)
            && vendor.matches(facts)
            && class.numa_node.is_none_or(|node| node == facts.numa_node)
    });
    let mut free = Vec::new();
    let mut refusals = Vec::new();
    for facts in matching {
        let Some(group) = snapshot.group_of(facts.address) else { continue };
        match probe(snapshot, template, facts, now, rules) {
            Ok(()) => free.push(Candidate {
                facts,
                siblings: group.devices.len(),
                well: group.condition == Condition::Ok,
            }),
            Err(refusal) => refusals.push(*refusal),
        }
    }
    if free.len() < count {
        return Err(too_few(class, count, free.len(), refusals));
    }
    let mut targets = Vec::new();
    for candidate in choose(free, count) {
        if let Some(group) = snapshot.group_of(candidate.address) {
            add(&mut targets, &group.id, candidate);
        }
    }
    Ok(targets)
}

/// Whether the reservation could be had with this device alone.
fn probe(
    snapshot: &Snapshot,
    template: &Reserve,
    facts: &DeviceFacts,
    now: &Time,
    rules: &DeviceRules,
) -> Result<(), Box<Refusal>> {
    let mut single = template.clone();
    single.targets.clear();
    if let Some(group) = snapshot.group_of(facts.address) {
        rules.check(snapshot, group)?;
        add(&mut single.targets, &group.id, facts);
    }
    snapshot.state.decide(&Command::Reserve(Box::new(single)), now).map(drop)
}

/// All from the node that has enough and wastes least; over several nodes where none has. Those that
/// aren't well are chosen where the others aren't enough.
fn choose(mut free: Vec<Candidate<'_>>, count: usize) -> Vec<&DeviceFacts> {
    if free.iter().filter(|candidate| candidate.well).count() >= count {
        free.retain(|candidate| candidate.well);
    }
    free.sort_by_key(|candidate| (!candidate.well, candidate.siblings, candidate.facts.address));
    let mut nodes: BTreeMap<i32, usize> = BTreeMap::new();
    for candidate in &free {
        *nodes.entry(candidate.facts.numa_node).or_default() += 1;
    }
    let node = nodes
        .iter()
        .filter(|(_, has)| **has >= count)
        .min_by_key(|(node, has)| (**has, **node))
        .map(|(node, _)| *node);
    free.iter()
        .map(|candidate| candidate.facts)
        .filter(|facts| node.is_none_or(|node| node == facts.numa_node))
        .take(count)
        .collect()
}

fn too_few(
    class: &v1::ClassSelector,
    count: usize,
    free: usize,
    refusals: Vec<Refusal>,
) -> ApiError {
    let what = &class.class;
    let total = free + refusals.len();
    let Some(mut first) = refusals.into_iter().next() else {
        let text = format!("{count} of class {what} were asked for, but {total} are there");
        return ApiError::not_found(what, text);
    };
    first.message = format!(
        "{count} of class {what} were asked for, but {free} of {total} may be had; of the first \
         that may not: {}",
        first.message
    );
    ApiError::Refused(Box::new(first))
}

fn class_prefix(text: &str) -> Result<String, ApiError> {
    let lower = text.to_ascii_lowercase();
    if let Some((_, code)) = NAMES.iter().find(|(name, _)| *name == lower) {
        return Ok((*code).to_owned());
    }
    let code = lower.strip_prefix("0x").unwrap_or(&lower);
    let fits = matches!(code.len(), 2 | 4 | 6) && code.bytes().all(|b| b.is_ascii_hexdigit());
    if fits {
        return Ok(code.to_owned());
    }
    let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
    Err(ApiError::invalid_argument(
        "class.class",
        format!("class {text:?} is neither a name nor a code"),
        format!("give one of {}, or a class code of 2, 4 or 6 hex digits", names.join(", ")),
    ))
}

/// A vendor, or a vendor and a device.
struct Vendor {
    vendor: Option<u16>,
    device: Option<u16>,
}

impl Vendor {
    fn parse(text: &str) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self { vendor: None, device: None });
        }
        let hex = |text: &str| {
            let fits = text.len() == 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
            if fits { u16::from_str_radix(text, 16).ok() } else { None }
        };
        let parsed = match text.split_once(':') {
            Some((vendor, device)) => hex(vendor).zip(hex(device)).map(|(v, d)| (v, Some(d))),
            None => hex(text).map(|vendor| (vendor, None)),
        };
        let (vendor, device) = parsed.ok_or_else(|| {
            ApiError::invalid_argument(
                "class.vendor",
                format!("class.vendor {text:?} is not an id"),
                "give it like 10de or 10de:2330",
            )
        })?;
        Ok(Self { vendor: Some(vendor), device })
    }

    fn matches(&self, facts: &DeviceFacts) -> bool {
        self.vendor.is_none_or(|vendor| vendor == facts.vendor)
            && self.device.is_none_or(|device| device == facts.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_by_name_and_code() {
        assert_eq!(class_prefix("GPU").unwrap(), "03");
        assert_eq!(class_prefix("nvme").unwrap(), "0108");
        assert_eq!(class_prefix("0x010802").unwrap(), "010802");
        for bad in ["", "1", "010", "gpus", "0x", "zz"] {
            assert!(class_prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn vendors_are_four_hex_digits() {
        assert_eq!(Vendor::parse("10de").unwrap().vendor, Some(0x10de));
        assert_eq!(Vendor::parse("10de:2330").unwrap().device, Some(0x2330));
        for bad in ["10d", "10de:", ":2330", "nvidia", "10de:23300"] {
            assert!(Vendor::parse(bad).is_err(), "{bad}");
        }
    }
}
