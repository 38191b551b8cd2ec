//! Reading reservations.

use berth_ownership::ReservationState;
use berth_proto::v1;

use super::{Service, authorize::require, find, tenant};
use crate::{
    model::{ApiError, Call, Caller},
    view,
};

impl Service {
    /// All reservations but those that are given back.
    ///
    /// # Errors
    /// The caller may not.
    pub async fn list_reservations(
        &self,
        caller: &Caller,
        _request: v1::ListReservationsRequest,
    ) -> Result<v1::ListReservationsResponse, ApiError> {
        require(caller, Call::ListReservations)?;
        let snapshot = self.snapshot();
        let reservations = snapshot
            .state
            .reservations()
            .filter(|record| record.state != ReservationState::Released)
            .filter(|record| tenant::may_see(caller, &record.label))
            .map(|record| {
                let extra = snapshot.extras.get(&record.id).map(AsRef::as_ref);
                view::reservation(&snapshot.state, record, extra, &snapshot.boot)
            })
            .collect();
        Ok(v1::ListReservationsResponse { reservations, resume_seq: snapshot.seq })
    }

    /// One reservation; one that was given back as long as it is remembered.
    ///
    /// # Errors
    /// There is no such reservation.
    pub async fn get_reservation(
        &self,
        caller: &Caller,
        request: v1::GetReservationRequest,
    ) -> Result<v1::Reservation, ApiError> {
        require(caller, Call::GetReservation)?;
        let snapshot = self.snapshot();
        let found = find::reservation(&snapshot, &request.id);
        let record = tenant::visible(caller, found)?;
        let extra = snapshot.extras.get(&record.id).map(AsRef::as_ref);
        Ok(view::reservation(&snapshot.state, record, extra, &snapshot.boot))
    }
}
