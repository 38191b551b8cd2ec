//! The stream of events: from the store until it has caught up, then as they are published; from
//! the store again when the reader was too slow.

use std::{collections::VecDeque, sync::Arc};

use futures::stream::{self, Stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::events::{check_kept, unread};
use crate::{model::ApiError, store::Store, view::WatchedEvent};

/// How many events are read from the store at a time.
const PAGE: u32 = 512;

struct Cursor {
    store: Store,
    live: Receiver<Arc<WatchedEvent>>,
    /// The last event that was looked at.
    last: u64,
    /// Up to here the store has to be read, as the live stream began later.
    behind: u64,
    read: VecDeque<Arc<WatchedEvent>>,
    object: String,
    ended: bool,
}

/// Events after `last`; those up to `behind` are in the store alone.
pub(super) fn stream(
    store: Store,
    live: Receiver<Arc<WatchedEvent>>,
    last: u64,
    behind: u64,
    object: String,
) -> impl Stream<Item = Result<Arc<WatchedEvent>, ApiError>> + Send + 'static {
    let read = VecDeque::new();
    let cursor = Cursor { store, live, last, behind, read, object, ended: false };
    stream::unfold(cursor, |mut cursor| async move {
        if cursor.ended {
            return None;
        }
        match cursor.next().await {
            Ok(Some(event)) => Some((Ok(event), cursor)),
            Ok(None) => None,
            Err(error) => {
                cursor.ended = true;
                Some((Err(error), cursor))
            }
        }
    })
}

impl Cursor {
    /// The next event that concerns the object; `None` when the daemon stops.
    async fn next(&mut self) -> Result<Option<Arc<WatchedEvent>>, ApiError> {
        loop {
            if let Some(event) = self.read.pop_front() {
                self.last = event.record().seq;
                if self.wanted(&event) {
                    return Ok(Some(event));
                }
                continue;
            }
            if self.last < self.behind {
                self.read_on().await?;
                continue;
            }
            match self.live.recv().await {
                Ok(event) => match event.record().seq {
                    seq if seq <= self.last => {}
                    seq if seq == self.last + 1 => {
                        self.last = seq;
                        if self.wanted(&event) {
                            return Ok(Some(event));
                        }
                    }
                    seq => self.behind = seq,
                },
                Err(RecvError::Lagged(missed)) => {
                    self.behind = self.last.saturating_add(missed);
                }
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }

    async fn read_on(&mut self) -> Result<(), ApiError> {
        let oldest = self.store.oldest_seq().await.map_err(unread)?;
        check_kept(self.last, oldest, u64::MAX)?;
        let page = self.store.events(self.last, PAGE, "").await.map_err(unread)?;
        if page.is_empty() {
            self.behind = self.last;
        }
        self.read
            .extend(page.into_iter().map(|record| Arc::new(WatchedEvent::new(Arc::new(record)))));
        Ok(())
    }

    fn wanted(&self, event: &WatchedEvent) -> bool {
        self.object.is_empty() || event.record().concerns(&self.object)
    }
}
