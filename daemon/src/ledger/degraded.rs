//! The task while the store can't be written: it answers what needs no write, refuses the rest, and
//! tries again and again.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    Clock, Scan,
    book::Book,
    decide::Answer,
    message::Message,
    task::{Batch, Task},
};
use crate::{
    model::{Degraded, InventoryIndex},
    store::{EventRecord, Loaded, StoreError, Writer, probe, way_out},
};

/// Before the first try; doubled up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(100);
/// Between two tries at most.
const LONGEST: Duration = Duration::from_secs(10);

/// Why the store can't be written, by what failed and by what the system says now.
pub(super) fn because(error: &StoreError, dir: &Path, clock: &Clock) -> Degraded {
    let path = dir.display().to_string();
    let mut message = error.chain();
    let mut errno = error.disk_errno().unwrap_or_default();
    if let Err((what, answer)) = probe(dir) {
        errno = answer.raw_os_error().unwrap_or(errno);
        message = format!("{message}; {what}: {answer}");
    }
    let way_out = way_out(errno, &path);
    Degraded { since_unix_ms: clock.now().unix_ms.0, errno, path, message, way_out }
}

impl Task {
    pub(super) fn is_degraded(&self) -> bool {
        self.shared.degraded.borrow().is_some()
    }

    /// Takes note that the store can't be written, where it is that and not a statement of ours.
    pub(super) fn degrade(&self, error: &StoreError, dir: &Path) -> Option<Arc<Degraded>> {
        error.disk_errno()?;
        let mut degraded = because(error, dir, &self.shared.clock);
        if let Some(before) = self.shared.degraded.borrow().as_ref() {
            degraded.since_unix_ms = before.since_unix_ms;
        }
        let degraded = Arc::new(degraded);
        tracing::error!("{}; {}", degraded.line(), degraded.way_out);
        self.shared.degraded.send_replace(Some(Arc::clone(&degraded)));
        Some(degraded)
    }

    /// Answers until the store can be written again, or nobody is left to ask.
    pub(super) async fn be_degraded(&mut self, mut writer: Writer) -> Writer {
        let mut pause = FIRST;
        let mut next_try = Instant::now() + pause;
        loop {
            tokio::select! {
                biased;
                () = sleep_until(next_try) => {
                    let Err(error) = self.heal(&mut writer).await else { return writer };
                    self.still(&error, writer.dir());
                    pause = (pause * 2).min(LONGEST);
                    next_try = Instant::now() + pause;
                }
                message = self.inbox.next() => {
                    let Some(message) = message else { return writer };
                    self.answer_unwritten(message);
                }
            }
        }
    }

    /// The store still can't be written, maybe for another reason.
    fn still(&self, error: &StoreError, dir: &Path) {
        let before = self.shared.degraded.borrow().clone();
        let mut now = because(error, dir, &self.shared.clock);
        let Some(before) = before else { return };
        now.since_unix_ms = before.since_unix_ms;
        if now.errno != before.errno {
            tracing::warn!("{}; {}", now.line(), now.way_out);
            self.shared.degraded.send_replace(Some(Arc::new(now)));
        }
    }

    /// Answers a message as far as that needs no write.
    fn answer_unwritten(&mut self, message: Message) {
        let Some(degraded) = self.shared.degraded.borrow().clone() else { return };
        match message {
            Message::Turn { reply } => drop(reply.send(Ok(()))),
            Message::Observe { scan, reply, .. } => {
                self.show(*scan);
                let _ = reply.send(Err(degraded.refusal()));
            }
            message => {
                let mut batch = self.batch_on(&self.book);
                self.decide(&mut batch, None, message);
                if self.complete(&mut batch, None).is_empty() {
                    self.refusals.keep();
                    self.publish(batch);
                } else {
                    self.refusals.undo();
                    refuse(batch, &degraded);
                }
            }
        }
    }

    /// Shows the machine as it is. What follows from that for the record waits.
    fn show(&mut self, scan: Scan) {
        let mut batch = self.batch_on(&self.book);
        let book = &mut batch.draft.book;
        book.index = Arc::new(InventoryIndex::new(&scan.inventory, scan.uses));
        book.inventory = Arc::new(scan.inventory);
        book.fresh.clear();
        self.publish(batch);
    }

    /// Opens the store anew, sees that it has what was committed, and writes that it goes on.
    async fn heal(&mut self, writer: &mut Writer) -> Result<(), StoreError> {
        let loaded = writer.reopen().await?;
        if let Err(error) = self.compare(loaded, writer.dir()) {
            writer.give_up().await;
            return Err(error);
        }
        let mut batch = self.batch_on(&self.book);
        self.note_end(&mut batch);
        let rows = self.complete(&mut batch, None);
        writer.write(rows).await?;
        self.refusals.keep();
        writer.lead(self.inbox.reader().await, &self.shared.store);
        self.publish(batch);
        self.shared.degraded.send_replace(None);
        tracing::info!("the state can be written again");
        Ok(())
    }

    fn compare(&self, mut loaded: Loaded, dir: &Path) -> Result<(), StoreError> {
        let found = Book::restore(&mut loaded, &self.shared.clock, self.config.table.clone())?;
        let book = &self.book;
        let same = found.seq == book.seq
            && found.state.parts() == book.state.parts()
            && found.baselines == book.baselines
            && found.vf_tokens == book.vf_tokens
            && found.intents == book.intents;
        if same {
            return Ok(());
        }
        Err(StoreError::Otherwise {
            path: dir.display().to_string(),
            found: format!("another record at event {}", found.seq),
            wanted: format!("event {}", book.seq),
        })
    }

    /// The event that says since when nothing could be written, and why.
    fn note_end(&self, batch: &mut Batch) {
        let Some(degraded) = self.shared.degraded.borrow().clone() else { return };
        let draft = &mut batch.draft;
        draft.book.seq += 1;
        let before = serde_json::json!({
            "degradedSinceUnixMs": degraded.since_unix_ms.to_string(),
            "errno": degraded.errno,
            "path": degraded.path,
            "message": degraded.message,
        });
        draft.events.push(Arc::new(EventRecord {
            seq: draft.book.seq,
            time_unix_ms: draft.now().unix_ms.0,
            boot_id: Arc::clone(&draft.book.boot.id),
            actor: "berthd".to_owned(),
            cause: "store".to_owned(),
            request_id: String::new(),
            kind: "store.healed".to_owned(),
            groups: Vec::new(),
            devices: Vec::new(),
            reservation: String::new(),
            before: Some(before.to_string()),
            after: None,
        }));
    }
}

/// Answers a batch of one message that can't be written. A refusal stands: it changes nothing.
fn refuse(batch: Batch, degraded: &Degraded) {
    for answer in batch.answers {
        match answer {
            Answer::Applied(reply, Err(error)) => drop(reply.send(Err(error))),
            Answer::Applied(reply, Ok(_)) => drop(reply.send(Err(degraded.refusal()))),
            Answer::Done(reply, Err(error)) => drop(reply.send(Err(error))),
            Answer::Done(reply, Ok(())) => drop(reply.send(Err(degraded.refusal()))),
            Answer::VfToken(reply, _) => drop(reply.send(Err(degraded.refusal()))),
        }
    }
}
