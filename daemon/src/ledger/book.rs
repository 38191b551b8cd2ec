//! All that the ledger knows. A clone shares everything with its original.

use std::sync::Arc;

use berth_host::{Inventory, PciAddress};
use berth_ownership::{DeviceId, Epoch, ReservationId, ReservationState, State, Table};
use berth_uapi::VfToken;
use imbl::{OrdMap, Vector};

use super::{Clock, kept_ids::Known};
use crate::{
    model::{AnswerOf, Baseline, Extra, Intent, InventoryIndex, Looked, ShownHealth, Snapshot},
    store::{HistoryLost, Loaded, StoreError},
    view::Boot,
};

/// All that the ledger knows, at one sequence number.
#[derive(Debug, Clone)]
pub(super) struct Book {
    pub(super) state: State,
    pub(super) seq: u64,
    pub(super) extras: OrdMap<ReservationId, Arc<Extra>>,
    pub(super) baselines: OrdMap<DeviceId, Arc<Baseline>>,
    /// Of physical functions. They are never published.
    pub(super) vf_tokens: OrdMap<DeviceId, VfToken>,
    pub(super) identities: OrdMap<DeviceId, Arc<str>>,
    pub(super) intents: OrdMap<u64, Arc<Intent>>,
    /// Open intents by the reservation or device that they are for.
    pub(super) open: OrdMap<String, u64>,
    /// Steps that were noted, by intent.
    pub(super) steps: OrdMap<u64, u64>,
    /// What requests are about that wait for an intent.
    pub(super) waiting: OrdMap<u64, AnswerOf>,
    pub(super) last_intent: u64,
    /// Released reservations that can still be read, oldest first.
    pub(super) released: Vector<ReservationId>,
    pub(super) inventory: Arc<Inventory>,
    pub(super) index: Arc<InventoryIndex>,
    pub(super) fresh: OrdMap<PciAddress, Arc<Looked>>,
    /// What devices show of their health.
    pub(super) health: OrdMap<PciAddress, Arc<ShownHealth>>,
    /// How often devices were looked at apart from scans.
    pub(super) looks: u64,
    /// Which of these looks was the last at a device, where no scan that began later was taken.
    pub(super) looked_at: OrdMap<PciAddress, u64>,
    pub(super) boot: Boot,
    pub(super) oldest_seq: u64,
    /// That the record was begun anew, until the machine was looked at.
    pub(super) history_lost: Option<Arc<HistoryLost>>,
}

impl Book {
    /// The book of what was stored.
    pub(super) fn restore(
        loaded: &mut Loaded,
        clock: &Clock,
        table: Table,
    ) -> Result<Self, StoreError> {
        if let Some(lost) = &loaded.history_lost {
            // What was given before isn't given again.
            let floor = &mut loaded.parts.epoch_floor;
            *floor = (*floor).max(Epoch(lost.at_unix_ms));
            loaded.last_seq = loaded.last_seq.max(lost.at_unix_ms);
            loaded.last_intent = loaded.last_intent.max(lost.at_unix_ms);
        }
        let parts = std::mem::take(&mut loaded.parts);
        let state = State::restore_with_table(parts, table)
            .map_err(|message| StoreError::Row { table: "records", message })?;
        let mut released: Vec<_> = state
            .reservations()
            .filter(|record| record.state == ReservationState::Released)
            .map(|record| (record.created_ms, record.id.clone()))
            .collect();
        released.sort();
        let mut book = Self {
            state,
            seq: loaded.last_seq,
            extras: OrdMap::new(),
            baselines: OrdMap::new(),
            vf_tokens: OrdMap::new(),
            identities: OrdMap::new(),
            intents: OrdMap::new(),
            open: OrdMap::new(),
            steps: OrdMap::new(),
            waiting: loaded.waiting.drain(..).collect(),
            last_intent: loaded.last_intent,
            released: released.into_iter().map(|(_, id)| id).collect(),
            inventory: Arc::default(),
            index: Arc::default(),
            fresh: OrdMap::new(),
            health: OrdMap::new(),
            looks: 0,
            looked_at: OrdMap::new(),
            boot: clock.boot(None),
            oldest_seq: loaded.oldest_seq,
            history_lost: loaded.history_lost.take().map(Arc::new),
        };
        for (id, extra) in loaded.extras.drain(..) {
            book.extras.insert(id.into(), Arc::new(extra));
        }
        for baseline in loaded.baselines.drain(..) {
            book.baselines.insert(baseline.device.clone(), Arc::new(baseline));
        }
        for (address, token) in loaded.vf_tokens.drain(..) {
            book.vf_tokens.insert(address.into(), token);
        }
        for (address, identity) in loaded.identities.drain(..) {
            book.identities.insert(address.into(), identity.into());
        }
        for open in &loaded.intents {
            let steps = u64::try_from(open.steps.len()).unwrap_or(u64::MAX);
            book.steps.insert(open.intent.id, steps);
            book.insert_intent(open.intent.clone());
        }
        Ok(book)
    }

    pub(super) fn insert_intent(&mut self, intent: Intent) {
        self.open.insert(key(&intent), intent.id);
        self.intents.insert(intent.id, Arc::new(intent));
    }

    pub(super) fn remove_intent(&mut self, id: u64) {
        if let Some(intent) = self.intents.remove(&id) {
            let key = key(&intent);
            if self.open.get(&key) == Some(&id) {
                self.open.remove(&key);
            }
        }
        self.steps.remove(&id);
    }

    /// What is published.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: Arc::new(self.state.clone()),
            inventory: Arc::clone(&self.inventory),
            index: Arc::clone(&self.index),
            fresh: self.fresh.clone(),
            health: self.health.clone(),
            looks: self.looks,
            seq: self.seq,
            boot: self.boot.clone(),
            extras: self.extras.clone(),
            baselines: self.baselines.clone(),
            identities: self.identities.clone(),
            intents: self.intents.clone(),
        }
    }

    /// What a scan is compared with.
    pub(super) fn known(&self) -> Known<'_> {
        Known { state: &self.state, identities: &self.identities, boot: &self.boot.id }
    }
}

/// The reservation or device that an intent is for.
pub(super) fn key(intent: &Intent) -> String {
    match (&intent.reservation, intent.body.device()) {
        (Some(reservation), _) => reservation.to_string(),
        (None, Some(device)) => device.to_string(),
        (None, None) => String::new(),
    }
}
