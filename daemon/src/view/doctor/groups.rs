//! What is wrong with groups as the hardware and the firmware made them.

use std::collections::{BTreeMap, BTreeSet};

use berth_host::{Acs, DeviceFacts, GroupFacts, GroupingCode, PciAddress, PortType};
use berth_proto::v1;

use super::{Code, finding, fixed_by};
use crate::model::Snapshot;

/// Of the group of this number, or of all.
pub(super) fn findings(snapshot: &Snapshot, only: Option<u32>) -> Vec<v1::Finding> {
    let concerns = |number: u32| only.is_none_or(|only| only == number);
    let mut found = isolation(snapshot, only);
    for group in snapshot.inventory.groups.iter().filter(|group| concerns(group.number)) {
        found.extend(firmware(group));
    }
    // The host's own are never given away.
    let given: Vec<&DeviceFacts> = snapshot
        .devices()
        .filter(|device| device.group.is_some_and(concerns) && !device.bridge)
        .collect();
    let together = given.iter().filter(|device| device.resets_peers());
    let together: BTreeSet<PciAddress> = together.map(|device| device.address).collect();
    for device in &given {
        found.extend(reset(device, &together));
    }
    found.extend(tokens(snapshot, &given));
    found
}

/// Functions that something puts into one group.
struct Shared<'s> {
    code: Code,
    object: PciAddress,
    why: String,
    devices: Vec<&'s DeviceFacts>,
}

/// One finding for each port, bridge or device that puts others into one group.
fn isolation(snapshot: &Snapshot, only: Option<u32>) -> Vec<v1::Finding> {
    // Functions name each other as the cause: they are told by their group.
    type Key<'c> = (&'c str, Option<PciAddress>, Option<u32>);
    let mut causes: BTreeMap<Key<'_>, Shared<'_>> = BTreeMap::new();
    let concerns = |device: &&DeviceFacts| only.is_none() || device.group == only;
    for device in snapshot.devices().filter(|device| !device.bridge).filter(concerns) {
        let shares = device.group.and_then(|number| snapshot.group_by_number(number));
        let of_functions = |group: &GroupFacts| {
            let functions = group.members.iter().filter_map(|member| snapshot.device(*member));
            functions.filter(|member| !member.bridge).count()
        };
        let Some(code) = code_of(device.grouping.code) else { continue };
        if shares.map_or(0, of_functions) < 2 {
            continue;
        }
        let (key, object) = match (code, device.grouping.cause) {
            (Code::Multifunction, _) => ((code.name(), None, device.group), device.address),
            (_, cause) => ((code.name(), cause, None), cause.unwrap_or(device.address)),
        };
        let why = || device.grouping.text.clone();
        let shared = || Shared { code, object, why: why(), devices: Vec::new() };
        causes.entry(key).or_insert_with(shared).devices.push(device);
        for port in lacking(snapshot, device).filter(|port| port.address != object) {
            let (code, object) = (Code::MissingAcs, port.address);
            let shared = || Shared { code, object, why: lack(port), devices: Vec::new() };
            let key = (code.name(), Some(object), None);
            causes.entry(key).or_insert_with(shared).devices.push(device);
        }
    }
    causes.into_values().map(told).collect()
}

/// Ports above a function, and in its group, that keep nothing apart: beside the one reason that the
/// function is told of.
fn lacking<'s>(
    snapshot: &'s Snapshot,
    device: &'s DeviceFacts,
) -> impl Iterator<Item = &'s DeviceFacts> {
    /// Deeper than buses can be nested.
    const DEEPEST: usize = 256;
    let up = |of: &DeviceFacts| snapshot.device(of.parent?);
    let above = std::iter::successors(up(device), move |port| up(port)).take(DEEPEST);
    above.filter(|port| {
        let shows = port.isolation.unwrap_or_default();
        let is_port = matches!(shows.port, Some(PortType::RootPort | PortType::DownstreamPort));
        is_port && port.group == device.group && !shows.acs.is_some_and(Acs::isolates)
    })
}

