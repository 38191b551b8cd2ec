//! What stands against devices.

use std::sync::Arc;

use crate::health::Health;
use crate::ids::DeviceId;
use crate::model::Condition;
use crate::record::{CordonTerm, Device};
use crate::state::State;

impl State {
    pub(super) fn mark_with(
        &mut self,
        id: &DeviceId,
        condition: Condition,
        why: &str,
        term: Option<&CordonTerm>,
    ) {
        self.on_remembered(id, |device| {
            device.marks.insert(condition, why.to_owned());
            if condition == Condition::Cordoned {
                device.cordon = term.cloned();
            }
        });
    }

    pub(super) fn unmark(&mut self, id: &DeviceId, condition: Condition) {
        self.on_remembered(id, |device| {
            device.marks.remove(&condition);
            match condition {
                Condition::Quarantined => device.only_label = None,
                Condition::Cordoned => device.cordon = None,
                _ => {}
            }
        });
    }

    /// Changes a device, also one that is gone and remembered.
    fn on_remembered(&mut self, id: &DeviceId, change: impl Fn(&mut Device)) {
        self.on_device(id, &change);
        if let Some(slot) = self.absent.get_mut(id) {
            change(Arc::make_mut(slot));
        }
    }
}

/// Takes what the machine shows against a device.
pub(super) fn assess(device: &mut Device, health: &Health) {
    device.health = health.clone();
    device.marks.remove(&Condition::Degraded);
    device.marks.remove(&Condition::Failed);
    let condition = health.condition();
    if condition != Condition::Ok {
        device.marks.insert(condition, health.words());
    }
}
