//! The stream of events: as they are published, and from the store what isn't in memory, be it that
//! the reader began long ago or that it was too slow.

use std::{collections::VecDeque, sync::Arc};

use berth_ownership::Reason;
use futures::stream::{self, Stream};

use super::{
    events::{check_kept, unread},
    tenant::may_see_event,
};
use crate::{
    ledger::{Follower, LedgerHandle},
    model::ApiError,
    store::Store,
    view::WatchedEvent,
};

/// How many events are read from the store at a time.
const PAGE: u32 = 512;

struct Cursor {
    store: Store,
    live: Follower,
    read: VecDeque<Arc<WatchedEvent>>,
    wanted: Wanted,
    ended: bool,
}

/// The events that a follower comes to.
pub(super) fn stream(
    store: Store,
    live: Follower,
    wanted: Wanted,
) -> impl Stream<Item = Result<Arc<WatchedEvent>, ApiError>> + Send + 'static {
    let cursor = Cursor { store, live, read: VecDeque::new(), wanted, ended: false };
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
            let next = self.read.pop_front().or_else(|| self.live.try_next());
            match next {
                Some(event) if self.wanted.has(&event) => return Ok(Some(event)),
                Some(_) => {}
                None if !self.live.wait().await => return Ok(None),
                None => self.read_what_is_stored().await?,
            }
        }
    }

    /// What comes next is not in memory any more, or just came there.
    async fn read_what_is_stored(&mut self) -> Result<(), ApiError> {
        if let Some(event) = self.live.try_next() {
            self.read.push_back(event);
            return Ok(());
        }
        let last = self.live.last();
        let oldest = self.store.oldest_seq().await.map_err(unread)?;
        check_kept(last, oldest, u64::MAX)?;
        let page = self.store.events(last, PAGE, "").await.map_err(unread)?;
        let end = page.last().map(|record| record.seq);
        self.live.skip_to(end.ok_or_else(|| gone(last))?);
        self.read.extend(page.into_iter().map(|record| Arc::new(WatchedEvent::new(record.into()))));
        Ok(())
    }
}

/// Which events somebody gets.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Those that concern a group, device or reservation; all where it is empty.
    pub(super) object: String,
    /// Those of what is under a label alone, and what tells under which label something is.
    pub(super) tenant: Option<(String, LedgerHandle)>,
}

impl Wanted {
    fn has(&self, event: &WatchedEvent) -> bool {
        let record = event.record();
        let concerns = self.object.is_empty() || record.concerns(&self.object);
        concerns
            && self
                .tenant
                .as_ref()
                .is_none_or(|(tenant, ledger)| may_see_event(tenant, &ledger.snapshot(), record))
    }
}

fn gone(last: u64) -> ApiError {
    let text = format!("events after {last} are gone");
    ApiError::new(Reason::EventsCompacted, format!("event {last}"), text)
}
