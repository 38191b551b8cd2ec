//! Past events.

use std::sync::Arc;

use berth_ownership::Reason;
use berth_proto::v1;
use futures::Stream;

use super::{Service, authorize::require, find, tenant::may_see_event, watch};
use crate::{
    model::{ApiError, Call, Caller},
    store::StoreError,
    view::{self, WatchedEvent},
};

const DEFAULT_LIMIT: u32 = 1000;
const MAX_LIMIT: u32 = 10_000;

impl Service {
    /// Past events, oldest first.
    ///
    /// # Errors
    /// `EVENTS_COMPACTED` when the event after `since_seq` isn't kept any more; 0 starts with the
    /// oldest that is.
    pub async fn list_events(
        &self,
        caller: &Caller,
        request: v1::ListEventsRequest,
    ) -> Result<v1::ListEventsResponse, ApiError> {
        require(caller, Call::ListEvents)?;
        let snapshot = self.snapshot();
        let object = find::event_object(&snapshot, &request.object)?;
        let store = self.ledger.store();
        let oldest_seq = store.oldest_seq().await.map_err(unread)?;
        check_kept(request.since_seq, oldest_seq, snapshot.seq)?;
        let limit = match request.limit {
            0 => DEFAULT_LIMIT,
            limit => limit.min(MAX_LIMIT),
        };
        let records = store.events(request.since_seq, limit, &object).await.map_err(unread)?;
        let full = records.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
        let last = records.last().map_or(request.since_seq, |record| record.seq);
        Ok(v1::ListEventsResponse {
            resume_seq: if full { last } else { last.max(snapshot.seq) },
            events: records
                .iter()
                .filter(|it| {
                    caller
                        .tenant
                        .as_deref()
                        .is_none_or(|tenant| may_see_event(tenant, &snapshot, it))
                })
                .map(view::event)
                .collect(),
            oldest_seq,
        })
    }

    /// Events after `since_seq`, then every new one.
    ///
    /// # Errors
    /// `EVENTS_COMPACTED`, also within the stream when a slow reader fell behind what is kept.
    pub async fn watch(
        &self,
        caller: &Caller,
        request: v1::WatchRequest,
    ) -> Result<impl Stream<Item = Result<Arc<WatchedEvent>, ApiError>> + Send + use<>, ApiError>
    {
        require(caller, Call::Watch)?;
        let snapshot = self.snapshot();
        let object = find::event_object(&snapshot, &request.object)?;
        let store = self.ledger.store().clone();
        let last = match request.since_seq {
            None => snapshot.seq,
            Some(since) => {
                let oldest = store.oldest_seq().await.map_err(unread)?;
                check_kept(since, oldest, snapshot.seq)?;
                since.max(oldest.saturating_sub(1))
            }
        };
        let wanted = watch::Wanted {
            object,
            tenant: caller.tenant.as_deref().map(|tenant| (tenant.to_owned(), self.ledger.clone())),
        };
        Ok(watch::stream(store, self.ledger.follow(last), wanted))
    }
}

/// Refuses to start before the oldest event, or after the last.
pub(super) fn check_kept(since: u64, oldest: u64, last: u64) -> Result<(), ApiError> {
    if since > last {
        return Err(ApiError::invalid_argument(
            "since_seq",
            format!("since_seq {since} is in the future: the last event is {last}"),
            "list the state anew and go on from its resume_seq",
        ));
    }
    if since == 0 || since.saturating_add(1) >= oldest {
        return Ok(());
    }
    let text = format!("events after {since} are gone; the oldest that is kept is {oldest}");
    Err(ApiError::new(Reason::EventsCompacted, format!("event {since}"), text))
}

pub(super) fn unread(error: StoreError) -> ApiError {
    tracing::error!(error = error.chain(), "past events can't be read");
    ApiError::unavailable("events", format!("past events can't be read: {}", error.chain()))
}
