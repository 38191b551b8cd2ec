//! A ledger in memory: decides with the ownership crate, keeps what a store would keep, and is the
//! place where a crash can be put before and after each record.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use berth_host::{DmaKind, Host, Inventory, PciAddress, sim::SimHost};
use berth_ownership::{
    BootId, Command, DeviceFacts, DeviceId, DriverDma, Event, GroupFacts, HostUse, KernelDmaOp,
    OperationKind, Pending, Refusal, ReservationId, State, Time, UnixMs,
};
use berth_uapi::VfToken;
use berthd::{
    acts::Records,
    model::{
        ApiError, Baseline, Executor, GivenBack, Intent, IntentBody, InventoryIndex, OpenIntent,
        Outcome, Snapshot, StepNote,
    },
    view::Boot,
};

use crate::crash::Crash;

pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Book {
    kept: Mutex<Kept>,
    changed: Condvar,
    host: SimHost,
    crash: Arc<Crash>,
    executor: Mutex<OnceLock<Arc<dyn Executor>>>,
    /// What a hand-over waits for the record, as for a disk.
    slow: Mutex<Duration>,
}

#[derive(Debug)]
struct Kept {
    state: State,
    snapshot: Arc<Snapshot>,
    intents: BTreeMap<u64, (Intent, Vec<StepNote>)>,
    baselines: BTreeMap<DeviceId, Arc<Baseline>>,
    vf_tokens: BTreeMap<PciAddress, VfToken>,
    last_failure: BTreeMap<ReservationId, Refusal>,
    given_back: BTreeMap<ReservationId, Vec<GivenBack>>,
    next: u64,
    clock: u64,
}

fn now(clock: u64) -> Time {
    Time {
        unix_ms: UnixMs(1_800_000_000_000 + clock),
        boot_ms: 1_000_000 + clock,
        boot_id: BootId::new("boot"),
    }
}

