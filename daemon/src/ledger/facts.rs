//! From what a scan found to commands: only what may have changed.

use std::collections::HashMap;

use berth_host::{DeviceFacts, DmaKind, HostUse};
use berth_ownership as ownership;
use berth_ownership::{Command, DeviceId, DriverDma, GroupId};

use super::{book::Book, scan::Scan};
use crate::model::Looked;

/// Commands for all that a scan found, and the identities of devices that are new or otherwise.
pub(super) fn of_scan(book: &Book, scan: &Scan) -> (Vec<Command>, Vec<(DeviceId, String)>) {
    let mut commands = Vec::new();
    let mut identities = Vec::new();
    let by_address: HashMap<_, _> =
        scan.inventory.devices.iter().map(|device| (device.address, device)).collect();
    for device in &scan.inventory.devices {
        let id = DeviceId::from(device.address.to_string());
        let seen = identity(device);
        let known = book.identities.get(&id);
        let merged = match known {
            None => seen,
            Some(known) => match merge(known, &seen) {
                Some(merged) => merged,
                None => {
                    // Another device took the address: what was promised isn't there any more.
                    commands.push(Command::DeviceGone { device: id.clone() });
                    seen
                }
            },
        };
        if known.is_none_or(|known| **known != *merged) {
            identities.push((id, merged));
        }
    }
    for group in &scan.inventory.groups {
        let devices = group
            .members
            .iter()
            .filter_map(|address| by_address.get(address))
            .map(|device| {
                let uses = scan.uses.get(&device.address).map(Vec::as_slice).unwrap_or_default();
                device_facts(device, uses)
            })
            .collect();
        let foreign_pids = scan.foreign.get(&group.number).cloned().unwrap_or_default();
        commands.push(Command::Observe(ownership::GroupFacts {
            id: GroupId::new(&group.stable_id),
            devices,
            foreign_pids,
        }));
    }
    let seen: std::collections::HashSet<&str> =
        scan.inventory.groups.iter().map(|group| group.stable_id.as_str()).collect();
    for group in book.state.groups() {
        if !seen.contains(group.id.as_str()) {
            commands.push(Command::GroupGone { group: group.id.clone() });
        }
    }
    (commands, identities)
}

/// Commands for devices that were looked at again.
pub(super) fn of_look(book: &Book, looked: &[Looked]) -> Vec<Command> {
    let mut groups: Vec<ownership::GroupFacts> = Vec::new();
    for Looked { facts, uses } in looked {
        let id = DeviceId::from(facts.address.to_string());
        let Some(device) = book.state.device(&id) else { continue };
        let Some(group) = book.state.group(&device.group) else { continue };
        if !groups.iter().any(|known| known.id == group.id) {
            groups.push(ownership::GroupFacts {
                id: group.id.clone(),
                devices: book.state.devices_of(group).map(|device| device.facts.clone()).collect(),
                foreign_pids: group.foreign_pids.clone(),
            });
        }
        let known = groups
            .iter_mut()
            .find(|known| known.id == group.id)
            .and_then(|known| known.devices.iter_mut().find(|known| known.id == id));
        if let Some(known) = known {
            *known = device_facts(facts, uses);
        }
    }
    groups.into_iter().map(Command::Observe).collect()
}

/// The record's facts of a device.
fn device_facts(device: &DeviceFacts, uses: &[HostUse]) -> ownership::DeviceFacts {
    let driver = || device.driver.clone().unwrap_or_default();
    let mut facts = ownership::DeviceFacts::new(device.address.to_string());
    facts.bridge = device.bridge;
    facts.dma = match device.dma {
        DmaKind::None => DriverDma::None,
        DmaKind::Managed => DriverDma::Managed(driver()),
        DmaKind::Kernel => DriverDma::Kernel(driver()),
        DmaKind::Assumed => DriverDma::Assumed(driver()),
    };
    facts.uses = uses
        .iter()
        .map(|host_use| ownership::HostUse {
            kind: host_use.kind.clone(),
            what: host_use.detail.clone(),
        })
        .collect();
    facts
}

/// Ids, class and serial: what tells one device from another at the same address.
fn identity(device: &DeviceFacts) -> String {
    format!(
        "{:04x}:{:04x}:{:04x}:{:04x}:{:06x}:{}",
        device.vendor,
        device.device,
        device.subsystem_vendor,
        device.subsystem_device,
        device.class,
        device.serial.as_deref().unwrap_or_default()
    )
}

/// The identity to remember; `None` when it is another device. A serial number can't always be
/// read: one that is known stays known.
fn merge(known: &str, seen: &str) -> Option<String> {
    let (known_ids, known_serial) = known.rsplit_once(':')?;
    let (seen_ids, seen_serial) = seen.rsplit_once(':')?;
    if known_ids != seen_ids {
        return None;
    }
    match (known_serial, seen_serial) {
        (_, "") => Some(known.to_owned()),
        ("", _) => Some(seen.to_owned()),
        (known_serial, seen_serial) => (known_serial == seen_serial).then(|| known.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::merge;

    #[test]
    fn an_identity_survives_a_serial_that_can_not_be_read() {
        assert_eq!(merge("a:b:", "a:b:").as_deref(), Some("a:b:"));
        assert_eq!(merge("a:b:S1", "a:b:").as_deref(), Some("a:b:S1"));
        assert_eq!(merge("a:b:", "a:b:S1").as_deref(), Some("a:b:S1"));
        assert_eq!(merge("a:b:S1", "a:b:S2"), None);
        assert_eq!(merge("a:b:S1", "a:c:S1"), None);
    }
}
