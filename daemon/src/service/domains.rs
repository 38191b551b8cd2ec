//! The calls about domains.

use berth_proto::v1;

use super::{Service, starting};
use crate::model::{ApiError, Caller};

impl Service {
    /// `list_domains`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn list_domains(
        &self,
        caller: &Caller,
        request: v1::ListDomainsRequest,
    ) -> Result<v1::ListDomainsResponse, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `get_domain`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn get_domain(
        &self,
        caller: &Caller,
        request: v1::GetDomainRequest,
    ) -> Result<v1::Domain, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `create_domain`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn create_domain(
        &self,
        caller: &Caller,
        request: v1::CreateDomainRequest,
    ) -> Result<v1::Domain, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `delete_domain`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn delete_domain(
        &self,
        caller: &Caller,
        request: v1::DeleteDomainRequest,
    ) -> Result<v1::DeleteDomainResponse, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }
}
