//! Devices that the host takes away: pulled out, removed by hand, or taken off their VFIO driver.
//!
//! The kernel waits in the driver's removal until nobody has the device open, and tells nobody that
//! it does. So devices with claims are looked at. What the daemon has open of one that is on its way
//! is closed; if another process has it, that is named, and the device is wedged until it closes it.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use berth_host::{HostError, PciAddress};
use berth_ownership::{Command, Condition, DeviceId, Reservation, ReservationId};

use super::{
    engine::Engine,
    job::{Job, address, device_id},
    runtime::lock,
};
use crate::model::{Gone, Snapshot};

/// How often devices with claims are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long the kernel may take once the daemon has closed a device.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long after its driver a device may go.
const GOING: Duration = Duration::from_secs(1);

const STEP: Duration = Duration::from_millis(20);

/// Devices that are being taken away, while they are seen to.
pub(crate) type Leaving = std::sync::Mutex<HashSet<PciAddress>>;

impl Engine {
    /// Looks after devices that the host takes away, for as long as it is polled.
    pub(crate) async fn watch_removals(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let snapshot = self.snapshot();
            let claimed: Vec<_> = snapshot.state.reservations().flat_map(claimed).collect();
            if claimed.is_empty() {
                continue;
            }
            let engine = self.clone();
            let look = move || engine.look_for_removals(&snapshot, claimed);
            if tokio::task::spawn_blocking(look).await.is_err() {
                tracing::error!("a look for devices that are taken away broke off");
            }
        }
    }

    fn look_for_removals(
        &self,
        snapshot: &Snapshot,
        claimed: Vec<(ReservationId, DeviceId, PciAddress)>,
    ) {
        for (id, device, at) in claimed {
            let known = snapshot.state.device(&device);
            let wedged = known.is_some_and(|it| it.marks.contains_key(&Condition::Wedged));
            let waits = !wedged && self.tools().host.unbind_waits(at).unwrap_or(false);
            if !waits || !lock(&self.inner.leaving).insert(at) {
                continue;
            }
            tracing::warn!(device = %at, reservation = %id, "the host takes a device away");
            let name = format!("end of {id} on {at}, which the host takes away");
            let reservation = id.clone();
            self.beside(name, snapshot, &id, move |engine| {
                engine.give_up(&reservation, at);
                lock(&engine.inner.leaving).remove(&at);
            });
        }
    }

    /// Closes what is open here of a device that is on its way.
    fn give_up(&self, id: &ReservationId, at: PciAddress) {
        let tools = self.tools();
        let live = tools.runtime.take_device(at);
        let ours = live.is_some();
        if let Some(live) = live {
            tools.close_device(live);
        }
        let end = Instant::now() + if ours { PATIENCE } else { Duration::ZERO };
        let mut waits = tools.host.unbind_waits(at);
        while waits == Ok(true) && Instant::now() < end {
            std::thread::sleep(STEP);
            waits = tools.host.unbind_waits(at);
        }
        match waits {
            // It is gone, which a message or a scan tells the record.
            Err(HostError::NoDevice(_)) => {}
            Ok(true) => {
                let why = format!("the host takes {at} away, and waits until nobody has it open");
                self.inner.watchdog.still_stuck(at, &why);
            }
            Ok(false) if !self.goes(at) => self.taken(id, at),
            Ok(false) => {}
            Err(error) => tracing::warn!(device = %at, %error, "is it gone?"),
        }
    }

    /// Whether a device without a driver is on its way out: after its driver it goes at once.
    fn goes(&self, at: PciAddress) -> bool {
        let end = Instant::now() + GOING;
        while self.tools().host.unbind_waits(at).is_ok() {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(STEP);
        }
        true
    }

    /// A device lost its driver and stays: what it was reserved for can't go on.
    fn taken(&self, id: &ReservationId, at: PciAddress) {
        let snapshot = self.snapshot();
        let Some(record) = snapshot.state.reservation(id).filter(|record| record.claims > 0) else {
            return;
        };
        let on_vfio = self
            .tools()
            .host
            .device(at)
            .is_ok_and(|facts| facts.driver.as_deref() == Some(facts.vfio_driver.as_str()));
        if on_vfio || !record.devices().any(|device| *device == device_id(at)) {
            return;
        }
        if let Ok(job) = Job::of(&snapshot, id) {
            self.let_go(&job);
        }
        let why = format!("the host took {at} off its VFIO driver");
        self.told(Command::HoldLost { reservation: id.clone(), why });
        if let Err(error) = self.tools().records.changed(&[at]) {
            tracing::warn!(device = %at, %error, "a changed driver is unrecorded");
        }
    }

    /// Closes what is open of devices that are gone, and the holds of groups that went with them. The
    /// tables are without them at once: a group that comes later may have the same number.
    pub(crate) fn forget(&self, gone: &[Gone]) {
        let mut tables = self.tools().runtime.tables();
        let devices: Vec<_> =
            gone.iter().filter_map(|it| tables.devices.remove(&it.device)).collect();
        let holds: Vec<_> = gone
            .iter()
            .filter_map(|it| it.group.and_then(|number| tables.holds.remove(&number)))
            .collect();
        drop(tables);
        let engine = self.clone();
        self.inner.scheduler.submit(
            "end of devices that are gone".to_owned(),
            Vec::new(),
            move || {
                // What is left of a device that is gone takes no time to close, but the store may.
                for live in devices {
                    engine.tools().close_device(live);
                }
                for live in holds {
                    engine.tools().close_hold(live);
                }
                engine.tools().sweep();
            },
        );
    }
}

/// The devices that a reservation claims, while nothing else is done with them.
fn claimed(record: &Reservation) -> Vec<(ReservationId, DeviceId, PciAddress)> {
    if record.claims == 0 || record.pending.is_some() {
        return Vec::new();
    }
    let devices = record.devices();
    devices.filter_map(|id| Some((record.id.clone(), id.clone(), address(id)?))).collect()
}
