//! The task: decides what comes, makes it durable, publishes and answers.
//!
//! While SQLite writes a batch, the next one is decided on top of it. When the first is durable,
//! the next is handed to SQLite before the first is published and answered, so that neither waits
//! for the other. Nothing that rests on a batch leaves the task before that is durable.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    LedgerConfig, Shared,
    book::Book,
    decide::{Answer, Known, decide},
    draft::Draft,
    inbox::Inbox,
    message::Message,
    requests::Refusals,
};
use crate::{
    model::{Completion, Snapshot},
    store::{Going, Rows, StoreError, Writer},
};

/// How many messages one transaction takes at most.
pub(super) const BATCH: usize = 1024;
/// How many it takes at most when nothing is being written: the others are decided meanwhile.
const FIRST: usize = 16;
/// How long request ids and ended intents are kept.
pub(super) const HISTORY_MS: u64 = 24 * 60 * 60 * 1000;
/// How many transactions lie between two prunings.
const PRUNE_EVERY: u64 = 1024;

/// What is decided, becomes durable and is answered together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) draft: Draft,
    pub(super) answers: Vec<Answer>,
}

/// The task's own.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) config: LedgerConfig,
    /// What is durable and published.
    pub(super) book: Book,
    pub(super) inbox: Inbox,
    pub(super) waiters: HashMap<u64, Vec<oneshot::Sender<Completion>>>,
    /// Transactions so far.
    pub(super) commits: u64,
    pub(super) refusals: Refusals,
    /// What was published before: it is let go of while SQLite writes, when nobody waits.
    pub(super) spent: Option<(Book, Arc<Snapshot>)>,
}

impl Task {
    /// Runs until the last handle is gone and all that was asked is answered.
    pub(super) async fn run(mut self, mut writer: Writer) {
        loop {
            if self.is_degraded() {
                writer = self.be_degraded(writer).await;
            }
            let Some(message) = self.inbox.next().await else { break };
            if let Message::Turn { reply } = message {
                // Nothing is being written, and it asks for nothing to be. Whoever asked may have
                // stopped to wait.
                let _ = reply.send(Ok(()));
                continue;
            }
            let batch = self.first(message);
            writer = self.write(writer, batch).await;
        }
        self.inbox.close().await;
        writer.close().await;
    }

    /// A batch on top of what is durable: a message, and what came with it.
    fn first(&mut self, message: Message) -> Batch {
        let mut batch = self.batch_on(&self.book);
        self.decide(&mut batch, None, message);
        while batch.answers.len() < FIRST
            && let Some(message) = self.inbox.waiting()
        {
            self.decide(&mut batch, None, message);
        }
        batch
    }

    /// Writes a batch, and what is decided meanwhile, until nothing was.
    async fn write(&mut self, writer: Writer, mut batch: Batch) -> Writer {
        let rows = self.complete(&mut batch, None);
        let mut write = Going::start(writer, rows);
        loop {
            let (writer, done, next) = self.meanwhile(write, &batch).await;
            if let Err(error) = done {
                self.never_were(&error, [Some(batch), next], writer.dir());
                return writer;
            }
            self.refusals.keep();
            let Some(mut next) = next else {
                self.publish(batch);
                return writer;
            };
            let rows = self.complete(&mut next, Some(&batch));
            write = Going::start(writer, rows);
            self.publish(batch);
            batch = next;
        }
    }

    /// Decides what comes while a batch is written, on top of it.
    async fn meanwhile(
        &mut self,
        mut write: Going,
        batch: &Batch,
    ) -> (Writer, Result<(), StoreError>, Option<Batch>) {
        self.spent = None;
        let mut next: Option<Batch> = None;
        loop {
            let room = next.as_ref().is_none_or(|next| next.answers.len() < BATCH);
            tokio::select! {
                biased;
                (writer, done) = write.over() => return (writer, done, next),
                Some(message) = self.inbox.next(), if room => {
                    let next = next.get_or_insert_with(|| self.batch_on(&batch.draft.book));
                    self.decide(next, Some(batch), message);
                }
            }
        }
    }

    pub(super) fn batch_on(&self, book: &Book) -> Batch {
        let draft = Draft::new(book.clone(), self.shared.clock.clone());
        Batch { draft, answers: Vec::new() }
    }

    /// Decides a message on a batch, which comes after another that isn't durable.
    pub(super) fn decide(&mut self, batch: &mut Batch, before: Option<&Batch>, message: Message) {
        let before = before.map(|before| &before.draft.requests);
        let quotas = self.shared.quotas.get();
        let mut known = Known {
            earlier: self.inbox.earlier(before),
            refusals: &mut self.refusals,
            quotas: &quotas,
        };
        batch.answers.push(decide(&mut batch.draft, &mut known, message));
    }

    /// Ends a batch: nothing more is decided on it. Answers what is to be written.
    pub(super) fn complete(&mut self, batch: &mut Batch, before: Option<&Batch>) -> Rows {
        let Batch { draft, .. } = batch;
        self.refusals.seal();
        draft.forget(self.config.retain_released);
        draft.complete(before.map_or(&self.book, |before| &before.draft.book));
        self.prune(draft);
        std::mem::take(&mut draft.rows)
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
        if draft.rows.is_empty() {
            return;
        }
        self.commits += 1;
        if self.commits.is_multiple_of(PRUNE_EVERY) {
            let now = self.shared.clock.now().unix_ms.0;
            draft.rows.history_before_unix_ms = now.saturating_sub(HISTORY_MS);
            draft.rows.meta.push(("last_intent".to_owned(), book.last_intent.to_string()));
        }
    }
}
