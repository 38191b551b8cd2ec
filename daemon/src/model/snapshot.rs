//! What is published after each commit. Reads are answered from it alone.

use std::{collections::HashMap, sync::Arc};

use berth_host::{DeviceFacts, GroupFacts, HostUse, Inventory, PciAddress};
use berth_ownership::{DeviceId, Group, GroupId, Refusal, ReservationId, State};
use imbl::OrdMap;

use super::{Baseline, GivenBack, Intent, ShownHealth};
use crate::view::Boot;

/// What is known of a reservation beside the ownership record.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Extra {
    /// Why the last order failed.
    pub last_failure: Option<Refusal>,
    /// How devices were given back.
    pub given_back: Vec<GivenBack>,
}

/// What the host does with devices, as last looked at.
pub type HostUses = HashMap<PciAddress, Vec<HostUse>>;

/// A device that was looked at after the last scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// What it is like.
    pub facts: DeviceFacts,
    /// What the host does with it.
    pub uses: Vec<HostUse>,
}

/// An inventory with ways to find things in it.
#[derive(Debug, Default)]
pub struct InventoryIndex {
    device: HashMap<PciAddress, usize>,
    group: HashMap<String, usize>,
    number: HashMap<u32, usize>,
    /// What the host does with devices.
    pub uses: HostUses,
}

impl InventoryIndex {
    /// The index of an inventory.
    #[must_use]
    pub fn new(inventory: &Inventory, uses: HostUses) -> Self {
        let mut index = Self { uses, ..Self::default() };
        for (at, device) in inventory.devices.iter().enumerate() {
            index.device.insert(device.address, at);
        }
        for (at, group) in inventory.groups.iter().enumerate() {
            index.group.insert(group.stable_id.clone(), at);
            index.number.insert(group.number, at);
        }
        index
    }
}

/// State and inventory at one sequence number.
#[derive(Debug)]
pub struct Snapshot {
    /// Who owns what.
    pub state: Arc<State>,
    /// The machine, as last scanned.
    pub inventory: Arc<Inventory>,
    /// Ways to find things in the inventory.
    pub index: Arc<InventoryIndex>,
    /// Devices that were looked at since the scan: they outrank the inventory.
    pub fresh: OrdMap<PciAddress, Arc<Looked>>,
    /// What devices show of their health.
    pub health: OrdMap<PciAddress, Arc<ShownHealth>>,
    /// How often devices were looked at apart from scans.
    pub looks: u64,
    /// The last event that is in the state.
    pub seq: u64,
    /// This boot, and how its clock relates to wall time.
    pub boot: Boot,
    /// Failures and resets by reservation.
    pub extras: OrdMap<ReservationId, Arc<Extra>>,
    /// What touched devices had before.
    pub baselines: OrdMap<DeviceId, Arc<Baseline>>,
    /// What told each device from others at its address, when it was last seen.
    pub identities: OrdMap<DeviceId, Arc<str>>,
    /// Intents without an outcome.
    pub intents: OrdMap<u64, Arc<Intent>>,
}

impl Snapshot {
    /// The facts of a device.
    #[must_use]
    pub fn device(&self, address: PciAddress) -> Option<&DeviceFacts> {
        if let Some(looked) = self.fresh.get(&address) {
            return Some(&looked.facts);
        }
        self.index.device.get(&address).and_then(|at| self.inventory.devices.get(*at))
    }

    /// The facts of all devices, by address.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceFacts> {
        self.inventory
            .devices
            .iter()
            .map(|device| self.fresh.get(&device.address).map_or(device, |looked| &looked.facts))
    }

    /// What the host does with a device, as last looked at.
    #[must_use]
    pub fn uses_of(&self, address: PciAddress) -> &[HostUse] {
        if let Some(looked) = self.fresh.get(&address) {
            return &looked.uses;
        }
        self.index.uses.get(&address).map(Vec::as_slice).unwrap_or_default()
    }

    /// The facts of a device by its id in the record.
    #[must_use]
    pub fn device_by_id(&self, id: &DeviceId) -> Option<&DeviceFacts> {
        id.as_str().parse().ok().and_then(|address| self.device(address))
    }

    /// The facts of a group by its stable id.
    #[must_use]
    pub fn group(&self, id: &GroupId) -> Option<&GroupFacts> {
        self.index.group.get(id.as_str()).and_then(|at| self.inventory.groups.get(*at))
    }

    /// The facts of a group by the kernel's number.
    #[must_use]
    pub fn group_by_number(&self, number: u32) -> Option<&GroupFacts> {
        self.index.number.get(&number).and_then(|at| self.inventory.groups.get(*at))
    }

    /// The kernel's number of a group now.
    #[must_use]
    pub fn group_number(&self, id: &GroupId) -> Option<u32> {
        self.group(id).map(|group| group.number)
    }

    /// The group of a device.
    #[must_use]
    pub fn group_of(&self, address: PciAddress) -> Option<&Group> {
        let number = self.device(address)?.group?;
        let facts = self.group_by_number(number)?;
        self.state.group(&GroupId::new(&facts.stable_id))
    }

    /// What a device had before it was touched.
    #[must_use]
    pub fn baseline(&self, device: &DeviceId) -> Option<&Baseline> {
        self.baselines.get(device).map(AsRef::as_ref)
    }

    /// The intent that is open for a reservation.
    #[must_use]
    pub fn intent_of(&self, reservation: &ReservationId) -> Option<&Intent> {
        self.intents
            .values()
            .map(AsRef::as_ref)
            .find(|intent| intent.reservation.as_ref() == Some(reservation))
    }
}
