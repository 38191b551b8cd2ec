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
            let news = !book.state.is_recorded(&facts) && !unsettled(book, scan, &facts);
            (anew || news).then_some(facts)
        });
        facts.map(Command::Observe).collect()
    }));
    let seen: HashSet<&str> =
        scan.inventory.groups.iter().map(|group| group.stable_id.as_str()).collect();
    for group in book.state.groups() {
        if !seen.contains(group.id.as_str()) && !is_being_made(book, group) {
            commands.push(Command::GroupGone { group: group.id.clone() });
        }
    }
    (commands, identities)
}

/// Whether a group is of virtual functions whose number is being changed: which of them are there
/// is said by how that ends.
fn is_being_made(book: &Book, group: &ownership::Group) -> bool {
    let mut devices = book.state.devices_of(group);
    devices.any(|device| {
        let physical = device.facts.physical_function.as_ref();
        physical
            .and_then(|id| book.state.device(id))
            .is_some_and(|device| device.sriov_op.is_some())
    })
}

/// Whether a scan may have seen a group in the middle of what is being done to it, or before the last
/// look at it: how that ended is known better. A member that came or went is news all the same.
fn unsettled(book: &Book, scan: &Scan, facts: &ownership::GroupFacts) -> bool {
    let Some(group) = book.state.group(&facts.id) else { return false };
    if !group.devices.iter().eq(facts.devices.iter().map(|device| &device.id)) {
        return false;
    }
    let at_work = |id: &dyn fmt::Display| book.open.contains_key(&id.to_string());
    let later = |device: &DeviceId| {
        let look = device.as_str().parse().ok().and_then(|at: PciAddress| book.looked_at.get(&at));
        look.is_some_and(|look| *look > scan.after_looks)
    };
    group.reservations.iter().any(|id| at_work(id))
        || group.devices.iter().any(|device| at_work(device) || later(device))
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
        write_anew(&mut seen, Identity(device, &book.boot.id));
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
    facts.driver_override.clone_from(&device.driver_override);
    facts.reset_peers =
        device.reset_set.iter().map(|peer| DeviceId::from(peer.to_string())).collect();
    facts.resets_peers = device.resets_peers();
    facts.physical_function = device.physical_function.map(|pf| DeviceId::from(pf.to_string()));
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

/// Ids, class and serial, and the number that the kernel gave it on this boot: what tells one device
/// from another at the same address.
struct Identity<'d>(&'d DeviceFacts, &'d str);

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
        )?;
        device.instance.map_or(Ok(()), |instance| write!(f, "{INSTANCE}{}/{instance}", self.1))
    }
}

/// What stands before the boot and the number of a device on it.
const INSTANCE: &str = " on ";

/// Whether a device is the one of which an identity is on record, and was there all the time since.
pub(super) fn goes_on(known: &str, device: &DeviceFacts, boot: &str) -> bool {
    let seen = Identity(device, boot).to_string();
    let instance = split(known).1;
    merge(known, &seen).is_some() && instance.is_some() && instance == split(&seen).1
}

/// The identity to remember; `None` when it is another device. A serial number can't always be
/// read: one that is known stays known. Numbers of different boots can't be compared.
fn merge(known: &str, seen: &str) -> Option<String> {
    let (known, known_instance) = split(known);
    let (seen, seen_instance) = split(seen);
    let (known_ids, known_serial) = known.rsplit_once(':')?;
    let (seen_ids, seen_serial) = seen.rsplit_once(':')?;
    let same_boot = known_instance.zip(seen_instance).filter(|(known, seen)| known.0 == seen.0);
    if known_ids != seen_ids || same_boot.is_some_and(|(known, seen)| known != seen) {
        return None;
    }
    let same = match (known_serial, seen_serial) {
        (_, "") => known,
        ("", _) => seen,
        (known_serial, seen_serial) if known_serial == seen_serial => known,
        _ => return None,
    };
    Some(match seen_instance.or(known_instance) {
        Some((boot, number)) => format!("{same}{INSTANCE}{boot}/{number}"),
        None => same.to_owned(),
    })
}

/// An identity without, and the boot and the number of the device on it where they are known.
fn split(identity: &str) -> (&str, Option<(&str, &str)>) {
    let parts = || {
        let (rest, instance) = identity.rsplit_once(INSTANCE)?;
        Some((rest, instance.split_once('/')?))
    };
    parts().map_or((identity, None), |(rest, instance)| (rest, Some(instance)))
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
    fn a_number_tells_devices_apart_on_one_boot() {
        assert_eq!(merge("a:", "a: on b/1").as_deref(), Some("a: on b/1"));
        assert_eq!(merge("a: on b/1", "a: on b/1").as_deref(), Some("a: on b/1"));
        assert_eq!(merge("a:S on b/1", "a: on b/1").as_deref(), Some("a:S on b/1"));
        assert_eq!(merge("a: on b/1", "a:S on b/1").as_deref(), Some("a:S on b/1"));
        assert_eq!(merge("a:S on b/1", "a:S on b/2"), None);
        assert_eq!(merge("a:S on b/1", "a:S on c/2").as_deref(), Some("a:S on c/2"));
        assert_eq!(merge("a:S on b/1", "a:S").as_deref(), Some("a:S on b/1"));
        assert_eq!(merge("a:S on b/1", "a:T on c/1"), None);
        assert_eq!(merge("a:S on b", "a:S on b").as_deref(), Some("a:S on b"));
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
