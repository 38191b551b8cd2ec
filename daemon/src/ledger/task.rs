//! The task: takes what waits, decides it, makes it durable, publishes and answers.

use std::{collections::HashMap, sync::Arc};

use berth_host::PciAddress;
use berth_ownership::{Command, Event, Reason};
use tokio::sync::{mpsc, oneshot};

use super::{
    LedgerConfig, Message, Scan, Shared,
    book::Book,
    draft::{Closed, Draft},
    facts,
    requests::{self, Found, Refusals, Requests},
};
use crate::{
    model::{
        AnswerOf, ApiError, Applied, Baseline, Completion, InventoryIndex, Looked, Meta, Snapshot,
        StepNote,
    },
    store::{BaselineRow, StepRow, Writer},
    view,
};

/// How many messages one transaction takes at most.
const BATCH: usize = 1024;
/// How often the queue is looked at again while it still fills.
const GATHER: usize = 4;
/// How long request ids and ended intents are kept.
pub(super) const HISTORY_MS: u64 = 24 * 60 * 60 * 1000;
/// How many commits lie between two prunings.
const PRUNE_EVERY: u64 = 1024;

/// An answer that waits for the commit.
enum Answer {
    Applied(oneshot::Sender<Result<Applied, ApiError>>, Result<Decided, ApiError>),
    Done(oneshot::Sender<Result<(), ApiError>>, Result<(), ApiError>),
}

/// What a command came to, before the commit.
struct Decided {
    events: Vec<Event>,
    /// The last event that it led to, or that there was.
    seq: u64,
    /// The intent whose end the caller may wait for.
    intent: Option<u64>,
    about: Option<AnswerOf>,
    replayed: Option<Result<String, Box<berth_ownership::Refusal>>>,
}

/// The task's own.
pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) config: LedgerConfig,
    pub(super) writer: Writer,
    pub(super) book: Book,
    pub(super) queue: mpsc::Receiver<Message>,
    pub(super) waiters: HashMap<u64, Vec<oneshot::Sender<Completion>>>,
    pub(super) commits: u64,
    pub(super) refusals: Refusals,
}

impl Task {
    /// Runs until the last handle is gone.
    pub(super) async fn run(mut self) {
        let mut batch = Vec::new();
        while self.queue.recv_many(&mut batch, BATCH).await > 0 {
            self.gather(&mut batch).await;
            let messages = std::mem::take(&mut batch);
            self.batch(messages).await;
        }
        self.writer.close().await;
    }

    /// Lets callers that were just answered ask again, so that they share the next commit.
    async fn gather(&mut self, batch: &mut Vec<Message>) {
        for _ in 0..GATHER {
            let before = batch.len();
            if before >= BATCH || before == 1 && self.waiters.is_empty() && self.queue.is_empty() {
                return;
            }
            tokio::task::yield_now().await;
            while batch.len() < BATCH {
                let Ok(message) = self.queue.try_recv() else { break };
                batch.push(message);
            }
            if batch.len() == before {
                return;
            }
        }
    }

    async fn batch(&mut self, messages: Vec<Message>) {
        let stored = match self.stored_requests(&messages).await {
            Ok(stored) => stored,
            Err(error) => {
                let answers = messages.into_iter().map(refuse_unread).collect();
                refuse_all(answers, &error);
                return;
            }
        };
        let clock = self.shared.clock.clone();
        let mut book = self.book.clone();
        book.boot = clock.boot(Some(&book.boot));
        let refusals = std::mem::take(&mut self.refusals);
        let mut draft = Draft::new(book, stored, refusals, clock);
        let answers: Vec<Answer> =
            messages.into_iter().map(|message| decide(&mut draft, message)).collect();
        draft.forget(self.config.retain_released);
        draft.complete(&self.book);
        self.prune(&mut draft);
        if !draft.rows.is_empty()
            && let Err(error) = self.writer.write(&draft.rows).await
        {
            tracing::error!(error = error.chain(), "the store can't be written; nothing changed");
            let text = format!("the store can't be written: {}", error.chain());
            self.refusals = draft.refusals;
            self.refusals.undo();
            refuse_all(answers, &ApiError::unavailable("store", text));
            return;
        }
        self.commits += 1;
        self.publish(draft, answers);
    }

