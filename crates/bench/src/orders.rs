//! What is reserved before something is measured, over gRPC.

use anyhow::{Context as _, Result};
use berth_proto::v1::{self, reservations_client::ReservationsClient};
use tonic::transport::Channel;

/// Reserves one device for whoever calls, or what is asked for beside. Answers the reservation's id.
///
/// # Errors
/// The refusal.
pub(crate) async fn reserve(
    channel: &Channel,
    device: &str,
    more: v1::ReserveRequest,
) -> Result<String> {
    let kind = v1::device_address::Kind::Pci(device.to_owned());
    let request = v1::ReserveRequest {
        holder: "bench".to_owned(),
        devices: vec![v1::DeviceAddress { kind: Some(kind) }],
        policy: v1::Policy::Exclusive.into(),
        ..more
    };
    let answer = ReservationsClient::new(channel.clone()).reserve(request).await;
    Ok(answer.with_context(|| format!("reserve {device}"))?.into_inner().id)
}

/// Attaches its device.
///
/// # Errors
/// The refusal.
pub(crate) async fn attach(channel: &Channel, id: &str) -> Result<()> {
    let request = v1::AttachRequest { id: id.to_owned(), ..v1::AttachRequest::default() };
    let answer = ReservationsClient::new(channel.clone()).attach(request).await;
    answer.map(drop).with_context(|| format!("attach {id}"))
}

/// Delivery `bound`.
pub(crate) fn bound(backend: v1::Backend) -> v1::ReserveRequest {
    v1::ReserveRequest {
        delivery: v1::Delivery::Bound.into(),
        backend: backend.into(),
        ..v1::ReserveRequest::default()
    }
}
