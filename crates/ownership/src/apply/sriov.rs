//! SR-IOV of a physical function changes.

use crate::event::Event;
use crate::state::State;

impl State {
    pub(super) fn sriov(&mut self, event: &Event) {
        match event {
            Event::SriovStarted { device, op, baseline } => self.on_device(device, |device| {
                device.sriov_op = Some(*op);
                device.sriov_baseline = Some(baseline.clone());
            }),
            Event::SriovChanged { device, now } => self.on_device(device, |device| {
                device.sriov_op = None;
                device.sriov_baseline.take_if(|before| before.was == *now);
            }),
            Event::SriovFailed { device, undone, .. } => self.on_device(device, |device| {
                let from = device.sriov_op.take().map(|op| op.from).filter(|_| *undone);
                device.sriov_baseline.take_if(|before| Some(before.was) == from);
            }),
            _ => {}
        }
    }
}
