//! A batch in the making: commands are decided on it one after the other. It becomes the book when
//! its rows are durable, and is thrown away when they can't be written.

use std::{collections::HashMap, sync::Arc};

use berth_host::PciAddress;
use berth_ownership::{
    Command, DeviceId, Event, KernelDmaOp, OperationKind, Pending, Reason, Refusal, ReservationId,
    ReservationState, Time,
};

use super::{
    Clock,
    book::Book,
    events::{self, About, Touched},
    requests::{Closed, Requests},
    rows,
};
use crate::{
    json,
    model::{AnswerOf, Extra, Gone, Intent, IntentBody, Meta, Outcome},
    store::{ClosedIntentRow, EventRecord, IntentRow, Rows},
    view,
};

/// A batch in the making.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) book: Book,
    pub(super) rows: Rows,
    pub(super) requests: Requests,
    pub(super) events: Vec<Arc<EventRecord>>,
    pub(super) opened: Vec<Intent>,
    /// Devices that went, whose descriptors are of no use any more.
    pub(super) gone: Vec<Gone>,
    touched: Touched,
    clock: Clock,
    /// What will be known of a reservation beside its record from the next event about it on.
    next_extra: Option<(ReservationId, Extra)>,
    /// Intents that ended, whose requests wait for an answer about something.
    owed: Vec<(u64, AnswerOf)>,
}

/// Where a draft goes back to when a command of several is refused.
#[derive(Debug)]
pub(super) struct Savepoint {
    book: Book,
    events: usize,
    opened: usize,
    gone: usize,
    intents: usize,
    closed: HashMap<u64, Closed>,
    intents_closed: usize,
    owed: usize,
}

impl Draft {
    /// On top of a book, which needn't be durable.
    pub(super) fn new(mut book: Book, clock: Clock) -> Self {
        book.boot = clock.boot(Some(&book.boot));
        Self {
            book,
            rows: Rows::default(),
            requests: Requests::default(),
            events: Vec::new(),
            opened: Vec::new(),
            gone: Vec::new(),
            touched: Touched::default(),
            clock,
            next_extra: None,
            owed: Vec::new(),
        }
    }

    pub(super) fn now(&self) -> Time {
        self.clock.now()
    }

    pub(super) fn savepoint(&self) -> Savepoint {
        Savepoint {
            book: self.book.clone(),
            events: self.events.len(),
            opened: self.opened.len(),
            gone: self.gone.len(),
            intents: self.rows.intents.len(),
            closed: self.requests.closed.clone(),
            intents_closed: self.rows.intents_closed.len(),
            owed: self.owed.len(),
        }
    }

    pub(super) fn back_to(&mut self, saved: Savepoint) {
        self.book = saved.book;
        self.events.truncate(saved.events);
        self.opened.truncate(saved.opened);
        self.gone.truncate(saved.gone);
        self.rows.intents.truncate(saved.intents);
        self.requests.closed = saved.closed;
        self.rows.intents_closed.truncate(saved.intents_closed);
        self.owed.truncate(saved.owed);
    }

    /// Decides a command and applies what it leads to.
    pub(super) fn command(
        &mut self,
        command: &Command,
        meta: &Meta,
        failure: Option<&Refusal>,
    ) -> Result<Vec<Event>, Box<Refusal>> {
        let now = self.clock.now();
        let events = self.book.state.decide(command, &now)?;
        let touched: Vec<Touched> =
            events.iter().map(|event| self.event(event, meta, &now)).collect();
        for (event, touched) in events.iter().zip(touched) {
            self.settle(event, &touched, failure, &now);
            self.touched.merge(touched);
        }
        Ok(events)
    }

