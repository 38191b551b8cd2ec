//! What is wrong with groups as the hardware and the firmware made them.

use std::collections::BTreeMap;

use berth_host::{DeviceFacts, GroupFacts, GroupingCode, PciAddress};
use berth_proto::v1;

use super::{Code, finding, fixed_by};
use crate::model::Snapshot;

pub(super) fn findings(snapshot: &Snapshot) -> Vec<v1::Finding> {
    let mut found = isolation(snapshot);
    for group in &snapshot.inventory.groups {
        found.extend(firmware(group));
    }
    // The host's own are never given away.
    let given = snapshot.devices().filter(|device| device.group.is_some() && !device.bridge);
    for device in given {
        found.extend(reset(device));
    }
    found
}

/// One finding for each port, bridge or device that puts others into one group.
fn isolation(snapshot: &Snapshot) -> Vec<v1::Finding> {
    // Functions name each other as the cause: they are told by their group.
    type Key<'c> = (&'c str, Option<PciAddress>, Option<u32>);
    let mut causes: BTreeMap<Key<'_>, Vec<&DeviceFacts>> = BTreeMap::new();
    for device in snapshot.devices().filter(|device| !device.bridge) {
        let shares = device.group.and_then(|number| snapshot.group_by_number(number));
        let of_functions = |group: &GroupFacts| {
            let functions = group.members.iter().filter_map(|member| snapshot.device(*member));
            functions.filter(|member| !member.bridge).count()
        };
        let Some(code) = code_of(device.grouping.code) else { continue };
        if shares.map_or(0, of_functions) > 1 {
            let key = match code {
                Code::Multifunction => (code.name(), None, device.group),
                _ => (code.name(), device.grouping.cause, None),
            };
            causes.entry(key).or_default().push(device);
        }
    }
    causes.into_values().filter_map(|devices| shared(&devices)).collect()
}

fn code_of(grouping: GroupingCode) -> Option<Code> {
    match grouping {
        GroupingCode::Alone | GroupingCode::Unknown => None,
        GroupingCode::BridgeAlias => Some(Code::BehindBridge),
        GroupingCode::MissingAcs => Some(Code::MissingAcs),
        GroupingCode::Multifunction => Some(Code::Multifunction),
    }
}

fn shared(devices: &[&DeviceFacts]) -> Option<v1::Finding> {
    let first = devices.first()?;
    let code = code_of(first.grouping.code)?;
    let names: Vec<String> = devices.iter().map(|it| it.address.to_string()).collect();
    let object = match first.grouping.cause {
        Some(cause) if code != Code::Multifunction => cause.to_string(),
        _ => first.address.to_string(),
    };
    let cause = format!("{} go to one holder only: {}", names.join(", "), first.grouping.text);
    let finding = finding(code, object, cause);
    Some(match code {
        Code::MissingAcs => {
            let finding =
                fixed_by(finding, "turn on ACS in the firmware where it has a switch for it");
            fixed_by(finding, "put the card into a slot below another port")
        }
        Code::BehindBridge => {
            fixed_by(finding, "a PCI Express card instead of one behind a bridge")
        }
        _ => fixed_by(finding, "reserve the group as a whole: --policy group"),
    })
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

fn reset(device: &DeviceFacts) -> Option<v1::Finding> {
    if device.resets_peers() {
        // One of them speaks for all.
        if device.reset_set.iter().any(|peer| *peer < device.address) {
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
