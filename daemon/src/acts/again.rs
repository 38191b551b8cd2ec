//! A holder that fetches what it has: nothing changes, so that nobody has to be asked.

use std::sync::Arc;

use berth_ownership::{
    Delivery, Epoch, HolderProcess, Reservation, ReservationId, ReservationState,
};

use super::{engine::Engine, fetch::HandOver};
use crate::model::{ApiError, Snapshot};

/// What the recorded holder gets once more.
#[derive(Debug)]
pub(crate) struct Again {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) holder: HolderProcess,
    pub(crate) handed: Result<HandOver, ApiError>,
}

impl Engine {
    /// Duplicates for the process that is the holder already, and is watched. `None` where it isn't,
    /// or something else has to be found out; [`Engine::hand_over`] does. Doesn't block.
    pub(crate) fn hand_over_again(
        &self,
        id: &ReservationId,
        uid: u32,
        epoch: Option<Epoch>,
        identity: u64,
        most: usize,
    ) -> Option<Again> {
        let is_holder = |record: &Reservation| {
            let process = record.process.as_ref()?;
            let fits = is_for(record, uid)
                && record.delivery == Delivery::Bound
                && record.state == ReservationState::Held
                && record.pending.is_none()
                && epoch.is_none_or(|epoch| epoch == record.epoch)
                && self.inner.holders.watched.is(id, process, identity);
            fits.then(|| process.clone())
        };
        // Who asks again and again would else keep a release waiting for what is sent.
        is_holder(self.snapshot().state.reservation(id)?)?;
        let sending = self.tools().runtime.send(id);
        // A release that is not in this snapshot begins after it was published, and waits.
        let snapshot = self.snapshot();
        let record = snapshot.state.reservation(id)?;
        let holder = is_holder(record)?;
        let items = self.duplicates(&snapshot, record);
        if items.as_ref().is_ok_and(|items| items.len() > most) {
            return None;
        }
        let handed = items.map(|items| HandOver { items, sending, began: false });
        Some(Again { holder, handed, snapshot })
    }
}

fn is_for(record: &Reservation, uid: u32) -> bool {
    let identity = record.for_identity.strip_prefix("uid:");
    identity.and_then(|uid| uid.parse().ok()) == Some(uid)
}
