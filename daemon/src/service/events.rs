//! The calls about events.

use berth_proto::v1;

use super::{Service, starting};
use crate::model::{ApiError, Caller};

impl Service {
    /// `list_events`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn list_events(
        &self,
        caller: &Caller,
        request: v1::ListEventsRequest,
    ) -> Result<v1::ListEventsResponse, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `watch`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn watch(
        &self,
        caller: &Caller,
        request: v1::WatchRequest,
    ) -> Result<futures::stream::BoxStream<'static, Result<v1::Event, ApiError>>, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }
}
