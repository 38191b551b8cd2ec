//! Mappings of client memory, counted: the quotas of identities and labels are about all domains.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use berth_ownership::{Refusal, ReservationId};

use super::{engine::Engine, runtime::lock, tools::Tools};
use crate::model::{Asked, Payer, Resource, check_quota};

/// How many mappings each reservation has.
#[derive(Debug, Default)]
pub(crate) struct Entries(Mutex<HashMap<ReservationId, u64>>);

/// One mapping's place among those that are counted; dropping it gives it up.
#[derive(Debug)]
pub(crate) struct Entry {
    book: Arc<Entries>,
    reservation: ReservationId,
}

impl Entries {
    /// Counts a mapping that is there already.
    pub(crate) fn adopt(self: &Arc<Self>, reservation: &ReservationId) -> Entry {
        *lock(&self.0).entry(reservation.clone()).or_default() += 1;
        Entry { book: Arc::clone(self), reservation: reservation.clone() }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut counts = lock(&self.book.0);
        if let Some(count) = counts.get_mut(&self.reservation) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.reservation);
            }
        }
    }
}

/// Counts a mapping that is about to be made, where the quotas have room for it. Whoever asks at the
/// same time finds it counted.
///
/// # Errors
/// `QUOTA_EXCEEDED`.
pub(crate) fn take(
    tools: &Tools,
    reservation: &ReservationId,
    payer: &Payer,
) -> Result<Entry, Box<Refusal>> {
    let (snapshot, quotas) = (tools.records.snapshot(), tools.records.quotas());
    let (quotas, entries) = (quotas.get(), &tools.runtime.entries);
    let mut counts = lock(&entries.0);
    if let Some(record) = snapshot.state.reservation(reservation) {
        let (identity, label) = (&record.for_identity, record.label.as_str());
        let resource = Resource::DmaEntries;
        for (account, quota) in quotas.charged(payer, identity, label, resource) {
            let own = |id: &&ReservationId| {
                let record = snapshot.state.reservation(id);
                record.is_some_and(|record| account.has(resource, record))
            };
            let used = counts.iter().filter(|(id, _)| own(id)).map(|(_, count)| count).sum();
            check_quota(quota, Asked { account: &account, resource, used, more: 1 })?;
        }
    }
    *counts.entry(reservation.clone()).or_default() += 1;
    Ok(Entry { book: Arc::clone(entries), reservation: reservation.clone() })
}

impl Engine {
    /// How many mappings of client memory each reservation has.
    pub(crate) fn dma_entries(&self) -> Vec<(ReservationId, u64)> {
        lock(&self.tools().runtime.entries.0).iter().map(|(id, n)| (id.clone(), *n)).collect()
    }
}
