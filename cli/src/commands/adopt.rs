//! `berth adopt`.

use std::time::Duration;

use berth_proto::v1;
use tonic::transport::Channel;

use super::{Reservations, request_id};
use crate::{
    address, args::AdoptArgs, client::waited, error::CliError, progress::Waiting, quantity::millis,
    render::Output,
};

pub(super) async fn run(
    channel: Channel,
    args: AdoptArgs,
    output: &Output,
) -> Result<(), CliError> {
    let dry_run = args.tried.dry_run;
    let request = request_of(args);
    let client = Reservations::new(channel);
    let waiting = Waiting::to(format!("adopt what process {} has", request.pid));
    let reservation = waited(waiting, || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.adopt(request).await }
    })
    .await?;
    output.recorded(&reservation, dry_run)
}

fn request_of(args: AdoptArgs) -> v1::AdoptRequest {
    v1::AdoptRequest {
        pid: args.pid,
        holder: args.holder,
        groups: args.group.iter().map(|group| address::object(group)).collect(),
        devices: args.device,
        policy: args.policy.map_or(v1::Policy::Unspecified, Into::into).into(),
        label: args.label.unwrap_or_default(),
        memory_bytes: args.memory.unwrap_or_default(),
        ttl_ms: args.ttl.map(millis).unwrap_or_default(),
        request_id: request_id(args.tried.request_id),
        dry_run: args.tried.dry_run,
        wait_ms: args.tried.wait.map(millis).unwrap_or_default(),
        no_wait: args.tried.wait == Some(Duration::ZERO),
    }
}