    /// Applies one event and records it with the object before and after. Answers what it touched.
    fn event(&mut self, event: &Event, meta: &Meta, now: &Time) -> Touched {
        let about = events::about(event);
        let before = events::render(&self.book, &about);
        let foreign = events::is_foreign(&self.book, &about);
        let (mut groups, mut devices) = events::concerned(&self.book, &about);
        let whose = self.whose(event, &about);
        self.gone.extend(self.goes(event));
        let mut touched = Touched::default();
        touched.add(&self.book, event);
        if event.reservation() == self.next_extra.as_ref().map(|(id, _)| id) {
            self.take_extra();
        }
        self.book.state.apply(event);
        self.follow(event);
        touched.add(&self.book, event);
        let after = events::given_reason(event, events::render(&self.book, &about));
        let (more_groups, more_devices) = events::concerned(&self.book, &about);
        merge(&mut groups, more_groups);
        merge(&mut devices, more_devices);
        self.book.seq += 1;
        self.events.push(Arc::new(EventRecord {
            seq: self.book.seq,
            time_unix_ms: now.unix_ms.0,
            boot_id: Arc::clone(&self.book.boot.id),
            actor: meta.actor.clone(),
            cause: meta.cause.clone(),
            request_id: meta
                .request_id
                .as_ref()
                .map(|request| request.id.clone())
                .unwrap_or_default(),
            kind: events::kind(event, &about, foreign),
            groups,
            devices,
            reservation: whose.map(|id| id.to_string()).unwrap_or_default(),
            before,
            after,
        }));
        self.intend(event, now);
        touched
    }

    /// The reservation that an event is about; of a device that goes, the one that claims it.
    fn whose(&self, event: &Event, about: &About) -> Option<ReservationId> {
        if let About::Reservation(id) = about {
            return Some(id.clone());
        }
        let Event::DeviceGone { device } = event else { return None };
        let state = &self.book.state;
        let group = state.group(&state.device(device)?.group)?;
        let mut holders = state.reservations_of(group);
        let holder = holders.find(|holder| holder.devices().any(|other| other == device));
        holder.map(|holder| holder.id.clone())
    }

    /// The device that an event takes away, with the number that its group had.
    fn goes(&self, event: &Event) -> Option<Gone> {
        let Event::DeviceGone { device: id } = event else { return None };
        let group = self.book.state.group(&self.book.state.device(id)?.group)?;
        let device = id.as_str().parse().ok()?;
        let known = self.book.inventory.groups.iter();
        let number = known.filter(|known| known.stable_id == group.id.as_str());
        let number = number.map(|known| known.number).next();
        Some(Gone { device, group: number.filter(|_| group.devices == [id.clone()]) })
    }

    /// Keeps what stands beside the state in step with it.
    fn follow(&mut self, event: &Event) {
        match event {
            Event::Started { reservation, .. } => {
                let stale = self
                    .book
                    .extras
                    .get(reservation)
                    .is_some_and(|extra| extra.last_failure.is_some());
                if stale {
                    self.extra(reservation, |extra| extra.last_failure = None);
                }
            }
            Event::Released { reservation, .. } => {
                self.book.released.push_back(reservation.clone());
            }
            Event::Forgotten { reservation } => {
                self.book.extras.remove(reservation);
            }
            // What comes to this address has a driver and a health of its own.
            Event::DeviceGone { device } => {
                if let Ok(address) = device.as_str().parse::<PciAddress>() {
                    self.book.health.remove(&address);
                }
                if self.book.baselines.remove(device).is_some() {
                    self.rows.baselines_gone.push(device.to_string());
                }
                if self.book.vf_tokens.remove(device).is_some() {
                    self.rows.vf_tokens_gone.push(device.to_string());
                }
            }
            _ => {}
        }
    }

    fn extra(&mut self, id: &ReservationId, change: impl FnOnce(&mut Extra)) {
        let known = self.book.extras.get(id);
        let mut extra = known.map(|known| Extra::clone(known)).unwrap_or_default();
        change(&mut extra);
        self.book.extras.insert(id.clone(), Arc::new(extra));
        self.touched.reservations.insert(id.clone());
    }

    fn take_extra(&mut self) {
        if let Some((id, extra)) = self.next_extra.take() {
            self.book.extras.insert(id, Arc::new(extra));
        }
    }

