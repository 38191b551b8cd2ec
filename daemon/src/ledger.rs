//! The ledger: one task that owns the state.
//!
//! Commands come through a bounded queue. The task takes all that wait, decides each in turn,
//! writes events, rows, intents and request ids of all of them in one transaction, and only then
//! publishes, answers and hands intents to the executor.

mod book;
mod clock;
mod condition;
mod decide;
mod degraded;
mod draft;
mod events;
mod expiry;
mod facts;
mod feed;
mod hotplug;
mod inbox;
mod kept_ids;
mod message;
mod open;
mod publish;
mod requests;
mod rows;
mod scan;
mod seen;
mod task;
mod trial;
mod unknown;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use berth_host::{Host, Inventory, PciAddress};
use berth_ownership::{Command, DeviceId};
use berth_uapi::VfToken;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinError,
};
use uuid::Uuid;

pub use clock::Clock;
pub use feed::Follower;
pub use hotplug::Told;
pub use open::{LedgerConfig, Opened, lock, open, open_locked};
pub use scan::{Scan, Survey, look, survey};
pub(crate) use trial::{Trial, Tried};

use feed::Feed;
use message::{Message, Reply};

use crate::{
    model::{
        ApiError, Applied, Baseline, Degraded, Executor, Live, Looked, Meta, Outcome, Quotas,
        Snapshot, StepNote,
    },
    store::Store,
};

/// A handle to the ledger. Cheap to clone; the task ends when the last one is gone.
#[derive(Debug, Clone)]
pub struct LedgerHandle {
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

/// What the task and its handles share.
#[derive(Debug)]
struct Shared {
    published: ArcSwap<Snapshot>,
    feed: Feed,
    executor: OnceLock<Arc<dyn Executor>>,
    store: Store,
    clock: Clock,
    host: Arc<dyn Host>,
    scanning: tokio::sync::Mutex<()>,
    quotas: Live<Quotas>,
    /// Why nothing can be written.
    degraded: watch::Sender<Option<Arc<Degraded>>>,
}

impl LedgerHandle {
    /// Decides a command, makes its events durable, and answers.
    ///
    /// # Errors
    /// The refusal; `UNAVAILABLE` when the store can't be written or the daemon stops. Nothing
    /// changed then.
    pub async fn submit(&self, command: Command, meta: Meta) -> Result<Applied, ApiError> {
        self.submit_all(vec![command], meta).await
    }

    /// The same for several commands that stand or fall together.
    ///
    /// # Errors
    /// As [`Self::submit`], of the first command that is refused.
    pub async fn submit_all(
        &self,
        commands: Vec<Command>,
        meta: Meta,
    ) -> Result<Applied, ApiError> {
        let attempt = false;
        self.ask(|reply| Message::Submit { commands, meta, attempt, reply }).await
    }

    /// [`Self::submit`] for one of several ways to do what a call asks for. A refusal isn't the
    /// call's answer until [`Self::refuse`] makes it that.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn attempt(&self, command: Command, meta: Meta) -> Result<Applied, ApiError> {
        let (commands, attempt) = (vec![command], true);
        self.ask(|reply| Message::Submit { commands, meta, attempt, reply }).await
    }

    /// Gives a repeated call the answer that it had, and every other one this refusal, which it
    /// then gets again.
    ///
    /// # Errors
    /// The refusal, unless the call was answered before.
    pub async fn refuse(&self, error: ApiError, meta: Meta) -> Result<Applied, ApiError> {
        let refusal = error.into_refusal();
        self.ask(|reply| Message::Refuse { refusal, meta, reply }).await
    }

    /// Records the outcome of an intent, which is closed by it.
    ///
    /// # Errors
    /// `NO_OPERATION` when the intent isn't open any more; else as [`Self::submit`].
    pub async fn outcome(
        &self,
        intent: u64,
        outcome: Outcome,
        meta: Meta,
    ) -> Result<Applied, ApiError> {
        let outcome = Box::new(outcome);
        let devices = self.devices_of(intent);
        let looked = self.look(devices).await;
        self.ask(|reply| Message::Outcome { intent, outcome, looked, meta, reply }).await
    }

