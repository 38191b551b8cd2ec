//! [`Records`] over the ledger.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use berth_host::{Host, Inventory, PciAddress};
use berth_ownership::Command;
use tokio::runtime::Handle;

use super::{records::Records, runtime::lock};
use crate::{
    ledger::{LedgerHandle, Scan},
    model::{ApiError, Baseline, Meta, Outcome, Snapshot, StepNote},
};

/// The ledger for threads that do kernel work.
#[derive(Debug)]
pub struct LedgerRecords {
    ledger: LedgerHandle,
    host: Arc<dyn Host>,
    handle: Handle,
    /// One look at changed devices at a time: each is based on what the one before published.
    looking: Mutex<()>,
}

impl LedgerRecords {
    /// The records of a ledger. Must be called within its runtime.
    #[must_use]
    pub fn new(ledger: LedgerHandle, host: Arc<dyn Host>) -> Self {
        Self { ledger, host, handle: Handle::current(), looking: Mutex::default() }
    }
}

impl Records for LedgerRecords {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.ledger.snapshot()
    }

    fn note(&self, intent: u64, step: StepNote) -> Result<(), ApiError> {
        self.ledger.note_blocking(intent, step)
    }

    fn remember(&self, intent: u64, baseline: Baseline) -> Result<(), ApiError> {
        self.ledger.record_baselines_blocking(intent, vec![baseline])
    }

    fn outcome(&self, intent: u64, outcome: Outcome) -> Result<(), ApiError> {
        self.ledger.outcome_blocking(intent, outcome, Meta::internal("acts")).map(drop)
    }

    fn command(&self, command: Command, cause: &str) -> Result<(), ApiError> {
        self.ledger.submit_blocking(command, Meta::internal(cause)).map(drop)
    }

    fn changed(&self, devices: &[PciAddress]) -> Result<(), ApiError> {
        if devices.is_empty() {
            return Ok(());
        }
        let _looking = lock(&self.looking);
        let scan = patched(&*self.host, &self.ledger.snapshot(), devices);
        self.handle.block_on(self.ledger.observe(scan, Meta::internal("acts"))).map(drop)
    }
}

/// The published inventory with some devices read again.
fn patched(host: &dyn Host, snapshot: &Snapshot, devices: &[PciAddress]) -> Scan {
    let mut inventory: Inventory = (*snapshot.inventory).clone();
    let mut uses = snapshot.index.uses.clone();
    for facts in &mut inventory.devices {
        if !devices.contains(&facts.address) {
            continue;
        }
        let Ok(now) = host.device(facts.address) else { continue };
        let used = host.uses(facts.address).unwrap_or_default();
        if used.is_empty() {
            uses.remove(&facts.address);
        } else {
            uses.insert(facts.address, used);
        }
        *facts = now;
    }
    let foreign: HashMap<u32, Vec<u32>> = snapshot
        .state
        .groups()
        .filter(|group| !group.foreign_pids.is_empty())
        .filter_map(|group| Some((snapshot.group_number(&group.id)?, group.foreign_pids.clone())))
        .collect();
    Scan { inventory, uses, foreign }
}
