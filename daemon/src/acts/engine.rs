//! The engine: takes committed intents, does their kernel work on threads, records outcomes.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use berth_host::{Host, PciAddress};
use berth_ownership::{Blocker, DeviceId, DomainId, Reason, Refusal, ReservationId};

use super::{
    dispatch::{self, failure},
    hand_over,
    job::{GroupJob, Job, address, device_keys},
    prepare,
    records::Records,
    runtime::Runtime,
    scheduler::{Key, Scheduler},
    tools::{NO_INTENT, Tools},
    watchdog::Watchdog,
};
use crate::{
    fdstore::{FdStore, Keeper},
    model::{DmaLatencies, DomainNow, Executor, Gone, Intent, IntentBody, Outcome, Snapshot},
};

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// How long a piece of kernel work may take before its devices are called wedged.
    pub deadline: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30) }
    }
}

/// How much the daemon has open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Devices.
    pub devices: usize,
    /// Holds on groups.
    pub holds: usize,
    /// iommufds and containers.
    pub contexts: usize,
}

/// Does the kernel work of the daemon. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) tools: Tools,
    pub(crate) scheduler: Scheduler,
    pub(crate) watchdog: Arc<Watchdog>,
    pub(crate) holders: super::holder::Holders,
    pub(crate) leaving: super::removal::Leaving,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("scheduler", &self.inner.scheduler).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine that has nothing open. Must be called within a tokio runtime, whose tasks then
    /// watch the holders' processes.
    pub fn new(host: Arc<dyn Host>, records: Arc<dyn Records>, config: &EngineConfig) -> Self {
        Self::with_store(host, records, config, None)
    }

    /// The same, which keeps what is open in a store of file descriptors.
    pub fn with_store(
        host: Arc<dyn Host>,
        records: Arc<dyn Records>,
        config: &EngineConfig,
        store: Option<Arc<dyn FdStore>>,
    ) -> Self {
        let scheduler = Scheduler::default();
        let watchdog =
            Watchdog::start(config.deadline, scheduler.clone(), Arc::clone(&host), &records);
        let tools = Tools {
            host,
            records,
            runtime: Runtime::default(),
            after: Default::default(),
            keeper: Arc::new(Keeper::new(store)),
        };
        let holders = super::holder::Holders::new(tokio::runtime::Handle::current());
        let leaving = super::removal::Leaving::default();
        Self { inner: Arc::new(Inner { tools, scheduler, watchdog, holders, leaving }) }
    }

    pub(crate) fn tools(&self) -> &Tools {
        &self.inner.tools
    }

    /// Takes no more work, waits for what runs, and closes what is open, as the end of the process
    /// would; with a store the end of the process has to, as closing in order would undo what is to
    /// go on. True when all work ended in time.
    pub fn close(&self, patience: Duration) -> bool {
        let ended = self.inner.scheduler.close(patience);
        self.tools().records.close();
        let open = std::mem::take(&mut *self.tools().runtime.tables());
        if self.tools().keeper.is_there() {
            self.tools().keeper.leave();
            std::mem::forget(open);
        } else {
            drop(open);
        }
        self.inner.watchdog.close();
        ended
    }

    /// What an intent waits for: the work before it that touches the same devices or context.
    #[must_use]
    pub fn waits_for(&self, intent: u64) -> Option<String> {
        let ticket = self.inner.watchdog.ticket(intent)?;
        self.inner.scheduler.waits_for(ticket)
    }

    /// Queues work on a reservation's devices that no intent asked for.
    pub(crate) fn beside(
        &self,
        name: String,
        snapshot: &Snapshot,
        reservation: &ReservationId,
        work: impl FnOnce(&Engine) + Send + 'static,
    ) {
        let keys =
            Job::of(snapshot, reservation).map_or_else(|_| Vec::new(), |job| job.keys(snapshot));
        let engine = self.clone();
        self.inner.scheduler.submit(name, keys, move || work(&engine));
    }

    /// What is published now.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.tools().records.snapshot()
    }

    /// Runs work beside everything else: for start-up, when nothing else touches the devices.
    pub(crate) fn unkeyed(&self, name: &str, work: impl FnOnce(&Engine) + Send + 'static) {
        let engine = self.clone();
        self.inner.scheduler.submit(name, Vec::new(), move || work(&engine));
    }

    /// Waits until work was taken, run on a thread and ended; what the kernel has at the moment is
    /// not waited for. For ever, where no work is taken any more.
    pub(crate) async fn turn(&self) {
        let (done, turned) = tokio::sync::oneshot::channel();
        let scheduler = self.inner.scheduler.clone();
        // Its lock is held for moments only; where it isn't, the runtime must not stand still.
        tokio::task::spawn_blocking(move || {
            scheduler.beat(move || {
                // Whoever asked may have stopped to wait.
                let _ = done.send(());
            });
        });
        if turned.await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether an intent waits or runs.
    pub(crate) fn at_work(&self, intent: u64) -> bool {
        self.inner.watchdog.knows(intent)
    }

    /// Whether an unbind that hung when the last daemon was there hangs still.
    pub(crate) fn is_still_stuck(&self, device: &DeviceId, why: &str) -> bool {
        address(device).is_some_and(|at| self.inner.watchdog.still_stuck(at, why))
    }

    /// How much is open now: devices, holds, contexts.
    #[must_use]
    pub fn census(&self) -> Census {
        let tables = self.tools().runtime.tables();
        Census {
            devices: tables.devices.len(),
            holds: tables.holds.len(),
            contexts: tables.contexts.len(),
        }
    }

    /// A duplicate of an open device's descriptor.
    #[must_use]
    pub fn device_fd(&self, device: PciAddress) -> Option<std::os::fd::OwnedFd> {
        self.tools().runtime.tables().devices.get(&device)?.device.fd().ok()
    }

    /// Closes what no record has any more.
    pub fn tidy(&self) {
        self.tools().sweep();
    }

    /// After a reboot: brings the drivers of a reservation in order again.
    pub(crate) fn viable_again(&self, job: &Job) -> Result<(), Box<Refusal>> {
        let viable = prepare::make_viable(self.tools(), NO_INTENT, job);
        let members: Vec<PciAddress> =
            job.groups.iter().flat_map(|group| group.members.iter().copied()).collect();
        if let Err(error) = self.tools().records.changed(&members) {
            tracing::warn!(%error, "changed drivers could not be recorded");
        }
        viable
    }

    /// Whether a group is owned by a context that lives on in a holder's process.
    pub(crate) fn lives_elsewhere(&self, group: &GroupJob) -> bool {
        let snapshot = self.snapshot();
        let claimed = group
            .others
            .iter()
            .any(|id| snapshot.state.reservation(id).is_some_and(|other| other.claims > 0));
        let users = || self.tools().users(group.members.iter().copied());
        // Where nobody can tell, taking the hold does.
        claimed && users().is_ok_and(|users| !users.is_empty())
    }

    fn work(&self, intent: &Intent) {
        let mut outcome = self.outcome(intent);
        if let Some(failure) = &mut outcome.failure {
            tracing::warn!(
                intent = intent.id,
                kind = intent.kind.name(),
                object = failure.object,
                reason = failure.reason.name(),
                why = failure.message,
                "kernel work failed"
            );
            if failure.reason == Reason::Wedged
                && let Ok(device) = failure.object.parse::<PciAddress>()
            {
                let users = self.inner.watchdog.helper_stuck(device, &failure.message);
                is_open_in(failure, device, users);
            }
        }
        if let Err(error) = self.record_outcome(intent.id, &outcome) {
            tracing::error!(intent = intent.id, %error, "an outcome could not be recorded");
        }
        if let (IntentBody::Release { .. }, Some(id)) = (&intent.body, &intent.reservation) {
            self.watched_in_vain(id);
        }
        if let (IntentBody::HandOver, Some(id)) = (&intent.body, &intent.reservation) {
            self.watch_adopted(id);
        }
        self.follow_up();
        let forced = matches!(intent.body, IntentBody::Release { force: true, .. });
        let drains = outcome.failure.is_some_and(|it| it.reason == Reason::HolderDraining);
        if let Some(id) = intent.reservation.as_ref().filter(|_| forced && drains) {
            self.keep_cut_off(id);
        }
        self.tools().sweep();
    }

    fn outcome(&self, intent: &Intent) -> Outcome {
        let snapshot = self.tools().records.snapshot();
        catch_unwind(AssertUnwindSafe(|| dispatch::act(self.tools(), intent, &snapshot)))
            .unwrap_or_else(|panic| {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("panic");
                let refusal = Refusal::new(
                    Reason::Internal,
                    subject(intent),
                    format!("{} of {} broke off: {text}", intent.kind.name(), subject(intent)),
                );
                self.broken_off(intent, &snapshot, refusal)
            })
    }

    /// A bug broke the work off: what a prepare or a hand-over left behind is undone like any other
    /// failure of it.
    fn broken_off(&self, intent: &Intent, snapshot: &Snapshot, refusal: Box<Refusal>) -> Outcome {
        let job = intent.reservation.as_ref().map(|id| Job::of(snapshot, id));
        let failed = match &intent.body {
            IntentBody::Prepare => prepare::failed,
            IntentBody::HandOver => hand_over::failed,
            _ => return failure(intent, refusal),
        };
        let Some(Ok(job)) = job else { return failure(intent, refusal) };
        let again = refusal.clone();
        let undo = || failed(self.tools(), intent.id, &job, refusal);
        catch_unwind(AssertUnwindSafe(undo)).unwrap_or_else(|_| failure(intent, again))
    }
}