    /// Makes a step of an intent durable, before the step is taken.
    ///
    /// # Errors
    /// `NO_OPERATION` when the intent isn't open any more; `UNAVAILABLE` as in [`Self::submit`].
    pub async fn note(&self, intent: u64, note: StepNote) -> Result<(), ApiError> {
        self.ask(|reply| Message::Note { intent, note, reply }).await
    }

    /// Makes the baselines of devices durable, before they are first touched. A baseline that is
    /// on record stays as it is.
    ///
    /// # Errors
    /// As [`Self::note`].
    pub async fn record_baselines(
        &self,
        intent: u64,
        baselines: Vec<Baseline>,
    ) -> Result<(), ApiError> {
        self.ask(|reply| Message::Baselines { intent, baselines, reply }).await
    }

    /// Records what a scan found, where it differs from the record, and publishes it.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn observe(&self, scan: Scan, meta: Meta) -> Result<Applied, ApiError> {
        let scan = Box::new(scan);
        self.ask(|reply| Message::Observe { scan, meta, reply }).await
    }

    /// Looks at some devices again and records what is otherwise than before.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn refresh(&self, devices: Vec<PciAddress>, meta: Meta) -> Result<Applied, ApiError> {
        let looked = self.look(devices).await;
        self.ask(|reply| Message::Refresh { looked, meta, reply }).await
    }

    /// Scans the whole machine and records what is otherwise than before.
    ///
    /// # Errors
    /// As [`Self::submit`]; what could not be read.
    pub async fn rescan(&self, meta: Meta) -> Result<Applied, ApiError> {
        // No scan is taken after one that began later.
        let _alone = self.shared.scanning.lock().await;
        let host = Arc::clone(&self.shared.host);
        let after_looks = self.snapshot().looks;
        let survey = move || survey(&*host).map(|found| Scan { after_looks, ..found });
        self.observe_survey(tokio::task::spawn_blocking(survey), meta).await
    }

    /// Waits for a look at the machine, completes it by what takes knowing the record, and records
    /// what is otherwise than before.
    ///
    /// # Errors
    /// As [`Self::rescan`].
    pub async fn observe_survey(&self, survey: Survey, meta: Meta) -> Result<Applied, ApiError> {
        let ended =
            |error: JoinError| ApiError::internal("scan", format!("the scan ended: {error}"));
        let mut found = survey
            .await
            .map_err(ended)?
            .map_err(|error| ApiError::internal("scan", format!("scan the host: {error}")))?;
        let (host, known) = (Arc::clone(&self.shared.host), self.snapshot());
        let found = tokio::task::spawn_blocking(move || {
            scan::complete(&*host, &mut found, &known);
            found
        });
        self.observe(found.await.map_err(ended)?, meta).await
    }

    /// [`Self::outcome`] from a thread outside the runtime.
    ///
    /// # Errors
    /// As [`Self::outcome`].
    pub fn outcome_blocking(
        &self,
        intent: u64,
        outcome: Outcome,
        meta: Meta,
    ) -> Result<Applied, ApiError> {
        let outcome = Box::new(outcome);
        let looked = look_or_log(&*self.shared.host, &self.devices_of(intent));
        self.ask_blocking(|reply| Message::Outcome { intent, outcome, looked, meta, reply })
    }

    /// [`Self::note`] from a thread outside the runtime.
    ///
    /// # Errors
    /// As [`Self::note`].
    pub fn note_blocking(&self, intent: u64, note: StepNote) -> Result<(), ApiError> {
        self.ask_blocking(|reply| Message::Note { intent, note, reply })
    }

    /// [`Self::record_baselines`] from a thread outside the runtime.
    ///
    /// # Errors
    /// As [`Self::note`].
    pub fn record_baselines_blocking(
        &self,
        intent: u64,
        baselines: Vec<Baseline>,
    ) -> Result<(), ApiError> {
        self.ask_blocking(|reply| Message::Baselines { intent, baselines, reply })
    }

    /// The VF token of a physical function, durable before it is answered: the same for as long as
    /// the device is there. For a thread outside the runtime.
    ///
    /// # Errors
    /// `UNAVAILABLE` as in [`Self::submit`].
    pub fn vf_token_blocking(&self, physical: PciAddress) -> Result<VfToken, ApiError> {
        let device = DeviceId::new(physical.to_string());
        let fresh = VfToken(Uuid::new_v4().into_bytes());
        self.ask_blocking(|reply| Message::VfToken { device, fresh, reply })
    }

    /// [`Self::submit`] from a thread outside the runtime.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_blocking(&self, command: Command, meta: Meta) -> Result<Applied, ApiError> {
        let (commands, attempt) = (vec![command], false);
        self.ask_blocking(|reply| Message::Submit { commands, meta, attempt, reply })
    }

    /// Waits until the task has come to a message behind those before: all that had to be written
    /// for them is, or can't be. For ever, where the task has ended.
    pub(crate) async fn turn(&self) {
        let (reply, turned) = oneshot::channel();
        if self.queue.send(Message::Turn { reply }).await.is_err() || turned.await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What is published now. Enters neither the task nor the store.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.published.load_full()
    }

    /// Why nothing can be changed at present; `None` when all is well.
    #[must_use]
    pub fn degraded(&self) -> Option<Arc<Degraded>> {
        self.shared.degraded.borrow().clone()
    }

    /// The same, to wait for its end or its beginning.
    #[must_use]
    pub fn watch_degraded(&self) -> watch::Receiver<Option<Arc<Degraded>>> {
        self.shared.degraded.subscribe()
    }

    /// The inventory that is published now.
    #[must_use]
    pub fn inventory(&self) -> Arc<Inventory> {
        Arc::clone(&self.shared.published.load().inventory)
    }

    /// Follows the events after a number.
    #[must_use]
    pub fn follow(&self, last: u64) -> Follower {
        self.shared.feed.follow(last)
    }

    /// Ends all following, once what was sent is read.
    pub fn end_following(&self) {
        self.shared.feed.end();
    }

    /// The store, for past events.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// The clocks that decisions are made by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// How many commands wait to be taken, and how many may.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        let most = self.queue.max_capacity();
        (most - self.queue.capacity(), most)
    }

    /// How much each may have.
    #[must_use]
    pub fn quotas(&self) -> &Live<Quotas> {
        &self.shared.quotas
    }

    /// Who does the kernel work; `None` until it is named.
    #[must_use]
    pub fn executor(&self) -> Option<&Arc<dyn Executor>> {
        self.shared.executor.get()
    }

    /// Names who does the kernel work, once. Intents of commits before this are not handed over:
    /// they are in [`Opened::intents`] or in the snapshot.
    ///
    /// # Errors
    /// When there is an executor already.
    pub fn set_executor(&self, executor: Arc<dyn Executor>) -> Result<(), ApiError> {
        self.shared
            .executor
            .set(executor)
            .map_err(|_| ApiError::internal("executor", "the executor is set already"))
    }

    /// The devices that an intent may have changed: all members of its groups.
    fn devices_of(&self, intent: u64) -> Vec<PciAddress> {
        let snapshot = self.snapshot();
        let Some(intent) = snapshot.intents.get(&intent) else { return Vec::new() };
        let state = &snapshot.state;
        let groups = match (&intent.reservation, intent.body.device()) {
            (Some(reservation), _) => state
                .reservation(reservation)
                .map(|reservation| {
                    reservation.targets.iter().map(|target| target.group.clone()).collect()
                })
                .unwrap_or_default(),
            (None, Some(device)) => {
                state.device(device).map(|device| vec![device.group.clone()]).unwrap_or_default()
            }
            (None, None) => Vec::new(),
        };
        groups
            .iter()
            .filter_map(|group| state.group(group))
            .flat_map(|group| &group.devices)
            .filter_map(|device| device.as_str().parse().ok())
            .collect()
    }

    async fn look(&self, devices: Vec<PciAddress>) -> Vec<Looked> {
        let host = Arc::clone(&self.shared.host);
        tokio::task::spawn_blocking(move || look_or_log(&*host, &devices)).await.unwrap_or_default()
    }

    async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(message(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    fn ask_blocking<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.queue.blocking_send(message(reply)).map_err(|_| stopped())?;
        answer.blocking_recv().map_err(|_| stopped())?
    }
}

fn stopped() -> ApiError {
    ApiError::unavailable("ledger", "the ledger has stopped, so that nothing was recorded")
}

/// A look that fails changes nothing: the next scan sees to it.
fn look_or_log(host: &dyn Host, devices: &[PciAddress]) -> Vec<Looked> {
    look(host, devices).unwrap_or_else(|error| {
        tracing::warn!(%error, "looking at devices again");
        Vec::new()
    })
}
