//! gRPC clients: as many calls in flight as are asked for, on one connection.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use berth_proto::v1::{self, groups_client::GroupsClient, reservations_client::ReservationsClient};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use berth_measure::rate;

/// A connection to a unix socket.
///
/// # Errors
/// Nobody answers.
pub(crate) async fn connect(path: &Path) -> Result<Channel> {
    let path = PathBuf::from(path);
    Endpoint::from_static("http://berthd")
        .connect_with_connector(tower::service_fn(move |_: ::http::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .context("connect to the daemon")
}

/// Runs `flight` clients until they all end; answers calls per second.
async fn clients<F>(flight: usize, client: impl Fn(usize) -> F) -> Result<f64>
where
    F: Future<Output = Result<u64>> + Send + 'static,
{
    let began = Instant::now();
    let mut running = JoinSet::new();
    for number in 0..flight {
        running.spawn(client(number));
    }
    let mut done = 0;
    while let Some(count) = running.join_next().await {
        done += count??;
    }
    Ok(rate(done, began.elapsed()))
}

/// `grpc.health.v1.Health/Check`.
///
/// # Errors
/// Of a call.
pub(super) async fn check(channel: &Channel, flight: usize, length: Duration) -> Result<f64> {
    let end = Instant::now() + length;
    clients(flight, |_| {
        let mut client = HealthClient::new(channel.clone());
        async move {
            let mut done = 0;
            while Instant::now() < end {
                client.check(HealthCheckRequest { service: String::new() }).await?;
                done += 1;
            }
            Ok(done)
        }
    })
    .await
}

/// `berth.v1.Groups/GetGroup`.
///
/// # Errors
/// Of a call.
pub(super) async fn get_group(
    channel: &Channel,
    group: &str,
    flight: usize,
    length: Duration,
) -> Result<f64> {
    let end = Instant::now() + length;
    clients(flight, |_| {
        let mut client = GroupsClient::new(channel.clone());
        let group = group.to_owned();
        async move {
            let mut done = 0;
            while Instant::now() < end {
                client.get_group(v1::GetGroupRequest { group: group.clone() }).await?;
                done += 1;
            }
            Ok(done)
        }
    })
    .await
}

/// `berth.v1.Reservations/Reserve` of each device.
///
/// # Errors
/// Of a call.
pub(super) async fn reserve(
    channel: &Channel,
    devices: &[String],
    flight: usize,
    no_wait: bool,
) -> Result<f64> {
    clients(flight, |number| {
        let mut client = ReservationsClient::new(channel.clone());
        let own: Vec<String> = devices.iter().skip(number).step_by(flight).cloned().collect();
        async move {
            let mut done = 0;
            for address in own {
                client.reserve(request(address, no_wait)).await?;
                done += 1;
            }
            Ok(done)
        }
    })
    .await
}

fn request(address: String, no_wait: bool) -> v1::ReserveRequest {
    let kind = v1::device_address::Kind::Pci(address);
    v1::ReserveRequest {
        holder: "bench".to_owned(),
        devices: vec![v1::DeviceAddress { kind: Some(kind) }],
        policy: v1::Policy::Exclusive.into(),
        no_wait,
        ..v1::ReserveRequest::default()
    }
}

/// Releases everything and waits until it is.
///
/// # Errors
/// Of a call.
pub(super) async fn give_back(channel: &Channel) -> Result<()> {
    let mut client = ReservationsClient::new(channel.clone());
    loop {
        let all = client.list_reservations(v1::ListReservationsRequest::default()).await?;
        let released = i32::from(v1::reservation::State::Released);
        let living: Vec<v1::Reservation> = all
            .into_inner()
            .reservations
            .into_iter()
            .filter(|reservation| reservation.state != released)
            .collect();
        if living.is_empty() {
            return Ok(());
        }
        let mut running = JoinSet::new();
        for reservation in living.into_iter().filter(|reservation| reservation.pending.is_empty()) {
            let mut client = client.clone();
            running.spawn(async move {
                let id = reservation.id;
                client.release(v1::ReleaseRequest { id, ..v1::ReleaseRequest::default() }).await
            });
        }
        while let Some(answer) = running.join_next().await {
            answer??;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