fn lack(port: &DeviceFacts) -> String {
    let has = match port.isolation.and_then(|shows| shows.acs) {
        None => "shows no ACS",
        Some(_) => "has ACS, but not all of it is on",
    };
    format!("port {} on their way to the root {has}", port.address)
}

fn code_of(grouping: GroupingCode) -> Option<Code> {
    match grouping {
        GroupingCode::Alone | GroupingCode::Unknown => None,
        GroupingCode::BridgeAlias => Some(Code::BehindBridge),
        GroupingCode::MissingAcs => Some(Code::MissingAcs),
        GroupingCode::Multifunction => Some(Code::Multifunction),
    }
}

fn told(shared: Shared<'_>) -> v1::Finding {
    let Shared { code, object, why, devices } = shared;
    let names: Vec<String> = devices.iter().map(|it| it.address.to_string()).collect();
    let cause = format!("{} go to one holder only: {why}", names.join(", "));
    let finding = finding(code, object, cause);
    match code {
        Code::MissingAcs => {
            let finding =
                fixed_by(finding, "turn on ACS in the firmware where it has a switch for it");
            fixed_by(finding, "put the card into a slot below another port")
        }
        Code::BehindBridge => {
            fixed_by(finding, "a PCI Express card instead of one behind a bridge")
        }
        _ => fixed_by(finding, "reserve the group as a whole: --policy group"),
    }
}

fn firmware(group: &GroupFacts) -> Option<v1::Finding> {
    let region = group.reserved_regions.iter().find(|region| region.kind == "direct")?;
    let cause = format!(
        "the firmware wants {:#x}-{:#x} mapped one to one for it, so VFIO refuses the group",
        region.first, region.last
    );
    let finding = finding(Code::Firmware1to1, &group.stable_id, cause);
    Some(fixed_by(
        finding,
        "turn off in the firmware what needs it (USB legacy, remote management)",
    ))
}

/// Of a device among those that are reset with others.
fn reset(device: &DeviceFacts, together: &BTreeSet<PciAddress>) -> Option<v1::Finding> {
    if device.resets_peers() {
        // One of them speaks for all.
        if device.reset_set.iter().any(|peer| *peer < device.address && together.contains(peer)) {
            return None;
        }
        let peers: Vec<String> = device.reset_set.iter().map(ToString::to_string).collect();
        let cause = format!("its reset hits {} too", peers.join(", "));
        let finding = finding(Code::ResetScope, device.address, cause);
        return Some(fixed_by(finding, "give all of them to one holder"));
    }
    device.reset_methods.is_empty().then(|| {
        let cause = "nothing can reset it: after its first holder only the same label may have it, \
                     until an operator clears it";
        let finding = finding(Code::NoReset, device.address, cause);
        let fix = format!("afterwards: berth quarantine clear {} --reason TEXT", device.address);
        fixed_by(finding, fix)
    })
}

/// One finding for each physical function that is on a VFIO driver while it has virtual ones.
fn tokens(snapshot: &Snapshot, given: &[&DeviceFacts]) -> Vec<v1::Finding> {
    let mut of: BTreeMap<PciAddress, Vec<String>> = BTreeMap::new();
    for device in given {
        let physical = device.physical_function.and_then(|physical| snapshot.device(physical));
        if let Some(physical) = physical.filter(|physical| on_vfio(physical)) {
            of.entry(physical.address).or_default().push(device.address.to_string());
        }
    }
    let told = of.into_iter().map(|(physical, functions)| {
        let cause = format!(
            "it is on a VFIO driver, so the kernel lets nobody open {} without its VF token",
            functions.join(", ")
        );
        let fix = "reserve with --delivery held, bound or unbound, or start the program by berth \
                   run: berthd makes the token and shows it";
        fixed_by(finding(Code::VfToken, physical, cause), fix)
    });
    told.collect()
}

fn on_vfio(facts: &DeviceFacts) -> bool {
    let driver = facts.driver.as_deref();
    driver.is_some_and(|driver| driver == facts.vfio_driver || driver == "vfio-pci")
}