    async fn stored_requests(&mut self, messages: &[Message]) -> Result<Requests, ApiError> {
        let keys: Vec<(String, String)> = messages
            .iter()
            .filter_map(|message| match message {
                Message::Submit { meta, .. } | Message::Refuse { meta, .. } => {
                    let request = meta.request_id.as_ref()?;
                    Some((meta.actor.clone(), request.id.clone()))
                }
                Message::Outcome { .. }
                | Message::Note { .. }
                | Message::Baselines { .. }
                | Message::Refresh { .. }
                | Message::Observe { .. } => None,
            })
            .collect();
        if keys.is_empty() {
            return Ok(Requests::default());
        }
        let stored = self.writer.requests(&keys).await.map_err(|error| {
            tracing::error!(error = error.chain(), "the store can't be read");
            ApiError::unavailable("store", format!("the store can't be read: {}", error.chain()))
        })?;
        Ok(Requests::new(stored))
    }

    /// Lets old history go, now and then.
    fn prune(&mut self, draft: &mut Draft) {
        let book = &mut draft.book;
        let keep = self.config.retain_events.max(1);
        let slack = keep / 8 + 1;
        if book.seq.saturating_sub(book.oldest_seq) > keep.saturating_add(slack) {
            let before = book.seq.saturating_sub(keep);
            draft.rows.events_before = before;
            book.oldest_seq = before + 1;
        }
        if self.commits % PRUNE_EVERY == PRUNE_EVERY - 1 && !draft.rows.is_empty() {
            let now = self.shared.clock.now().unix_ms.0;
            draft.rows.history_before_unix_ms = now.saturating_sub(HISTORY_MS);
            draft.rows.meta.push(("last_intent".to_owned(), book.last_intent.to_string()));
        }
    }

    /// Publishes a durable draft, answers, and hands intents over.
    fn publish(&mut self, draft: Draft, answers: Vec<Answer>) {
        let Draft { book, events, opened, closed, refusals, .. } = draft;
        self.book = book;
        self.refusals = refusals;
        self.refusals.keep();
        let snapshot = Arc::new(self.book.snapshot());
        self.shared.published.store(Arc::clone(&snapshot));
        for event in events {
            tracing::debug!(
                seq = event.seq,
                actor = event.actor,
                cause = event.cause,
                reservation = event.reservation,
                devices = ?event.devices,
                "{}",
                event.kind
            );
            // Without a watcher there is nobody to send it to.
            let _ = self.shared.events.send(event);
        }
        if let Some(executor) = self.shared.executor.get() {
            for intent in opened {
                if snapshot.intents.contains_key(&intent.id) {
                    executor.submit(intent, Arc::clone(&snapshot));
                }
            }
        }
        for answer in answers {
            self.answer(answer, &snapshot, &closed);
        }
        for (intent, closed) in closed {
            for waiter in self.waiters.remove(&intent).unwrap_or_default() {
                let _ = waiter.send(completion(&snapshot, &closed));
            }
        }
    }

    fn answer(&mut self, answer: Answer, snapshot: &Arc<Snapshot>, closed: &HashMap<u64, Closed>) {
        match answer {
            Answer::Done(reply, result) => {
                let _ = reply.send(result);
            }
            Answer::Applied(reply, result) => {
                let applied = result.map(|decided| Applied {
                    seq: decided.seq,
                    snapshot: Arc::clone(snapshot),
                    events: decided.events,
                    completion: decided.intent.map(|id| self.completion(id, snapshot, closed)),
                    about: decided.about,
                    replayed: decided.replayed,
                });
                // A caller that went away asked for something that is done all the same.
                let _ = reply.send(applied);
            }
        }
    }

    fn completion(
        &mut self,
        intent: u64,
        snapshot: &Arc<Snapshot>,
        closed: &HashMap<u64, Closed>,
    ) -> oneshot::Receiver<Completion> {
        let (sender, receiver) = oneshot::channel();
        match closed.get(&intent) {
            Some(closed) => {
                let _ = sender.send(completion(snapshot, closed));
            }
            None => self.waiters.entry(intent).or_default().push(sender),
        }
        receiver
    }
}

fn completion(snapshot: &Arc<Snapshot>, closed: &Closed) -> Completion {
    Completion {
        snapshot: Arc::clone(snapshot),
        failure: closed.failure.clone(),
        answer: closed.answer.clone(),
    }
}

