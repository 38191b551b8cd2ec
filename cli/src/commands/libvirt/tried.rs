//! What the hook would have written to sysfs, with nothing of it done.

use berth_proto::v1;

use super::steps::Steps;
use crate::{
    error::CliError,
    render::{self, Output},
};

impl Steps<'_> {
    /// Before a domain starts: its devices are reserved, unless a former start left reservations, which
    /// are given back first. After its end: its reservations are given back.
    pub(super) async fn tried(&self, begins: bool, output: &Output) -> Result<(), CliError> {
        let there = self.reservations().await?;
        for reservation in &there {
            let request = v1::ReleaseRequest {
                id: reservation.id.clone(),
                dry_run: true,
                ..v1::ReleaseRequest::default()
            };
            let told = self.client.clone().release(request).await?.into_inner();
            show(&told, output)?;
        }
        if begins && there.is_empty() {
            show(&self.reserve_tried().await?, output)?;
        }
        Ok(())
    }
}

fn show(told: &v1::Reservation, output: &Output) -> Result<(), CliError> {
    output.tried(told, render::writes::of_reservation)
}
