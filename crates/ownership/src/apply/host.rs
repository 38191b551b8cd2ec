//! Groups and devices come, change and go.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keep_only_release;
use crate::health::Health;
use crate::ids::{DeviceId, Epoch, GroupId, Label, ReservationId};
use crate::model::{Condition, Ownership, ReservationState, ResetPolicy};
use crate::record::{Device, DeviceFacts, Group, GroupFacts};
use crate::state::State;

impl State {
    pub(super) fn observe(&mut self, facts: &GroupFacts) {
        let known: Vec<DeviceId> =
            self.groups.get(&facts.id).map(|group| group.devices.clone()).unwrap_or_default();
        for id in &known {
            if !facts.devices.iter().any(|device| device.id == *id) {
                self.drop_device(id);
            }
        }
        for device in &facts.devices {
            let elsewhere =
                self.devices.get(&device.id).is_some_and(|known| known.group != facts.id);
            if elsewhere {
                self.drop_device(&device.id);
            }
            let mut record = self.devices.get(&device.id).map_or_else(
                || new_device(&facts.id, device.clone(), self.absent.get(&device.id)),
                |known| Device::clone(known),
            );
            record.facts = device.clone();
            self.absent.remove(&device.id);
            self.devices.insert(device.id.clone(), Arc::new(record));
        }
        let mut group = self
            .groups
            .get(&facts.id)
            .map_or_else(|| new_group(&facts.id, self.epoch_floor), |known| Group::clone(known));
        group.devices = facts.devices.iter().map(|device| device.id.clone()).collect();
        group.foreign_pids.clone_from(&facts.foreign_pids);
        group.foreign.clone_from(&facts.foreign);
        self.groups.insert(facts.id.clone(), Arc::new(group));
        self.refresh(&facts.id);
    }

    pub(super) fn drop_group(&mut self, id: &GroupId) {
        let Some(group) = self.groups.get(id).map(|slot| Group::clone(slot)) else { return };
        for device in &group.devices {
            self.drop_device(device);
        }
        self.epoch_floor = self.epoch_floor.max(group.epoch);
        self.groups.remove(id);
    }

    /// Removes a device. Reservations go on with the others of their devices; one that has none
    /// left is lost.
    pub(super) fn drop_device(&mut self, id: &DeviceId) {
        let Some(device) = self.devices.remove(id) else { return };
        let mut holders = Vec::new();
        if let Some(slot) = self.groups.get_mut(&device.group) {
            let group = Arc::make_mut(slot);
            group.devices.retain(|other| other != id);
            holders.clone_from(&group.reservations);
        }
        let mut left = Device::clone(&device);
        // What comes back, or comes in its place, is looked at anew.
        super::assess(&mut left, &Health::default());
        left.failed_resets = 0;
        for holder in &holders {
            if let Some(label) = self.drop_from_reservation(holder, &device.group, id) {
                left.only_label = Some(label);
            }
        }
        if !left.marks.is_empty() || left.only_label.is_some() {
            left.kernel_dma_op = None;
            left.sriov_op = None;
            left.sriov_baseline = None;
            self.absent.insert(id.clone(), Arc::new(left));
        }
        self.refresh(&device.group);
    }

    /// Answers the label that the device is bound to, if it leaves a reservation unclean.
    fn drop_from_reservation(
        &mut self,
        holder: &ReservationId,
        group: &GroupId,
        device: &DeviceId,
    ) -> Option<Label> {
        let slot = self.reservations.get_mut(holder)?;
        if !slot.devices().any(|other| other == device) {
            return None;
        }
        let reservation = Arc::make_mut(slot);
        let claimed = reservation.claims > 0;
        for target in &mut reservation.targets {
            target.devices.retain(|other| other != device);
        }
        reservation.targets.retain(|target| !target.devices.is_empty());
        reservation.taken.retain(|other| other != device);
        reservation.detail = format!("{device} is gone");
        let unclean = reservation.ever_claimed && reservation.reset_policy != ResetPolicy::None;
        let label = unclean.then(|| reservation.label.clone());
        if reservation.targets.is_empty() {
            reservation.claims = 0;
            reservation.resume = None;
            reservation.state = ReservationState::Lost;
            keep_only_release(reservation);
        } else if claimed {
            reservation.claims = reservation.device_count();
        }
        let still = reservation.targets.iter().any(|target| target.group == *group);
        if !still && let Some(slot) = self.groups.get_mut(group) {
            Arc::make_mut(slot).reservations.retain(|other| other != holder);
        }
        label
    }
}

fn new_group(id: &GroupId, epoch: Epoch) -> Group {
    Group {
        id: id.clone(),
        devices: Vec::new(),
        ownership: Ownership::Free,
        condition: Condition::Ok,
        note: String::new(),
        epoch,
        reservations: Vec::new(),
        foreign_pids: Vec::new(),
        foreign: Vec::new(),
        attached: None,
        drift: false,
    }
}

fn new_device(group: &GroupId, facts: DeviceFacts, before: Option<&Arc<Device>>) -> Device {
    Device {
        group: group.clone(),
        facts,
        marks: before.map_or_else(BTreeMap::new, |before| before.marks.clone()),
        only_label: before.and_then(|before| before.only_label.clone()),
        kernel_dma_op: None,
        cordon: before.and_then(|before| before.cordon.clone()),
        health: Health::default(),
        failed_resets: 0,
        sriov_op: None,
        sriov_baseline: None,
    }
}
