//! `berth reservation`, `berth attach`, `detach`, `release`, `revoke`.

use std::time::Duration;

use berth_proto::v1;
use tonic::transport::Channel;

use super::{Reservations, request_id, watched};
use crate::{
    args::{OrderArgs, ReservationCommand, WatchArgs},
    client::waited,
    error::CliError,
    progress::Waiting,
    quantity::millis,
    render::{self, Output},
};

/// Sends an order that carries a request id, again while the daemon is away, and prints the answer.
macro_rules! order {
    ($channel:expr, $output:expr, $call:ident, $request:expr) => {{
        let request = $request;
        let waiting = Waiting::about(stringify!($call), &$channel, &request.id);
        let client = Reservations::new($channel);
        let reservation = waited(waiting, || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.$call(request).await }
        })
        .await?;
        $output.show(&reservation, render::reservation::block)
    }};
    ($channel:expr, $output:expr, $call:ident, $request:expr, $dry_run:expr) => {{
        if $dry_run {
            let tried = Reservations::new($channel).$call($request).await?.into_inner();
            $output.tried(&tried, render::writes::of_reservation)
        } else {
            order!($channel, $output, $call, $request)
        }
    }};
}

pub(super) async fn run(
    channel: Channel,
    command: ReservationCommand,
    output: &Output,
) -> Result<(), CliError> {
    let mut client = Reservations::new(channel.clone()).max_decoding_message_size(usize::MAX);
    match command {
        ReservationCommand::List(WatchArgs { watch }) => {
            watched::shown(&channel, watch, output, |output| {
                let mut client = client.clone();
                async move {
                    let request = v1::ListReservationsRequest {};
                    let list = client.list_reservations(request).await?.into_inner();
                    output.show(&list, |list| render::reservation::table(&list.reservations))
                }
            })
            .await
        }
        ReservationCommand::Show { id } => {
            let reservation =
                client.get_reservation(v1::GetReservationRequest { id }).await?.into_inner();
            output.show(&reservation, render::reservation::block)
        }
        ReservationCommand::Renew { id, epoch, ttl, request_id: given } => {
            let ttl_ms = ttl.map(millis).unwrap_or_default();
            let request = v1::RenewRequest { id, epoch, ttl_ms, request_id: request_id(given) };
            order!(channel, output, renew, request)
        }
    }
}

pub(super) async fn attach(
    channel: Channel,
    order: OrderArgs,
    domain: Option<String>,
    output: &Output,
) -> Result<(), CliError> {
    let (wait_ms, no_wait) = wait_of(order.wait);
    let request = v1::AttachRequest {
        domain: domain.unwrap_or_default(),
        id: order.id,
        epoch: order.epoch,
        request_id: request_id(order.request_id),
        wait_ms,
        no_wait,
    };
    order!(channel, output, attach, request)
}

pub(super) async fn detach(
    channel: Channel,
    order: OrderArgs,
    output: &Output,
) -> Result<(), CliError> {
    let (wait_ms, no_wait) = wait_of(order.wait);
    let request = v1::DetachRequest {
        id: order.id,
        epoch: order.epoch,
        request_id: request_id(order.request_id),
        wait_ms,
        no_wait,
    };
    order!(channel, output, detach, request)
}

pub(super) async fn release(
    channel: Channel,
    order: OrderArgs,
    (force, dry_run): (bool, bool),
    output: &Output,
) -> Result<(), CliError> {
    let (wait_ms, no_wait) = wait_of(order.wait);
    let request = v1::ReleaseRequest {
        id: order.id,
        epoch: order.epoch,
        force,
        request_id: request_id(order.request_id),
        wait_ms,
        no_wait,
        dry_run,
    };
    order!(channel, output, release, request, dry_run)
}

pub(super) async fn revoke(
    channel: Channel,
    order: OrderArgs,
    dry_run: bool,
    output: &Output,
) -> Result<(), CliError> {
    let (wait_ms, no_wait) = wait_of(order.wait);
    let request = v1::RevokeRequest {
        id: order.id,
        epoch: order.epoch,
        request_id: request_id(order.request_id),
        wait_ms,
        no_wait,
        dry_run,
    };
    order!(channel, output, revoke, request, dry_run)
}

pub(super) fn wait_of(wait: Option<Duration>) -> (u64, bool) {
    (wait.map(millis).unwrap_or_default(), wait == Some(Duration::ZERO))
}
