//! The calls about host.

use berth_proto::v1;

use super::{Service, starting};
use crate::model::{ApiError, Caller};

impl Service {
    /// `get_capabilities`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn get_capabilities(
        &self,
        caller: &Caller,
        request: v1::GetCapabilitiesRequest,
    ) -> Result<v1::Capabilities, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `get_snapshot`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn get_snapshot(
        &self,
        caller: &Caller,
        request: v1::GetSnapshotRequest,
    ) -> Result<v1::Snapshot, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }
}
