//! Work that does not come back: its devices are called wedged, and no longer when it does.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use berth_host::{Host, HostError, PciAddress};
use berth_ownership::{Command, DeviceId};

use super::{
    job::device_id,
    records::Records,
    runtime::lock,
    scheduler::{Scheduler, Ticket},
};

/// What stands before those who have a device open.
const NAMES: &str = "; it is open in ";

/// How often a helper that did not come back is looked after.
const LOOK: Duration = Duration::from_secs(1);

/// Watches the engine's work.
#[derive(Debug)]
pub(crate) struct Watchdog {
    deadline: Duration,
    records: Arc<dyn Records>,
    host: Arc<dyn Host>,
    scheduler: Scheduler,
    watched: Mutex<Watched>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Watched {
    /// Submitted and not yet ended; the ticket follows as soon as it is known.
    tickets: HashMap<u64, Option<Ticket>>,
    running: HashMap<u64, Run>,
    /// Devices that a helper is stuck with.
    stuck: HashMap<PciAddress, Stuck>,
    closed: bool,
}

/// How a device was when a helper got stuck with it.
#[derive(Debug, Clone)]
struct Stuck {
    driver: Option<String>,
    /// An unbind waited for whoever has it open.
    waits: bool,
}

#[derive(Debug)]
struct Run {
    name: String,
    since: Instant,
    devices: Vec<DeviceId>,
    wedged: bool,
    /// Its kernel work is over: what it waits for now is the store.
    acted: bool,
}

impl Watchdog {
    pub(crate) fn start(
        deadline: Duration,
        scheduler: Scheduler,
        host: Arc<dyn Host>,
        records: &Arc<dyn Records>,
    ) -> Arc<Self> {
        let dog = Arc::new(Self {
            deadline,
            records: Arc::clone(records),
            host,
            scheduler,
            watched: Mutex::default(),
            changed: Condvar::new(),
        });
        let weak = Arc::downgrade(&dog);
        let spawned = std::thread::Builder::new()
            .name("acts-watchdog".to_owned())
            .spawn(move || watch(&weak));
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for the watchdog: stuck work will not be named");
        }
        dog
    }

    /// Nothing is watched any more: the thread ends, and with it its hold on the records.
    pub(crate) fn close(&self) {
        lock(&self.watched).closed = true;
        self.changed.notify_all();
    }

    /// Work is about to be submitted.
    pub(crate) fn expect(&self, intent: u64) {
        lock(&self.watched).tickets.insert(intent, None);
    }

    /// It is; it may have ended already.
    pub(crate) fn submitted(&self, intent: u64, ticket: Ticket) {
        if let Some(known) = lock(&self.watched).tickets.get_mut(&intent) {
            *known = Some(ticket);
        }
    }

    /// Whether work waits or runs.
    pub(crate) fn knows(&self, intent: u64) -> bool {
        lock(&self.watched).tickets.contains_key(&intent)
    }

    pub(crate) fn ticket(&self, intent: u64) -> Option<Ticket> {
        lock(&self.watched).tickets.get(&intent).copied().flatten()
    }

    pub(crate) fn begin(&self, intent: u64, name: String, devices: Vec<DeviceId>) {
        let run = Run { name, since: Instant::now(), devices, wedged: false, acted: false };
        lock(&self.watched).running.insert(intent, run);
        self.changed.notify_all();
    }

    /// The kernel work is over; the intent stays known until [`Self::end`].
    pub(crate) fn acted(&self, intent: u64) {
        if let Some(run) = lock(&self.watched).running.get_mut(&intent) {
            run.acted = true;
        }
    }

    pub(crate) fn end(&self, intent: u64) {
        let ended = {
            let mut watched = lock(&self.watched);
            watched.tickets.remove(&intent);
            watched.running.remove(&intent)
        };
        let Some(run) = ended.filter(|run| run.wedged) else { return };
        tracing::warn!(work = run.name, after = ?run.since.elapsed(), "stuck work came back");
        for device in run.devices {
            self.tell(Command::Unwedge { device });
        }
    }

    /// A helper did not come back; its act may still be under way. Gives who has the device open.
    pub(crate) fn helper_stuck(&self, device: PciAddress, why: &str) -> Vec<String> {
        let waits = self.host.unbind_waits(device).unwrap_or(false);
        self.is_stuck(device, waits, why)
    }

