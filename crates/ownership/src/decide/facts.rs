//! Facts: what the host, the kernel or an operator reports. They are recorded, not refused, but
//! for what is not there.

use super::Decision;
use crate::command::Command;
use crate::event::Event;
use crate::ids::{DeviceId, Expiry, GroupId, ReservationId, Time};
use crate::model::ReservationState;
use crate::reason::Reason;
use crate::record::{Device, GroupFacts, Reservation};
use crate::refusal::Refusal;
use crate::state::State;
use crate::table::{LifeChange, Order};

impl State {
    /// Whether a group is as it was observed last, so that observing it again changes nothing.
    pub fn is_recorded(&self, facts: &GroupFacts) -> bool {
        self.group(&facts.id).is_some_and(|group| {
            group.foreign_pids == facts.foreign_pids
                && group.foreign == facts.foreign
                && group.devices.len() == facts.devices.len()
                && self.devices_of(group).map(|device| &device.facts).eq(&facts.devices)
        })
    }

    /// Devices that vanished from the group, then the group as it is, if it changed.
    pub(super) fn decide_observe(&self, facts: &GroupFacts) -> Vec<Event> {
        if self.is_recorded(facts) {
            return Vec::new();
        }
        let known = self.group(&facts.id).into_iter().flat_map(|group| &group.devices);
        known
            .filter(|id| !facts.devices.iter().any(|device| device.id == **id))
            .map(|id| Event::DeviceGone { device: id.clone() })
            .chain([Event::GroupObserved { facts: facts.clone() }])
            .collect()
    }

    /// Its devices, each with what that means for who has it, then the group.
    pub(super) fn decide_group_gone(&self, group: &GroupId) -> Vec<Event> {
        let Some(known) = self.group(group) else { return Vec::new() };
        let devices = known.devices.iter().map(|id| Event::DeviceGone { device: id.clone() });
        devices.chain([Event::GroupGone { group: group.clone() }]).collect()
    }

    pub(super) fn decide_device_gone(&self, device: &DeviceId) -> Vec<Event> {
        let known = self.devices.contains_key(device);
        known.then(|| Event::DeviceGone { device: device.clone() }).into_iter().collect()
    }

    pub(super) fn decide_fact(&self, cmd: &Command, now: &Time) -> Decision {
        match cmd {
            Command::BindSeen { reservation, process } => {
                self.fact(reservation, Order::BindSeen, |record, _| {
                    let handed = ReservationState::Handed;
                    let waits = record.state == handed || record.resume == Some(handed);
                    waits.then(|| Event::BindSeen {
                        reservation: record.id.clone(),
                        process: process.clone(),
                    })
                })
            }
            Command::HolderGone { reservation } => {
                let gone = self.fact(reservation, Order::HolderGone, |record, change| {
                    (change == LifeChange::Reserved).then(|| Event::HolderGone {
                        reservation: record.id.clone(),
                        expires: lease_without_holder(record, now),
                    })
                })?;
                Ok(self.with_its_holder(self.find(reservation)?, gone.into_iter().next(), now))
            }
            Command::HolderMoved { reservation, process } => {
                self.fact(reservation, Order::HolderMoved, |record, change| {
                    let drains = change == LifeChange::Drains && record.claims > 0;
                    drains.then(|| Event::HolderMoved {
                        reservation: record.id.clone(),
                        process: process.clone(),
                    })
                })
            }
            Command::HolderPassed { reservation, process } => {
                self.fact(reservation, Order::HolderPassed, |record, change| {
                    let passes = change == LifeChange::Stays && record.claims > 0;
                    passes.then(|| Event::HolderPassed {
                        reservation: record.id.clone(),
                        process: process.clone(),
                    })
                })
            }
            Command::DetachedByRestart { reservation, why } => {
                let detached = self.fact(reservation, Order::Restarted, |record, _| {
                    let expires = lease_on_this_boot(record, now);
                    let moot = record.claims == 0 && expires == record.expires;
                    let live = record.state != ReservationState::Released
                        && record.state != ReservationState::Lost;
                    (live && !moot).then(|| Event::DetachedByRestart {
                        reservation: record.id.clone(),
                        why: why.clone(),
                        expires,
                    })
                })?;
                Ok(self.with_its_holder(self.find(reservation)?, detached.into_iter().next(), now))
            }
            Command::HoldLost { reservation, why } => {
                self.fact(reservation, Order::HoldLost, |record, change| {
                    (change == LifeChange::Lost).then(|| Event::HoldLost {
                        reservation: record.id.clone(),
                        why: why.clone(),
                    })
                })
            }
            _ => Ok(Vec::new()),
        }
    }

    fn fact(
        &self,
        id: &ReservationId,
        order: Order,
        event: impl FnOnce(&Reservation, LifeChange) -> Option<Event>,
    ) -> Decision {
        let reservation = self.find(id)?;
        let change = self.life(reservation, order)?;
        Ok(event(reservation, change).into_iter().collect())
    }

    pub(super) fn find_device(&self, id: &DeviceId) -> Result<&Device, Box<Refusal>> {
        self.device(id)
            .ok_or_else(|| Refusal::new(Reason::NotFound, id, format!("no device is called {id}")))
    }
}

/// A lease that has ended stays ended; another begins anew as the holder goes.
fn lease_without_holder(reservation: &Reservation, now: &Time) -> Option<Expiry> {
    if reservation.state == ReservationState::Expired {
        return reservation.expires.clone();
    }
    reservation.ttl_ms.map(|ttl_ms| Expiry::after(now, ttl_ms))
}

/// Boot time can't be compared across boots: on another boot a lease begins anew.
fn lease_on_this_boot(reservation: &Reservation, now: &Time) -> Option<Expiry> {
    match (&reservation.expires, reservation.ttl_ms) {
        (Some(expires), Some(ttl_ms)) if expires.boot_id != now.boot_id => {
            Some(Expiry::after(now, ttl_ms))
        }
        (expires, _) => expires.clone(),
    }
}