impl Book {
    pub fn new(host: &SimHost, crash: &Arc<Crash>) -> Arc<Self> {
        let state = State::new();
        let snapshot = Arc::new(publish(&state, host, &BTreeMap::new(), &BTreeMap::new()));
        let kept = Kept {
            state,
            snapshot,
            intents: BTreeMap::new(),
            baselines: BTreeMap::new(),
            vf_tokens: BTreeMap::new(),
            last_failure: BTreeMap::new(),
            given_back: BTreeMap::new(),
            next: 1,
            clock: 0,
        };
        let book = Arc::new(Self {
            kept: Mutex::new(kept),
            changed: Condvar::new(),
            host: host.clone(),
            crash: Arc::clone(crash),
            executor: Mutex::default(),
            slow: Mutex::default(),
        });
        book.look();
        book
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_executor(&self, executor: Arc<dyn Executor>) {
        let fresh = OnceLock::new();
        fresh.set(executor).unwrap();
        *self.executor.lock().unwrap() = fresh;
    }

    /// From now on a hand-over waits so long for the record.
    pub fn answer_slowly(&self, pause: Duration) {
        *self.slow.lock().unwrap() = pause;
    }

    fn pause(&self) {
        let pause = *self.slow.lock().unwrap();
        std::thread::sleep(pause);
    }

    /// Records what the machine is like.
    pub fn look(&self) {
        let mut kept = self.kept();
        observe(&mut kept, &self.host);
        let republished = publish(&kept.state, &self.host, &kept.baselines, &kept.intents);
        kept.snapshot = Arc::new(republished);
    }

    /// A command, as a caller gives it.
    pub fn order(&self, command: &Command) -> Result<Vec<Event>, Box<Refusal>> {
        let (events, intents, snapshot) = {
            let mut kept = self.kept();
            let (events, intents) = apply(&mut kept, command)?;
            let republished = publish(&kept.state, &self.host, &kept.baselines, &kept.intents);
            kept.snapshot = Arc::new(republished);
            (events, intents, Arc::clone(&kept.snapshot))
        };
        self.changed.notify_all();
        for intent in intents {
            let executor = self.executor.lock().unwrap().get().cloned();
            if let Some(executor) = executor {
                executor.submit(intent, Arc::clone(&snapshot));
            }
        }
        Ok(events)
    }

    /// Gives an order and waits for its kernel work; false when there was none.
    pub fn run(&self, command: &Command, id: &ReservationId) -> Result<bool, Box<Refusal>> {
        self.kept().last_failure.remove(id);
        let works = self.order(command)?.iter().any(|event| intent_of(event).is_some());
        self.settled();
        let failure = self.kept().last_failure.get(id).cloned();
        failure.map_or(Ok(works), |refusal| Err(Box::new(refusal)))
    }

    /// Waits until no intent is open, or the crash came.
    pub fn settled(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut kept = self.kept();
        while !kept.intents.is_empty() && !self.crash.happened() {
            assert!(Instant::now() < deadline, "stuck: {:?}", kept.intents);
            let step = Duration::from_millis(10);
            kept = self.changed.wait_timeout(kept, step).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the record says so.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.snapshot().state) {
            assert!(Instant::now() < deadline, "never came: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn open_intents(&self) -> Vec<OpenIntent> {
        self.kept()
            .intents
            .values()
            .map(|(intent, steps)| OpenIntent {
                intent: intent.clone(),
                steps: steps.clone(),
                boot_id: "boot".to_owned(),
            })
            .collect()
    }

    pub fn failure(&self, id: &ReservationId) -> Option<Refusal> {
        self.kept().last_failure.get(id).cloned()
    }

    pub fn given_back(&self, id: &ReservationId) -> Vec<GivenBack> {
        self.kept().given_back.get(id).cloned().unwrap_or_default()
    }

    pub fn baselines(&self) -> Vec<Baseline> {
        self.kept().baselines.values().map(|baseline| (**baseline).clone()).collect()
    }
}

impl Records for Book {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.kept().snapshot)
    }

    fn note(&self, intent: u64, step: StepNote) -> Result<(), ApiError> {
        self.crash.point("before a note");
        {
            let mut kept = self.kept();
            let Some((_, steps)) = kept.intents.get_mut(&intent) else {
                return Err(ApiError::internal("note", format!("intent {intent} is not open")));
            };
            steps.push(step);
        }
        self.crash.point("after a note");
        Ok(())
    }

    fn remember(&self, _intent: u64, baseline: Baseline) -> Result<(), ApiError> {
        self.crash.point("before a baseline");
        {
            let mut kept = self.kept();
            let device = baseline.device.clone();
            kept.baselines.entry(device).or_insert_with(|| Arc::new(baseline));
            let republished = publish(&kept.state, &self.host, &kept.baselines, &kept.intents);
            kept.snapshot = Arc::new(republished);
        }
        self.crash.point("after a baseline");
        Ok(())
    }

    fn vf_token(&self, physical: PciAddress) -> Result<VfToken, ApiError> {
        let mut kept = self.kept();
        let next = u8::try_from(kept.vf_tokens.len()).unwrap() + 1;
        Ok(*kept.vf_tokens.entry(physical).or_insert(VfToken([next; 16])))
    }

    fn outcome(&self, intent: u64, outcome: Outcome) -> Result<(), ApiError> {
        self.crash.point("before an outcome");
        {
            let mut kept = self.kept();
            let Some((closed, _)) = kept.intents.remove(&intent) else {
                return Err(ApiError::internal("outcome", format!("{intent} is not open")));
            };
            for device in &outcome.restored {
                kept.baselines.remove(device);
            }
            observe(&mut kept, &self.host);
            apply(&mut kept, &outcome.command)?;
            if let Some(id) = closed.reservation {
                kept.last_failure.extend(outcome.failure.map(|why| (id.clone(), *why)));
                kept.given_back.insert(id, outcome.given_back);
            }
            let republished = publish(&kept.state, &self.host, &kept.baselines, &kept.intents);
            kept.snapshot = Arc::new(republished);
        }
        self.changed.notify_all();
        self.crash.point("after an outcome");
        Ok(())
    }

    fn command(&self, command: Command, _cause: &str) -> Result<(), ApiError> {
        self.crash.point("before a command");
        if matches!(command, Command::HandOver { .. }) {
            self.pause();
        }
        self.order(&command)?;
        self.crash.point("after a command");
        Ok(())
    }

    fn carry_out(&self, command: Command, cause: &str) -> Result<bool, ApiError> {
        let of = match &command {
            Command::HandOver { order, .. } => order.reservation.clone(),
            other => panic!("{cause}: {other:?}"),
        };
        self.crash.point("before a command");
        self.pause();
        self.kept().last_failure.remove(&of);
        let works = self.order(&command)?.iter().any(|event| intent_of(event).is_some());
        if works {
            self.settled();
            if let Some(failure) = self.failure(&of) {
                return Err(ApiError::Refused(Box::new(failure)));
            }
        }
        self.crash.point("after a command");
        Ok(works)
    }

    fn look(&self, _cause: &str) -> Result<(), ApiError> {
        Self::look(self);
        Ok(())
    }

    fn changed(&self, _devices: &[PciAddress]) -> Result<(), ApiError> {
        self.look();
        Ok(())
    }
}

fn publish(
    state: &State,
    host: &SimHost,
    baselines: &BTreeMap<DeviceId, Arc<Baseline>>,
    intents: &BTreeMap<u64, (Intent, Vec<StepNote>)>,
) -> Snapshot {
    let inventory = host.scan().unwrap_or_default();
    let index = InventoryIndex::new(&inventory, Default::default());
    Snapshot {
        looks: 0,
        state: Arc::new(state.clone()),
        inventory: Arc::new(inventory),
        index: Arc::new(index),
        fresh: Default::default(),
        health: Default::default(),
        seq: 0,
        boot: Boot { id: Arc::from("boot"), offset_ms: 0 },
        extras: Default::default(),
        baselines: baselines.iter().map(|(id, had)| (id.clone(), Arc::clone(had))).collect(),
        identities: Default::default(),
        intents: intents.iter().map(|(id, (intent, _))| (*id, Arc::new(intent.clone()))).collect(),
    }
}

fn observe(kept: &mut Kept, host: &SimHost) {
    let Ok(inventory) = host.scan() else { return };
    let time = now(kept.clock);
    for facts in group_facts(host, &inventory) {
        let events = kept.state.decide(&Command::Observe(facts), &time).unwrap();
        kept.state.apply_all(&events);
    }
}

fn group_facts(host: &SimHost, inventory: &Inventory) -> Vec<GroupFacts> {
    let of = |address: &PciAddress| {
        let facts = inventory.devices.iter().find(|device| device.address == *address)?;
        let mut device = DeviceFacts::new(address.to_string().as_str());
        let driver = facts.driver.clone().unwrap_or_default();
        device.bridge = facts.bridge;
        device.dma = match facts.dma {
            DmaKind::None => DriverDma::None,
            DmaKind::Managed => DriverDma::Managed(driver),
            DmaKind::Kernel => DriverDma::Kernel(driver),
            DmaKind::Assumed => DriverDma::Assumed(driver),
        };
        device.uses = host
            .uses(*address)
            .ok()?
            .into_iter()
            .map(|used| HostUse { kind: used.kind, what: used.detail })
            .collect();
        Some(device)
    };
    inventory
        .groups
        .iter()
        .map(|group| GroupFacts {
            id: group.stable_id.as_str().into(),
            devices: group.members.iter().filter_map(of).collect(),
            foreign_pids: Vec::new(),
            foreign: Vec::new(),
        })
        .collect()
}

fn apply(kept: &mut Kept, command: &Command) -> Result<(Vec<Event>, Vec<Intent>), Box<Refusal>> {
    kept.clock += 1;
    let events = kept.state.decide(command, &now(kept.clock))?;
    kept.state.apply_all(&events);
    berth_ownership::invariants::check(&kept.state).unwrap();
    let mut intents = Vec::new();
    for event in &events {
        let Some((reservation, body)) = intent_of(event) else { continue };
        let id = kept.next;
        kept.next += 1;
        let intent = Intent { id, reservation, kind: body.kind(), body };
        kept.intents.insert(id, (intent.clone(), Vec::new()));
        intents.push(intent);
    }
    Ok((events, intents))
}

fn intent_of(event: &Event) -> Option<(Option<ReservationId>, IntentBody)> {
    match event {
        Event::Reserved { reservation } => reservation
            .pending
            .as_ref()
            .map(|_| (Some(reservation.id.clone()), IntentBody::Prepare)),
        Event::Started { reservation, pending } => {
            Some((Some(reservation.clone()), started(pending)))
        }
        Event::KernelDmaStarted { device, op } => {
            let device = device.clone();
            let body = match op {
                KernelDmaOp::Set { driver } => {
                    IntentBody::KernelDmaSet { device, driver: driver.clone() }
                }
                KernelDmaOp::Release => IntentBody::KernelDmaRelease { device },
            };
            Some((None, body))
        }
        Event::SriovStarted { device, op, .. } => {
            Some((None, IntentBody::Sriov { device: device.clone(), op: *op }))
        }
        _ => None,
    }
}

fn started(pending: &Pending) -> IntentBody {
    match pending.kind {
        OperationKind::Prepare => IntentBody::Prepare,
        OperationKind::Attach => IntentBody::Attach { domain: pending.domain.clone() },
        OperationKind::Detach => IntentBody::Detach,
        OperationKind::Replace => {
            IntentBody::Replace { domain: pending.domain.clone().expect("replace has a domain") }
        }
        OperationKind::HandOver => IntentBody::HandOver,
        OperationKind::Release => {
            IntentBody::Release { force: pending.force, cause: pending.cause.clone() }
        }
    }
}
