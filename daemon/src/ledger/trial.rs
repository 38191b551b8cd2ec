//! A copy of what is published, on which a command is decided as the task would, and which is thrown
//! away: nothing of it is written, published or told to anybody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_ownership::{Command, Event, Refusal};
use berth_uapi::VfToken;
use imbl::{OrdMap, Vector};
use uuid::Uuid;

use super::{Clock, LedgerHandle, Scan, book::Book, decide, draft::Draft, scan::complete, survey};
use crate::model::{ApiError, Baseline, Intent, Looked, Meta, Snapshot, StepNote};

/// A copy on which something is tried.
#[derive(Debug)]
pub(crate) struct Trial {
    draft: Mutex<Draft>,
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Tried {
    /// What would have happened.
    pub(crate) events: Vec<Event>,
    /// The kernel work that it would have asked for.
    pub(crate) intent: Option<Intent>,
}

impl LedgerHandle {
    /// A copy of what is published now.
    ///
    /// # Errors
    /// `UNAVAILABLE`: nothing can be changed at present, as the real call would be told.
    pub(crate) fn trial(&self) -> Result<Trial, ApiError> {
        match self.degraded() {
            Some(degraded) => Err(degraded.refusal()),
            None => Ok(Trial::on(&self.snapshot(), self.clock())),
        }
    }

    /// What a scan finds now, which isn't recorded. Blocks.
    ///
    /// # Errors
    /// What could not be read.
    pub(crate) fn look_at_all(&self) -> Result<Scan, ApiError> {
        let (host, known) = (&*self.shared.host, self.snapshot());
        let mut found = survey(host)
            .map_err(|error| ApiError::internal("scan", format!("scan the host: {error}")))?;
        complete(host, &mut found, &known);
        Ok(Scan { after_looks: known.looks, ..found })
    }
}

impl Trial {
    fn on(snapshot: &Snapshot, clock: &Clock) -> Self {
        Self { draft: Mutex::new(Draft::new(Book::copy(snapshot), clock.clone())) }
    }

    /// Takes devices that were looked at again.
    pub(crate) fn refresh(&self, looked: Vec<Looked>) {
        decide::refresh(&mut self.draft(), looked, &Meta::internal("dry run"));
    }

    /// Takes a whole scan.
    pub(crate) fn observe(&self, scan: Scan) {
        decide::observe(&mut self.draft(), scan, &Meta::internal("dry run"));
    }

    /// Decides a command.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) fn decide(&self, command: &Command) -> Result<Tried, Box<Refusal>> {
        let mut draft = self.draft();
        let events = draft.command(command, &Meta::internal("dry run"), None)?;
        Ok(Tried { events, intent: draft.opened.last().cloned() })
    }

    /// What would be published.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(self.draft().book.snapshot())
    }

    /// Takes a step of an intent.
    ///
    /// # Errors
    /// `NO_OPERATION` when the intent isn't open.
    pub(crate) fn note(&self, intent: u64, note: StepNote) -> Result<(), ApiError> {
        decide::step(&mut self.draft(), intent, note)
    }

    /// Takes what a device had.
    ///
    /// # Errors
    /// As [`Self::note`].
    pub(crate) fn remember(&self, intent: u64, baseline: Baseline) -> Result<(), ApiError> {
        decide::record_baselines(&mut self.draft(), intent, vec![baseline])
    }

    /// A VF token, which is never set.
    pub(crate) fn vf_token() -> VfToken {
        VfToken(Uuid::new_v4().into_bytes())
    }

    fn draft(&self) -> MutexGuard<'_, Draft> {
        self.draft.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// The book that a snapshot was made of, as far as it tells. What is missing (VF tokens,
    /// request ids) decides no command.
    fn copy(snapshot: &Snapshot) -> Self {
        let mut book = Self {
            state: (*snapshot.state).clone(),
            seq: snapshot.seq,
            extras: snapshot.extras.clone(),
            baselines: snapshot.baselines.clone(),
            vf_tokens: OrdMap::new(),
            identities: snapshot.identities.clone(),
            intents: OrdMap::new(),
            open: OrdMap::new(),
            steps: OrdMap::new(),
            waiting: OrdMap::new(),
            last_intent: snapshot.intents.get_max().map_or(0, |(id, _)| *id),
            released: Vector::new(),
            inventory: Arc::clone(&snapshot.inventory),
            index: Arc::clone(&snapshot.index),
            fresh: snapshot.fresh.clone(),
            health: snapshot.health.clone(),
            looks: snapshot.looks,
            looked_at: OrdMap::new(),
            boot: snapshot.boot.clone(),
            oldest_seq: snapshot.seq,
            history_lost: None,
        };
        for intent in snapshot.intents.values() {
            book.insert_intent((**intent).clone());
        }
        book
    }
}
