//! The calls about reservations.

use berth_proto::v1;

use super::{Service, starting};
use crate::model::{ApiError, Caller};

impl Service {
    /// `list_reservations`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn list_reservations(
        &self,
        caller: &Caller,
        request: v1::ListReservationsRequest,
    ) -> Result<v1::ListReservationsResponse, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `get_reservation`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn get_reservation(
        &self,
        caller: &Caller,
        request: v1::GetReservationRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `reserve`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn reserve(
        &self,
        caller: &Caller,
        request: v1::ReserveRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `renew`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn renew(
        &self,
        caller: &Caller,
        request: v1::RenewRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `attach`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn attach(
        &self,
        caller: &Caller,
        request: v1::AttachRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `detach`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn detach(
        &self,
        caller: &Caller,
        request: v1::DetachRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `replace`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn replace(
        &self,
        caller: &Caller,
        request: v1::ReplaceRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `release`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn release(
        &self,
        caller: &Caller,
        request: v1::ReleaseRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }

    /// `revoke`.
    ///
    /// # Errors
    /// The refusal.
    pub async fn revoke(
        &self,
        caller: &Caller,
        request: v1::RevokeRequest,
    ) -> Result<v1::Reservation, ApiError> {
        let _ = (caller, request);
        Err(starting())
    }
}