impl Executor for Engine {
    fn submit(&self, intent: Intent, snapshot: Arc<Snapshot>) {
        let (keys, devices) = touches(&intent, &snapshot);
        let name = format!("{} of {}", intent.kind.name(), subject(&intent));
        let engine = self.clone();
        let id = intent.id;
        let started = name.clone();
        self.inner.watchdog.expect(id);
        let ticket = self.inner.scheduler.submit(name, keys, move || {
            engine.inner.watchdog.begin(id, started, devices);
            engine.work(&intent);
            engine.inner.watchdog.end(id);
        });
        self.inner.watchdog.submitted(id, ticket);
    }

    fn gone(&self, devices: &[Gone]) {
        self.forget(devices);
    }

    fn domain(&self, domain: &DomainId) -> Option<DomainNow> {
        self.domain_now(domain)
    }

    fn dma_latencies(&self) -> Option<DmaLatencies> {
        Some(self.tools().runtime.latencies.now())
    }
}

fn touches(intent: &Intent, snapshot: &Snapshot) -> (Vec<Key>, Vec<DeviceId>) {
    if let Some(device) = intent.body.device() {
        let group = address(device)
            .and_then(|at| snapshot.group_of(at))
            .map(|group| group.devices.iter().filter_map(address).collect::<Vec<_>>())
            .unwrap_or_default();
        // To take a virtual function away unbinds it, which waits for what is done with it.
        let functions = address(device)
            .and_then(|at| snapshot.device(at))
            .map(|facts| facts.virtual_functions.clone())
            .unwrap_or_default();
        let members = group.into_iter().chain(address(device)).chain(functions);
        return (device_keys(snapshot, members), vec![device.clone()]);
    }
    let Some(reservation) = &intent.reservation else { return Default::default() };
    match Job::of(snapshot, reservation) {
        Ok(job) => {
            let devices = job.devices().map(super::job::device_id).collect();
            (job.keys(snapshot), devices)
        }
        Err(_) => Default::default(),
    }
}

fn subject(intent: &Intent) -> String {
    match (&intent.reservation, intent.body.device()) {
        (Some(reservation), _) => reservation.to_string(),
        (None, Some(device)) => device.to_string(),
        (None, None) => format!("intent {}", intent.id),
    }
}

/// Names those whom stuck work waits for.
fn is_open_in(failure: &mut Refusal, device: PciAddress, users: Vec<String>) {
    if users.is_empty() {
        return;
    }
    let text = format!("{} has {device} open", users.join(", "));
    failure.message = format!("{}; {text}", failure.message);
    failure.resolve.push(format!("end {}", users.join(", ")));
    failure.blockers.push(Blocker {
        device: super::job::device_id(device),
        driver: None,
        processes: users,
        mounts: Vec::new(),
        text,
    });
}
