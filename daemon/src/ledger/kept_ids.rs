//! Groups that a device joined or left. A group's id is made of its members' addresses, so that it would be
//! another one by then, and what is reserved of it lost, though the kernel's group and whoever has it are
//! the same. So a group keeps its id while something of it is reserved.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use berth_host::{Inventory, PciAddress};
use berth_ownership::{DeviceId, Group, GroupId, State};
use imbl::OrdMap;

use super::facts::goes_on;
use crate::model::Snapshot;

/// What is on record of the machine before a scan.
pub(super) struct Known<'k> {
    pub(super) state: &'k State,
    pub(super) identities: &'k OrdMap<DeviceId, Arc<str>>,
    pub(super) boot: &'k str,
}

impl<'k> Known<'k> {
    /// What is published.
    pub(super) fn of(snapshot: &'k Snapshot) -> Self {
        let Snapshot { state, identities, boot, .. } = snapshot;
        Self { state, identities, boot: &boot.id }
    }

    /// Gives groups of a scan the ids that they are reserved by.
    ///
    /// # Kernel
    /// `iommu_group_add_device`: a device that comes may join a group that somebody has, and changes
    /// nothing for them. A group lasts until its last device goes; it never becomes two.
    pub(super) fn keep_ids(&self, inventory: &mut Inventory) {
        let found: HashSet<&str> =
            inventory.groups.iter().map(|group| group.stable_id.as_str()).collect();
        let reserved = self.state.groups().filter(|group| !group.reservations.is_empty());
        let missing: Vec<&Group> =
            reserved.filter(|group| !found.contains(group.id.as_str())).collect();
        if missing.is_empty() {
            return;
        }
        let homes = self.homes(inventory);
        let same: Vec<(usize, &Group)> = missing
            .into_iter()
            .filter_map(|group| Some((self.find(group, inventory, &homes)?, group)))
            .collect();
        for (at, group) in same {
            if let Some(found) = inventory.groups.get_mut(at) {
                found.stable_id = group.id.to_string();
            }
        }
    }

    /// The devices of groups that aren't on record, each with which of the inventory's groups it is in.
    fn homes(&self, inventory: &Inventory) -> HashMap<PciAddress, usize> {
        let groups = inventory.groups.iter().enumerate();
        groups
            .filter(|(_, group)| self.state.group(&GroupId::new(&group.stable_id)).is_none())
            .flat_map(|(at, group)| group.members.iter().map(move |member| (*member, at)))
            .collect()
    }

    /// Which group is the recorded one: it has a member that was in it all the time, or just the members
    /// that are on record, as after a reboot.
    fn find(
        &self,
        group: &Group,
        inventory: &Inventory,
        homes: &HashMap<PciAddress, usize>,
    ) -> Option<usize> {
        group.devices.iter().find_map(|id| {
            let address: PciAddress = id.as_str().parse().ok()?;
            let at = *homes.get(&address)?;
            let is_same = self.stayed(id, inventory, address)
                || is_of(group, &inventory.groups.get(at)?.members);
            is_same.then_some(at)
        })
    }

    fn stayed(&self, id: &DeviceId, inventory: &Inventory, address: PciAddress) -> bool {
        let devices = &inventory.devices;
        let device = devices.binary_search_by_key(&address, |device| device.address).ok();
        let known = self.identities.get(id).zip(device.and_then(|at| devices.get(at)));
        known.is_some_and(|(known, device)| goes_on(known, device, self.boot))
    }
}

/// Whether these are all the members of a group on record, and no others.
fn is_of(group: &Group, members: &[PciAddress]) -> bool {
    let members = members.iter().map(|member| DeviceId::from(member.to_string()));
    members.eq(group.devices.iter().cloned())
}
