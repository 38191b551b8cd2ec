//! What was asked and isn't decided yet, with what the store knows of its request ids.
//!
//! The store is looked into on a connection that only reads, so that this waits for no write. It
//! shows what is durable: what isn't, and what became so since, is known by the batches. A request
//! id that is new for sure needs no look.

use std::{collections::VecDeque, fmt, mem};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::mpsc;

use super::{
    message::Message,
    requests::{Earlier, Requests},
    seen::{self, Seen},
};
use crate::{
    model::ApiError,
    store::{Reader, StoreError, StoredRequest},
};

/// How many messages are received at once.
const MOST: usize = 1024;

/// What a look into the store brings, with the reader again.
type Found = (Reader, Result<Look, StoreError>);

/// What was found in the store.
struct Look {
    requests: Vec<StoredRequest>,
    /// All ids that it has, where they were wanted.
    ids: Option<Vec<(String, String)>>,
}

/// What was asked and isn't decided yet.
pub(super) struct Inbox {
    queue: mpsc::Receiver<Message>,
    /// Taken from the queue together.
    received: VecDeque<Message>,
    reader: Option<Reader>,
    seen: Seen,
    /// A look for the requests of what was received.
    look: Option<BoxFuture<'static, Found>>,
    /// What it found.
    stored: Requests,
    /// What became durable since it began.
    since: Vec<Requests>,
}

impl Inbox {
    pub(super) fn new(queue: mpsc::Receiver<Message>, reader: Reader) -> Self {
        Self {
            queue,
            received: VecDeque::new(),
            reader: Some(reader),
            seen: Seen::new(seen::MOST),
            look: None,
            stored: Requests::default(),
            since: Vec::new(),
        }
    }

    /// The next message; `None` when nobody is left to ask. May be given up and called again.
    pub(super) async fn next(&mut self) -> Option<Message> {
        loop {
            self.looked().await;
            if let Some(message) = self.waiting() {
                return Some(message);
            }
            let mut received = Vec::new();
            if self.queue.recv_many(&mut received, MOST).await == 0 {
                return None;
            }
            self.received = received.into();
            self.look();
        }
    }

    /// The next of the messages that came together with the last one.
    pub(super) fn waiting(&mut self) -> Option<Message> {
        self.received.pop_front()
    }

    /// Begins to look for those requests of what was received that may be known. All that was
    /// decided before is durable or in the batches, and nothing of it has to be kept for what was
    /// received before.
    fn look(&mut self) {
        self.since.clear();
        self.stored = Requests::default();
        let mut keys = Vec::new();
        for (identity, request) in self.received.iter().filter_map(Message::request) {
            if self.seen.maybe(identity, &request.id) {
                keys.push((identity.to_owned(), request.id.clone()));
            }
        }
        if keys.is_empty() {
            return;
        }
        let Some(reader) = self.reader.take() else { return };
        self.look = Some(look(reader, keys, self.seen.wants()).boxed());
    }

    /// Takes what was found. What can't be looked up is refused: it may have been answered before.
    fn found(&mut self, found: Result<Look, StoreError>) {
        let error = match found {
            Ok(Look { requests, ids }) => {
                self.stored = Requests::new(requests);
                if let Some(ids) = ids {
                    self.seen.take(&ids);
                }
                return;
            }
            Err(error) => error,
        };
        tracing::error!(error = error.chain(), "the store can't be read");
        let text = format!("the store can't be read: {}", error.chain());
        let error = ApiError::unavailable("store", text);
        for message in mem::take(&mut self.received) {
            match message.request() {
                Some(_) => message.refuse(error.clone()),
                None => self.received.push_back(message),
            }
        }
    }

    /// What is known of the requests of what was received, beside the batch that it is decided on;
    /// `before` is what the batch before that knows, if it isn't durable.
    pub(super) fn earlier<'a>(&'a self, before: Option<&'a Requests>) -> Earlier<'a> {
        Earlier { before, since: &self.since, stored: &self.stored }
    }

    /// Takes what a batch knows that has become durable: a look that began before may have missed
    /// it.
    pub(super) fn durable(&mut self, requests: Requests) {
        if !self.received.is_empty() {
            self.since.push(requests);
        }
    }

    /// Takes what is being looked up, if anything is. May be given up and called again.
    async fn looked(&mut self) {
        if let Some(look) = &mut self.look {
            let (reader, found) = look.await;
            self.look = None;
            self.reader = Some(reader);
            self.found(found);
        }
    }

    /// The reader, once it doesn't read any more: one that is away would go on reading where it did.
    pub(super) async fn reader(&mut self) -> Option<&mut Reader> {
        self.looked().await;
        self.reader.as_mut()
    }

    /// Closes the reader.
    pub(super) async fn close(self) {
        if let Some(reader) = self.reader {
            reader.close().await;
        }
    }
}

async fn look(mut reader: Reader, keys: Vec<(String, String)>, ids: Option<usize>) -> Found {
    let looked = async {
        let ids = match ids {
            Some(most) => Some(reader.ids(most).await?),
            None => None,
        };
        Ok(Look { requests: reader.requests(&keys).await?, ids })
    };
    let looked = looked.await;
    (reader, looked)
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("received", &self.received.len()).finish_non_exhaustive()
    }
}
