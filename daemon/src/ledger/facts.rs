//! From what a scan found to commands: only what may have changed.

use std::{
    collections::{HashMap, HashSet},
    fmt::{self, Write as _},
};

use berth_host::{DeviceFacts, DmaKind, GroupFacts, HostUse, PciAddress, in_chunks};
use berth_ownership as ownership;
use berth_ownership::{Command, DeviceId, DriverDma, GroupId, UNSEEN};

use super::{book::Book, scan::Scan};
use crate::model::Looked;

/// Commands for what a scan found otherwise than it is recorded, and the identities of devices
/// that are new or otherwise.
pub(super) fn of_scan(book: &Book, scan: &Scan) -> (Vec<Command>, Vec<(DeviceId, String)>) {
    let mut commands = Vec::new();
    let mut identities = Vec::new();
    let mut replaced: HashSet<PciAddress> = HashSet::new();
    let devices = &scan.inventory.devices;
    for found in in_chunks(devices, |devices| otherwise(book, devices)) {
        if found.replaced {
            // Another device took the address: what was promised isn't there any more.
            replaced.insert(found.address);
            commands.push(Command::DeviceGone { device: found.id.clone() });
        }
        identities.extend(found.identity.map(|identity| (found.id, identity)));
    }
    let by_address: HashMap<_, _> = devices.iter().map(|device| (device.address, device)).collect();
    commands.extend(in_chunks(&scan.inventory.groups, |groups| {
        let facts = groups.iter().filter_map(|group| {
            let facts = group_facts(book, scan, group, &by_address);
            // On most looks most groups are as recorded, and need not go through decisions. Where
            // a device is replaced they are so only until its predecessor goes.
            let anew = group.members.iter().any(|member| replaced.contains(member));
            (anew || !book.state.is_recorded(&facts)).then_some(facts)
        });
        facts.map(Command::Observe).collect()
    }));
    let seen: HashSet<&str> =
        scan.inventory.groups.iter().map(|group| group.stable_id.as_str()).collect();
    for group in book.state.groups() {
        if !seen.contains(group.id.as_str()) {
            commands.push(Command::GroupGone { group: group.id.clone() });
        }
    }
    (commands, identities)
}

/// A device that is not as its identity was recorded.
struct Otherwise {
    address: PciAddress,
    id: DeviceId,
    /// It is another one than before at that address.
    replaced: bool,
    /// What to remember, where that is new.
    identity: Option<String>,
}

fn otherwise(book: &Book, devices: &[DeviceFacts]) -> Vec<Otherwise> {
    let mut found = Vec::new();
    let (mut address, mut seen) = (String::new(), String::new());
    for device in devices {
        write_anew(&mut address, device.address);
        write_anew(&mut seen, Identity(device));
        let known = book.identities.get(address.as_str());
        if known.is_some_and(|known| **known == *seen) {
            continue;
        }
        let merged = known.map(|known| merge(known, &seen));
        let replaced = matches!(merged, Some(None));
        let identity = merged.flatten().unwrap_or_else(|| seen.clone());
        found.push(Otherwise {
            address: device.address,
            id: DeviceId::from(address.as_str()),
            replaced,
            identity: known.is_none_or(|known| **known != *identity).then_some(identity),
        });
    }
    found
}

fn write_anew(text: &mut String, what: impl fmt::Display) {
    text.clear();
    // A string takes everything.
    let _ = write!(text, "{what}");
}

/// The record's facts of a group.
fn group_facts(
    book: &Book,
    scan: &Scan,
    group: &GroupFacts,
    by_address: &HashMap<PciAddress, &DeviceFacts>,
) -> ownership::GroupFacts {
    let devices = group
        .members
        .iter()
        .filter_map(|address| by_address.get(address))
        .map(|device| {
            let uses = scan.uses.get(&device.address).map(Vec::as_slice).unwrap_or_default();
            device_facts(device, uses)
        })
        .collect();
    let id = GroupId::new(&group.stable_id);
    let mut found = scan.foreign.get(&group.number).cloned().unwrap_or_default();
    let mut foreign_pids: Vec<u32> = found.iter().map(|process| process.pid).collect();
    // What was seen before the record changed is seen by the record as it is.
    if let Some(known) = book.state.group(&id) {
        let holders: Vec<_> = book.state.reservations_of(known).collect();
        if holders.iter().any(|record| record.adopted && record.pending.is_some()) {
            foreign_pids.clone_from(&known.foreign_pids);
            found.clone_from(&known.foreign);
        }
        let held = |pid: u32| {
            holders.iter().any(|it| it.process.as_ref().is_some_and(|holder| holder.pid == pid))
        };
        foreign_pids.retain(|pid| !held(*pid));
    }
    found.retain(|process| process.pid != UNSEEN && foreign_pids.contains(&process.pid));
    ownership::GroupFacts { id, devices, foreign_pids, foreign: found }
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
                foreign: group.foreign.clone(),
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
    facts.reset_peers =
        device.reset_set.iter().map(|peer| DeviceId::from(peer.to_string())).collect();
    facts.resets_peers = device.resets_peers();
    if let Some(domain) = &device.private_domain {
        facts.private_domain = true;
        facts.processes = domain.keepers();
    }
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
struct Identity<'d>(&'d DeviceFacts);

impl fmt::Display for Identity<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.0;
        write!(
            f,
            "{:04x}:{:04x}:{:04x}:{:04x}:{:06x}:{}",
            device.vendor,
            device.device,
            device.subsystem_vendor,
            device.subsystem_device,
            device.class,
            device.serial.as_deref().unwrap_or_default()
        )
    }
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
    use berth_host::{Host as _, PrivateDomain, sim::SimHost};

    use super::{device_facts, merge};

    #[test]
    fn an_identity_survives_a_serial_that_can_not_be_read() {
        assert_eq!(merge("a:b:", "a:b:").as_deref(), Some("a:b:"));
        assert_eq!(merge("a:b:S1", "a:b:").as_deref(), Some("a:b:S1"));
        assert_eq!(merge("a:b:", "a:b:S1").as_deref(), Some("a:b:S1"));
        assert_eq!(merge("a:b:S1", "a:b:S2"), None);
        assert_eq!(merge("a:b:S1", "a:c:S1"), None);
    }

    #[test]
    fn a_domain_of_a_host_drivers_own_reaches_the_record_with_who_made_it() {
        let host = SimHost::builtin("small").unwrap();
        let mut device = host.device("0000:04:00.0".parse().unwrap()).unwrap();
        assert!(!device_facts(&device, &[]).private_domain);
        let node = Some("/dev/vhost-vdpa-0".to_owned());
        let processes = vec!["qemu (77)".to_owned()];
        device.private_domain = Some(PrivateDomain { node, processes });
        let facts = device_facts(&device, &[]);
        assert!(facts.private_domain);
        assert_eq!(facts.processes, ["qemu (77)"]);
    }
}