    /// Whether an unbind of the last daemon, or of anybody, still waits: then its device stays wedged,
    /// until it comes back.
    pub(crate) fn still_stuck(&self, device: PciAddress, why: &str) -> bool {
        let waits = self.host.unbind_waits(device).unwrap_or(false);
        if waits {
            self.is_stuck(device, waits, why);
        }
        waits
    }

    fn is_stuck(&self, device: PciAddress, waits: bool, why: &str) -> Vec<String> {
        let driver = self.host.device(device).ok().and_then(|facts| facts.driver);
        lock(&self.watched).stuck.insert(device, Stuck { driver, waits });
        let why = why.split(NAMES).next().unwrap_or(why);
        // First, so that nothing new begins while it is looked for who it is.
        self.tell(Command::Wedge { device: device_id(device), why: why.to_owned() });
        self.changed.notify_all();
        let users = self.host.users_of(device).unwrap_or_else(|error| {
            tracing::warn!(%device, %error, "who has it open?");
            Vec::new()
        });
        let mut named: Vec<String> =
            users.iter().map(|user| format!("{} ({})", user.name, user.pid)).collect();
        named.dedup();
        if !named.is_empty() {
            let why = format!("{why}{NAMES}{}", named.join(", "));
            self.tell(Command::Wedge { device: device_id(device), why });
        }
        named
    }

    fn tell(&self, command: Command) {
        if let Err(error) = self.records.command(command, "watchdog") {
            tracing::warn!(%error, "the ledger did not take what the watchdog saw");
        }
    }

    fn look(&self) {
        let mut late = Vec::new();
        {
            let mut watched = lock(&self.watched);
            let Watched { tickets, running, .. } = &mut *watched;
            for (intent, run) in running {
                if !run.wedged && !run.acted && run.since.elapsed() >= self.deadline {
                    run.wedged = true;
                    let name = run.name.clone();
                    late.push((tickets.get(intent).copied().flatten(), name, run.devices.clone()));
                }
            }
        }
        for (ticket, name, devices) in late {
            if let Some(ticket) = ticket {
                self.scheduler.give_up(ticket);
            }
            let why = format!("{name} has not come back after {} s", self.deadline.as_secs());
            tracing::error!(why, "wedged");
            for device in devices {
                self.tell(Command::Wedge { device, why: why.clone() });
            }
        }
        let stuck: Vec<_> =
            lock(&self.watched).stuck.iter().map(|(at, had)| (*at, had.clone())).collect();
        for (address, had) in stuck {
            let moved = || self.host.device(address).is_ok_and(|facts| facts.driver != had.driver);
            let over = match self.host.unbind_waits(address) {
                Ok(waits) => !waits && (had.waits || moved()),
                // A device that was pulled out is nobody's any more.
                Err(HostError::NoDevice(_)) => true,
                Err(_) => false,
            };
            if over {
                lock(&self.watched).stuck.remove(&address);
                if let Err(error) = self.records.changed(&[address]) {
                    tracing::warn!(device = %address, %error, "a changed driver is unrecorded");
                }
                self.tell(Command::Unwedge { device: device_id(address) });
            }
        }
    }

    /// How long to sleep; `None` while there is nothing to watch.
    fn nap(&self, watched: &Watched) -> Option<Duration> {
        let next = watched
            .running
            .values()
            .filter(|run| !run.wedged && !run.acted)
            .map(|run| self.deadline.saturating_sub(run.since.elapsed()))
            .min();
        let looks = (!watched.stuck.is_empty()).then_some(LOOK);
        [next, looks].into_iter().flatten().min()
    }
}

fn watch(weak: &Weak<Watchdog>) {
    // The watchdog ends with its engine, so it looks now and then whether that is still there.
    while let Some(dog) = weak.upgrade() {
        let watched = lock(&dog.watched);
        let nap = dog.nap(&watched).unwrap_or(Duration::from_secs(5));
        let nap = nap.clamp(Duration::from_millis(5), Duration::from_secs(5));
        if watched.closed {
            return;
        }
        let (watched, _) =
            dog.changed.wait_timeout(watched, nap).unwrap_or_else(PoisonError::into_inner);
        if watched.closed {
            return;
        }
        drop(watched);
        dog.look();
    }
}