    /// Opens the intent that an event asks for.
    fn intend(&mut self, event: &Event, now: &Time) {
        let (reservation, body) = match event {
            Event::Started { reservation, pending } => (Some(reservation), body_of(pending)),
            Event::Reserved { reservation } => match &reservation.pending {
                Some(pending) => (Some(&reservation.id), body_of(pending)),
                None => return,
            },
            Event::KernelDmaStarted { device, op } => {
                let device = device.clone();
                let body = match op {
                    KernelDmaOp::Set { driver } => {
                        IntentBody::KernelDmaSet { device, driver: driver.clone() }
                    }
                    KernelDmaOp::Release => IntentBody::KernelDmaRelease { device },
                };
                (None, body)
            }
            Event::SriovStarted { device, op, .. } => {
                (None, IntentBody::Sriov { device: device.clone(), op: *op })
            }
            _ => return,
        };
        self.book.last_intent += 1;
        let id = self.book.last_intent;
        let intent = Intent { id, reservation: reservation.cloned(), kind: body.kind(), body };
        if let Some(older) = self.book.open.get(&super::book::key(&intent)).copied() {
            self.close(older, None, "superseded", now);
        }
        self.rows.intents.push(IntentRow(
            id,
            reservation.map(ToString::to_string),
            raw(&intent.body),
            self.book.boot.id.to_string(),
            now.unix_ms.0,
        ));
        self.book.insert_intent(intent.clone());
        self.opened.push(intent);
    }

    /// Closes the intent of what an event was about, once nothing is under way there. Groups and
    /// devices that vanish can end what was under way in all that they touch.
    fn settle(&mut self, event: &Event, touched: &Touched, failure: Option<&Refusal>, now: &Time) {
        let reservations = touched.reservations.iter().map(ToString::to_string);
        let devices = touched.devices.iter().map(ToString::to_string);
        let (own, keys): (_, Vec<String>) = match events::about(event) {
            About::Reservation(id) => (id.to_string(), vec![id.to_string()]),
            About::Device(id) => (id.to_string(), reservations.chain(devices).collect()),
            About::Group(_) => (String::new(), reservations.chain(devices).collect()),
            About::Context(_) | About::Domain(_) | About::Store => return,
        };
        for key in keys {
            let Some(intent) = self.book.open.get(&key).copied() else { continue };
            if !self.under_way(intent) {
                let outcome = if own == key { "done" } else { "moot" };
                let outcome = failure.map_or(outcome, |failure| failure.reason.name());
                self.close(intent, failure, outcome, now);
            }
        }
    }

    /// Whether what an intent is for has its work still before it.
    fn under_way(&self, intent: u64) -> bool {
        let state = &self.book.state;
        let Some(intent) = self.book.intents.get(&intent) else { return false };
        match (&intent.reservation, intent.body.device()) {
            (Some(id), _) => state.reservation(id).is_some_and(|record| record.pending.is_some()),
            (None, Some(id)) => state.device(id).is_some_and(|device| device.is_worked_on()),
            (None, None) => true,
        }
    }

    fn close(&mut self, intent: u64, failure: Option<&Refusal>, outcome: &str, now: &Time) {
        let text = failure.map_or_else(
            || outcome.to_owned(),
            |failure| format!("{}: {}", failure.reason.name(), failure.message),
        );
        self.rows.intents_closed.push(ClosedIntentRow(intent, now.unix_ms.0, text));
        let about = self.book.waiting.remove(&intent);
        self.owed.extend(about.map(|about| (intent, about)));
        self.book.remove_intent(intent);
        let failure = failure.map(|failure| Box::new(failure.clone()));
        self.requests.closed.insert(intent, Closed { failure, answer: None });
    }

