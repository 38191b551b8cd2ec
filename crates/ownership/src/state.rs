//! The state: groups, devices, reservations, contexts, domains. Cheap to clone.

use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::ids::{ContextId, DeviceId, DomainId, Epoch, GroupId, ReservationId, Time};
use crate::invariants;
use crate::record::{Context, Device, Domain, Group, Reservation};
use crate::table::Table;

/// Everything that decisions rest on.
///
/// A clone shares all records with its original, so that a snapshot can be published after each
/// change. It changes through [`State::apply`] alone.
#[derive(Clone, Debug)]
pub struct State {
    pub(crate) table: Arc<Table>,
    pub(crate) groups: OrdMap<GroupId, Arc<Group>>,
    pub(crate) devices: OrdMap<DeviceId, Arc<Device>>,
    pub(crate) absent: OrdMap<DeviceId, Arc<Device>>,
    pub(crate) reservations: OrdMap<ReservationId, Arc<Reservation>>,
    pub(crate) contexts: OrdMap<ContextId, Arc<Context>>,
    pub(crate) domains: OrdMap<DomainId, Arc<Domain>>,
    pub(crate) epoch_floor: Epoch,
}

/// The parts of a state, to be stored and restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// The groups.
    pub groups: Vec<Group>,
    /// The devices.
    pub devices: Vec<Device>,
    /// Devices that are gone, but that something stands against.
    pub absent: Vec<Device>,
    /// The reservations, released ones included.
    pub reservations: Vec<Reservation>,
    /// The contexts.
    pub contexts: Vec<Context>,
    /// The domains.
    pub domains: Vec<Domain>,
    /// No epoch below this is given again.
    pub epoch_floor: Epoch,
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// A state that knows nothing, under the standard table.
    pub fn new() -> Self {
        Self::with_table(Table::standard())
    }

    /// A state that knows nothing, under another table: for tests that flip a cell.
    pub fn with_table(table: Table) -> Self {
        Self {
            table: Arc::new(table),
            groups: OrdMap::new(),
            devices: OrdMap::new(),
            absent: OrdMap::new(),
            reservations: OrdMap::new(),
            contexts: OrdMap::new(),
            domains: OrdMap::new(),
            epoch_floor: Epoch::default(),
        }
    }

    /// The state of stored parts.
    ///
    /// # Errors
    ///
    /// The invariant that the parts break, in words.
    pub fn restore(parts: Parts) -> Result<Self, String> {
        Self::restore_with_table(parts, Table::standard())
    }

    /// The state of stored parts under another table.
    ///
    /// # Errors
    ///
    /// The invariant that the parts break, in words.
    pub fn restore_with_table(parts: Parts, table: Table) -> Result<Self, String> {
        let mut state = Self::with_table(table);
        state.epoch_floor = parts.epoch_floor;
        for group in parts.groups {
            state.groups.insert(group.id.clone(), Arc::new(group));
        }
        for device in parts.devices {
            state.devices.insert(device.facts.id.clone(), Arc::new(device));
        }
        for device in parts.absent {
            state.absent.insert(device.facts.id.clone(), Arc::new(device));
        }
        for reservation in parts.reservations {
            state.reservations.insert(reservation.id.clone(), Arc::new(reservation));
        }
        for context in parts.contexts {
            state.contexts.insert(context.id.clone(), Arc::new(context));
        }
        for domain in parts.domains {
            state.domains.insert(domain.id.clone(), Arc::new(domain));
        }
        invariants::check(&state)?;
        Ok(state)
    }

    /// The parts of the state.
    pub fn parts(&self) -> Parts {
        Parts {
            groups: self.groups().cloned().collect(),
            devices: self.devices().cloned().collect(),
            absent: self.absent.values().map(|device| Device::clone(device)).collect(),
            reservations: self.reservations().cloned().collect(),
            contexts: self.contexts().cloned().collect(),
            domains: self.domains().cloned().collect(),
            epoch_floor: self.epoch_floor,
        }
    }

    /// The table that decisions follow.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The groups, by id.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values().map(AsRef::as_ref)
    }

    /// One group.
    pub fn group(&self, id: &GroupId) -> Option<&Group> {
        self.groups.get(id).map(AsRef::as_ref)
    }

    /// The devices, by address.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values().map(AsRef::as_ref)
    }

    /// One device.
    pub fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id).map(AsRef::as_ref)
    }

    /// Devices that are gone, but that something stands against, by address.
    pub fn absent(&self) -> impl Iterator<Item = &Device> {
        self.absent.values().map(AsRef::as_ref)
    }

    /// The devices of a group.
    pub fn devices_of<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Device> {
        group.devices.iter().filter_map(|id| self.device(id))
    }

    /// The reservations, by id; released ones too, until they are forgotten.
    pub fn reservations(&self) -> impl Iterator<Item = &Reservation> {
        self.reservations.values().map(AsRef::as_ref)
    }

    /// One reservation.
    pub fn reservation(&self, id: &ReservationId) -> Option<&Reservation> {
        self.reservations.get(id).map(AsRef::as_ref)
    }

    /// The reservations that hold a group.
    pub fn reservations_of<'a>(
        &'a self,
        group: &'a Group,
    ) -> impl Iterator<Item = &'a Reservation> {
        group.reservations.iter().filter_map(|id| self.reservation(id))
    }

    /// The contexts, by id.
    pub fn contexts(&self) -> impl Iterator<Item = &Context> {
        self.contexts.values().map(AsRef::as_ref)
    }

    /// One context.
    pub fn context(&self, id: &ContextId) -> Option<&Context> {
        self.contexts.get(id).map(AsRef::as_ref)
    }

    /// The domains, by id.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.domains.values().map(AsRef::as_ref)
    }

    /// One domain.
    pub fn domain(&self, id: &DomainId) -> Option<&Domain> {
        self.domains.get(id).map(AsRef::as_ref)
    }

    /// The number of claims on a group. 0 is free, also while reservations hold it.
    pub fn owner_cnt(&self, group: &GroupId) -> u32 {
        self.group(group).map_or(0, |group| group.ownership.owner_cnt())
    }

    /// The reservations whose lease has ended: [`crate::Command::Expire`] is due for each.
    pub fn due(&self, now: &Time) -> Vec<ReservationId> {
        self.reservations()
            .filter(|reservation| reservation.is_due(now))
            .map(|reservation| reservation.id.clone())
            .collect()
    }

    /// No epoch below this is given again, whatever the groups say.
    pub fn epoch_floor(&self) -> Epoch {
        self.epoch_floor
    }

    /// The reservation that has this very device.
    pub fn device_reservation(&self, device: &Device) -> Option<&Reservation> {
        let group = self.group(&device.group)?;
        self.reservations_of(group)
            .find(|reservation| reservation.devices().any(|id| *id == device.facts.id))
    }
}

impl Reservation {
    /// Whether its lease has ended and that has not been recorded yet.
    pub fn is_due(&self, now: &Time) -> bool {
        let unrecorded = match self.state {
            crate::ReservationState::Reserved
            | crate::ReservationState::Handed
            | crate::ReservationState::Held => true,
            crate::ReservationState::Preparing
            | crate::ReservationState::Expired
            | crate::ReservationState::Draining
            | crate::ReservationState::Lost
            | crate::ReservationState::Released => false,
        };
        unrecorded
            && self.pending.is_none()
            && self.expires.as_ref().is_some_and(|expires| expires.is_past(now))
    }
}