fn refuse_unread(message: Message) -> Answer {
    let stopped = || ApiError::unavailable("store", "the store can't be read");
    match message {
        Message::Submit { reply, .. }
        | Message::Refuse { reply, .. }
        | Message::Outcome { reply, .. }
        | Message::Refresh { reply, .. }
        | Message::Observe { reply, .. } => Answer::Applied(reply, Err(stopped())),
        Message::Note { reply, .. } | Message::Baselines { reply, .. } => {
            Answer::Done(reply, Err(stopped()))
        }
    }
}

/// Answers everybody with what kept the batch from being written: also those who were refused, as
/// what they were refused for may never have been.
fn refuse_all(answers: Vec<Answer>, error: &ApiError) {
    for answer in answers {
        match answer {
            Answer::Applied(reply, _) => drop(reply.send(Err(error.clone()))),
            Answer::Done(reply, _) => drop(reply.send(Err(error.clone()))),
        }
    }
}

fn decide(draft: &mut Draft, message: Message) -> Answer {
    match message {
        Message::Submit { commands, meta, attempt, reply } => {
            Answer::Applied(reply, submit(draft, &commands, &meta, attempt))
        }
        Message::Refuse { refusal, meta, reply } => {
            let result = repeated(draft, &meta).and_then(|known| match known {
                Some(known) => Ok(known),
                None => {
                    keep_refusal(draft, &meta, &refusal);
                    Err(refusal.into())
                }
            });
            Answer::Applied(reply, result)
        }
        Message::Outcome { intent, outcome, looked, meta, reply } => {
            let result = draft.outcome(intent, &outcome, &meta).map_err(ApiError::from);
            if result.is_ok() {
                refresh(draft, looked, &Meta::internal(format!("intent {intent}")));
            }
            Answer::Applied(reply, result.map(|events| plain(draft, events)))
        }
        Message::Note { intent, note, reply } => Answer::Done(reply, step(draft, intent, note)),
        Message::Baselines { intent, baselines, reply } => {
            Answer::Done(reply, record_baselines(draft, intent, baselines))
        }
        Message::Refresh { looked, meta, reply } => {
            let events = refresh(draft, looked, &meta);
            Answer::Applied(reply, Ok(plain(draft, events)))
        }
        Message::Observe { scan, meta, reply } => {
            let events = observe(draft, *scan, &meta);
            Answer::Applied(reply, Ok(plain(draft, events)))
        }
    }
}

fn plain(draft: &Draft, events: Vec<Event>) -> Decided {
    Decided { events, seq: draft.book.seq, intent: None, about: None, replayed: None }
}

/// What a request that was made before came to; `None` for a new one.
fn repeated(draft: &Draft, meta: &Meta) -> Result<Option<Decided>, ApiError> {
    let Some(request) = &meta.request_id else { return Ok(None) };
    let decided = |intent, about, replayed| {
        let seq = draft.book.seq;
        Some(Decided { events: Vec::new(), seq, intent, about: Some(about), replayed })
    };
    match draft.requests.find(meta, request)? {
        Found::New => draft.refusals.find(meta, draft.now().unix_ms.0).map(|()| None),
        Found::Refused(refusal) => Err(refusal.into()),
        Found::Answered(answer, about) => Ok(decided(None, about, Some(answer))),
        Found::Waiting(intent, about) => {
            let known =
                draft.book.intents.contains_key(&intent) || draft.closed.contains_key(&intent);
            Ok(decided(known.then_some(intent), about, None))
        }
    }
}

fn submit(
    draft: &mut Draft,
    commands: &[Command],
    meta: &Meta,
    attempt: bool,
) -> Result<Decided, ApiError> {
    if let Some(known) = repeated(draft, meta)? {
        return Ok(known);
    }
    let saved = (commands.len() > 1).then(|| draft.savepoint());
    let opened = draft.opened.len();
    let mut events = Vec::new();
    for command in commands {
        match draft.command(command, meta, None) {
            Ok(more) => events.extend(more),
            Err(refusal) => {
                if let Some(saved) = saved {
                    draft.back_to(saved);
                }
                tracing::info!(
                    actor = meta.actor,
                    cause = meta.cause,
                    object = refusal.object,
                    reason = refusal.reason.name(),
                    "refused: {}",
                    refusal.message
                );
                if !attempt {
                    keep_refusal(draft, meta, &refusal);
                }
                return Err(refusal.into());
            }
        }
    }
    let intent = draft.opened.get(opened..).and_then(<[_]>::last).map(|intent| intent.id);
    remember(draft, meta, intent);
    let about = meta.request_id.as_ref().map(|request| request.answer.clone());
    Ok(Decided { events, seq: draft.book.seq, intent, about, replayed: None })
}

