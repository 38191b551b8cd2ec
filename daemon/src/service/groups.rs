//! The calls about groups.

use berth_proto::v1;

use super::{Service, starting};
use crate::model::{ApiError, Caller};

impl Service {
    /// `list_groups`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn list_groups(
        &self,
        caller: &Caller,
        request: v1::ListGroupsRequest,
    ) -> Result<v1::ListGroupsResponse, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `get_group`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn get_group(
        &self,
        caller: &Caller,
        request: v1::GetGroupRequest,
    ) -> Result<v1::Group, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `explain`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn explain(
        &self,
        caller: &Caller,
        request: v1::ExplainRequest,
    ) -> Result<v1::Explanation, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }
}
