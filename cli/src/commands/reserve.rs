//! `berth reserve`.

use std::time::Duration;

use berth_proto::v1;
use tonic::transport::Channel;

use super::{Reservations, request_id};
use crate::{
    address,
    args::{PolicyArg, ReserveArgs},
    client::waited,
    error::CliError,
    progress::Waiting,
    quantity::millis,
    render::{Output, reservation::block},
};

pub(super) async fn run(
    channel: Channel,
    args: ReserveArgs,
    output: &Output,
) -> Result<(), CliError> {
    let dry_run = args.tried.dry_run;
    let request = request_of(args);
    let client = Reservations::new(channel);
    let waiting = Waiting::to(format!("reserve for {}", request.holder));
    let reservation = waited(waiting, || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.reserve(request).await }
    })
    .await?;
    if dry_run {
        return output.planned(&reservation);
    }
    output.show(&reservation, block)
}

fn request_of(args: ReserveArgs) -> v1::ReserveRequest {
    // A shared domain can only be driven or handed over bound; the others start as bound too.
    let delivery = match (args.delivery, args.policy) {
        (Some(delivery), _) => delivery.into(),
        (None, PolicyArg::Exclusive | PolicyArg::Shared) => v1::Delivery::Bound,
        (None, PolicyArg::Group) => v1::Delivery::Held,
    };
    v1::ReserveRequest {
        holder: args.holder,
        groups: args.group.iter().map(|group| address::object(group)).collect(),
        devices: args.device,
        class: args.class.map(|class| v1::ClassSelector {
            class,
            vendor: args.vendor.unwrap_or_default(),
            count: args.count.unwrap_or_default(),
            numa_node: args.numa,
        }),
        policy: v1::Policy::from(args.policy).into(),
        delivery: delivery.into(),
        backend: v1::Backend::from(args.backend).into(),
        domain: args.domain.unwrap_or_default(),
        join: args.join.unwrap_or_default(),
        label: args.label.unwrap_or_default(),
        for_identity: args.for_identity.unwrap_or_default(),
        memory_bytes: args.memory.unwrap_or_default(),
        ttl_ms: args.ttl.map(millis).unwrap_or_default(),
        take_from_host: args.take_from_host,
        host_uses_it_anyway: args.host_uses_it_anyway,
        request_id: request_id(args.tried.request_id),
        dry_run: args.tried.dry_run,
        wait_ms: args.tried.wait.map(millis).unwrap_or_default(),
        no_wait: args.tried.wait == Some(Duration::ZERO),
        reset_policy: args.reset_policy.map_or(v1::ResetPolicy::Default, Into::into).into(),
    }
}
