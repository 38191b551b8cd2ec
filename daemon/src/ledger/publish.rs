//! What follows when a batch is durable, or can't be made so.

use std::{collections::HashMap, mem, path::Path, sync::Arc};

use tokio::sync::oneshot;

use super::{
    decide::Answer,
    draft::Draft,
    requests::Closed,
    task::{Batch, Task},
};
use crate::{
    model::{ApiError, Applied, Completion, Snapshot},
    store::StoreError,
    view::WatchedEvent,
};

impl Task {
    /// Publishes a durable batch, answers, and hands intents over.
    pub(super) fn publish(&mut self, batch: Batch) {
        let Batch { draft: Draft { book, events, opened, gone, requests, .. }, answers } = batch;
        let old = mem::replace(&mut self.book, book);
        let snapshot = Arc::new(self.book.snapshot());
        let shown = self.shared.published.swap(Arc::clone(&snapshot));
        for event in &events {
            tracing::debug!(
                seq = event.seq,
                actor = event.actor,
                cause = event.cause,
                reservation = event.reservation,
                devices = ?event.devices,
                "{}",
                event.kind
            );
        }
        let events = events.into_iter().map(|event| Arc::new(WatchedEvent::new(event)));
        self.shared.feed.publish(events);
        if let Some(executor) = self.shared.executor.get() {
            if !gone.is_empty() {
                executor.gone(&gone);
            }
            for intent in opened {
                if snapshot.intents.contains_key(&intent.id) {
                    executor.submit(intent, Arc::clone(&snapshot));
                }
            }
        }
        for answer in answers {
            self.answer(answer, &snapshot, &requests.closed);
        }
        for (intent, closed) in &requests.closed {
            for waiter in self.waiters.remove(intent).unwrap_or_default() {
                let _ = waiter.send(completion(&snapshot, closed));
            }
        }
        self.inbox.durable(requests);
        // All of a large machine may be in it, which isn't to stay for nothing.
        let rescanned = !Arc::ptr_eq(&old.inventory, &self.book.inventory);
        self.spent = (!rescanned).then_some((old, shown));
    }

    /// Answers batches that can't be made durable with what keeps the first of them from it: also
    /// those who were refused, as what they were refused for never was.
    pub(super) fn never_were(
        &mut self,
        error: &StoreError,
        batches: [Option<Batch>; 2],
        dir: &Path,
    ) {
        tracing::error!(error = error.chain(), "the store can't be written; nothing changed");
        let error = match self.degrade(error, dir) {
            Some(degraded) => degraded.refusal(),
            None => {
                let text = format!("the store can't be written: {}", error.chain());
                ApiError::unavailable("store", text)
            }
        };
        self.refusals.undo();
        for answer in batches.into_iter().flatten().flat_map(|batch| batch.answers) {
            match answer {
                Answer::Applied(reply, _) => drop(reply.send(Err(error.clone()))),
                Answer::Done(reply, _) => drop(reply.send(Err(error.clone()))),
                Answer::VfToken(reply, _) => drop(reply.send(Err(error.clone()))),
            }
        }
    }

    fn answer(&mut self, answer: Answer, snapshot: &Arc<Snapshot>, closed: &HashMap<u64, Closed>) {
        match answer {
            Answer::Done(reply, result) => {
                let _ = reply.send(result);
            }
            Answer::VfToken(reply, token) => {
                let _ = reply.send(Ok(token));
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
