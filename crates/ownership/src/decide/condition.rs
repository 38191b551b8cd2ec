//! What stands against devices: cordons, what the machine shows, what was not given back clean.

use super::Decision;
use crate::event::Event;
use crate::health::Health;
use crate::ids::{DeviceId, Expiry, Time};
use crate::model::Condition;
use crate::record::{CordonTerm, Device};
use crate::state::State;

impl State {
    /// The devices whose cordon has to be looked at: its time is over, or was of another boot.
    pub fn due_cordons(&self, now: &Time) -> Vec<DeviceId> {
        let due = |device: &&Device| device.cordon.as_ref().is_some_and(|term| is_due(term, now));
        self.devices().chain(self.absent()).filter(due).map(|it| it.facts.id.clone()).collect()
    }

    /// The device, also one that is gone and remembered.
    fn remembered(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id).or_else(|| self.absent.get(id)).map(AsRef::as_ref)
    }

    pub(super) fn mark(&self, id: &DeviceId, condition: Condition, why: &str) -> Decision {
        let device = self.find_device(id)?;
        if device.marks.get(&condition).is_some_and(|known| known == why) {
            return Ok(Vec::new());
        }
        let why = why.to_owned();
        Ok(vec![Event::Marked { device: id.clone(), condition, why, term: None }])
    }

    pub(super) fn unmark_device(&self, id: &DeviceId, condition: Condition, why: &str) -> Decision {
        let device = match self.remembered(id) {
            Some(device) => device,
            None => self.find_device(id)?,
        };
        let bound = condition == Condition::Quarantined && device.only_label.is_some();
        if !device.marks.contains_key(&condition) && !bound {
            return Ok(Vec::new());
        }
        Ok(vec![Event::Unmarked { device: id.clone(), condition, why: why.to_owned() }])
    }

    pub(super) fn cordon(
        &self,
        id: &DeviceId,
        why: &str,
        ttl_ms: Option<u64>,
        now: &Time,
    ) -> Decision {
        let device = self.find_device(id)?;
        let same = device.marks.get(&Condition::Cordoned).is_some_and(|known| known == why);
        if same && ttl_ms.is_none() && device.cordon.is_none() {
            return Ok(Vec::new());
        }
        Ok(vec![cordoned(id, why, ttl_ms, now)])
    }

    /// Ends a cordon whose time is over. Boot time can't be compared across boots: on another boot it
    /// begins anew, as leases do.
    pub(super) fn end_cordon(&self, id: &DeviceId, now: &Time) -> Vec<Event> {
        let Some(device) = self.remembered(id) else { return Vec::new() };
        let Some(term) = device.cordon.as_ref().filter(|term| is_due(term, now)) else {
            return Vec::new();
        };
        let condition = Condition::Cordoned;
        if term.expires.is_past(now) {
            let why = "its time is over".to_owned();
            return vec![Event::Unmarked { device: id.clone(), condition, why }];
        }
        let why = device.marks.get(&condition).map(String::as_str).unwrap_or_default();
        vec![cordoned(id, why, Some(term.ttl_ms), now)]
    }

    pub(super) fn assess(&self, id: &DeviceId, health: &Health) -> Decision {
        let device = self.find_device(id)?;
        if device.health == *health {
            return Ok(Vec::new());
        }
        Ok(vec![Event::Assessed { device: id.clone(), health: health.clone() }])
    }
}

fn cordoned(id: &DeviceId, why: &str, ttl_ms: Option<u64>, now: &Time) -> Event {
    let term = |ttl_ms| CordonTerm { ttl_ms, expires: Expiry::after(now, ttl_ms) };
    Event::Marked {
        device: id.clone(),
        condition: Condition::Cordoned,
        why: why.to_owned(),
        term: ttl_ms.map(term),
    }
}

fn is_due(term: &CordonTerm, now: &Time) -> bool {
    term.expires.boot_id != now.boot_id || term.expires.is_past(now)
}