/// Keeps the refusal of a call with a request id, so that the same call gets it again.
fn keep_refusal(draft: &mut Draft, meta: &Meta, refusal: &berth_ownership::Refusal) {
    let now_unix_ms = draft.now().unix_ms.0;
    if let Some(stored) = draft.refusals.insert(meta, now_unix_ms, refusal) {
        draft.rows.requests.push(stored.clone());
        draft.requests.insert(stored);
    }
}

/// Keeps the answer of a call with a request id, or what it will be about.
fn remember(draft: &mut Draft, meta: &Meta, intent: Option<u64>) {
    let Some(request) = &meta.request_id else { return };
    let now = draft.now();
    let answer = match intent {
        Some(intent) => {
            draft.book.waiting.insert(intent, request.answer.clone());
            None
        }
        None => Some(
            view::answer(&draft.book.snapshot(), &request.answer, &now)
                .unwrap_or_else(|| "{}".to_owned()),
        ),
    };
    let stored = requests::stored(meta, request, now.unix_ms.0, intent, answer);
    draft.rows.requests.push(stored.clone());
    draft.requests.insert(stored);
}

fn step(draft: &mut Draft, intent: u64, note: StepNote) -> Result<(), ApiError> {
    open(draft, intent)?;
    let ordinal = draft.book.steps.get(&intent).copied().unwrap_or(0);
    draft.book.steps.insert(intent, ordinal + 1);
    draft.rows.steps.push(StepRow(intent, ordinal, note.step, note.detail));
    Ok(())
}

fn record_baselines(
    draft: &mut Draft,
    intent: u64,
    baselines: Vec<Baseline>,
) -> Result<(), ApiError> {
    open(draft, intent)?;
    for baseline in baselines {
        if draft.book.baselines.contains_key(&baseline.device) {
            continue;
        }
        draft.rows.baselines.push(BaselineRow(
            baseline.device.to_string(),
            baseline.driver.clone(),
            baseline.driver_override.clone(),
            intent,
        ));
        draft.book.baselines.insert(baseline.device.clone(), Arc::new(baseline));
    }
    Ok(())
}

fn open(draft: &Draft, intent: u64) -> Result<(), ApiError> {
    if draft.book.intents.contains_key(&intent) {
        return Ok(());
    }
    let text = format!("intent {intent} has ended already");
    Err(ApiError::new(Reason::NoOperation, intent, text))
}

/// Takes devices that were looked at again.
fn refresh(draft: &mut Draft, looked: Vec<Looked>, meta: &Meta) -> Vec<Event> {
    let commands = facts::of_look(&draft.book, &looked);
    let events = record(draft, &commands, meta);
    let known = draft.book.snapshot();
    for looked in looked {
        let address: PciAddress = looked.facts.address;
        let same = known.device(address) == Some(&looked.facts)
            && known.uses_of(address) == looked.uses.as_slice();
        if !same {
            draft.book.fresh.insert(address, Arc::new(looked));
        }
    }
    events
}

/// Takes a whole scan.
fn observe(draft: &mut Draft, scan: Scan, meta: &Meta) -> Vec<Event> {
    let (commands, identities) = facts::of_scan(&draft.book, &scan);
    let events = record(draft, &commands, meta);
    for (device, identity) in identities {
        draft.rows.identities.push((device.to_string(), identity.clone()));
        draft.book.identities.insert(device, identity.into());
    }
    draft.book.index = Arc::new(InventoryIndex::new(&scan.inventory, scan.uses));
    draft.book.inventory = Arc::new(scan.inventory);
    draft.book.fresh.clear();
    let boot = draft.book.boot.id.to_string();
    draft.rows.meta.push(("boot_id".to_owned(), boot));
    events
}

/// Facts are recorded; one that can't be is logged and leaves the others alone.
fn record(draft: &mut Draft, commands: &[Command], meta: &Meta) -> Vec<Event> {
    let mut events = Vec::new();
    for command in commands {
        match draft.command(command, meta, None) {
            Ok(more) => events.extend(more),
            Err(refusal) => tracing::warn!(object = refusal.object, %refusal, "a fact was refused"),
        }
    }
    events
}