    /// Answers the requests whose intents ended, once all that the message brings is known: what was
    /// seen of the devices after the work comes with its outcome.
    pub(super) fn answer_owed(&mut self) {
        if self.owed.is_empty() {
            return;
        }
        let (now, snapshot) = (self.clock.now(), self.book.snapshot());
        for (intent, about) in std::mem::take(&mut self.owed) {
            let Some(closed) = self.requests.closed.get_mut(&intent) else { continue };
            closed.answer = view::answer(&snapshot, &about, &now);
            let refusal = closed.failure.as_ref();
            let refusal = refusal.map(|it| json::to_string(it).unwrap_or_default());
            if closed.answer.is_some() || refusal.is_some() {
                self.rows.answers.push((intent, closed.answer.clone(), refusal));
            }
        }
    }

    /// Takes the outcome of an intent.
    pub(super) fn outcome(
        &mut self,
        intent: u64,
        outcome: &Outcome,
        meta: &Meta,
    ) -> Result<Vec<Event>, Box<Refusal>> {
        let Some(open) = self.book.intents.get(&intent).cloned() else {
            let text = format!("intent {intent} has ended already");
            return Err(Refusal::new(Reason::NoOperation, intent, text));
        };
        if let Some(id) = &open.reservation
            && (outcome.failure.is_some() || !outcome.given_back.is_empty())
        {
            let extra = Extra {
                last_failure: outcome.failure.as_deref().cloned(),
                given_back: outcome.given_back.clone(),
            };
            self.next_extra = Some((id.clone(), extra));
        }
        let decided = self.command(&outcome.command, meta, outcome.failure.as_deref());
        self.next_extra = None;
        let events = decided?;
        let mut restored: Vec<DeviceId> = outcome.restored.clone();
        match &outcome.command {
            Command::ReleaseDone { returned, .. } | Command::PrepareFailed { returned, .. } => {
                restored.extend(
                    returned
                        .iter()
                        .filter(|device| device.baseline_restored)
                        .map(|device| device.device.clone()),
                );
            }
            Command::KernelDmaDone { device, .. } => {
                if matches!(open.body, IntentBody::KernelDmaSet { .. }) {
                    restored.push(device.clone());
                }
            }
            _ => {}
        }
        for device in restored {
            if self.book.baselines.remove(&device).is_some() {
                self.rows.baselines_gone.push(device.to_string());
            }
        }
        Ok(events)
    }

    /// Forgets released reservations beyond those that are kept.
    pub(super) fn forget(&mut self, keep: usize) {
        while self.book.released.len() > keep {
            let Some(id) = self.book.released.pop_front() else { return };
            let released = self
                .book
                .state
                .reservation(&id)
                .is_some_and(|record| record.state == ReservationState::Released);
            let command = Command::Forget { reservation: id };
            let Ok(events) = self.book.state.decide(&command, &self.clock.now()) else { continue };
            if released {
                for event in &events {
                    self.touched.add(&self.book, event);
                    self.book.state.apply(event);
                    self.follow(event);
                }
            }
        }
    }

    /// Completes the rows by all records that differ from before.
    pub(super) fn complete(&mut self, before: &Book) {
        rows::records(&mut self.rows, &self.touched, before, &self.book);
        self.rows.events.clone_from(&self.events);
    }
}

fn raw(body: &IntentBody) -> String {
    // An intent's body is plain data: serializing it can't fail.
    json::to_string(body).unwrap_or_default()
}

fn merge(list: &mut Vec<String>, more: Vec<String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

fn body_of(pending: &Pending) -> IntentBody {
    match pending.kind {
        OperationKind::Prepare => IntentBody::Prepare,
        OperationKind::Attach => IntentBody::Attach { domain: pending.domain.clone() },
        OperationKind::Detach => IntentBody::Detach,
        OperationKind::Replace => match &pending.domain {
            Some(domain) => IntentBody::Replace { domain: domain.clone() },
            None => IntentBody::Attach { domain: None },
        },
        OperationKind::HandOver => IntentBody::HandOver,
        OperationKind::Release => {
            IntentBody::Release { force: pending.force, cause: pending.cause.clone() }
        }
    }
}
