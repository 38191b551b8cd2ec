//! `berth sriov`.

use berth_proto::v1;
use tonic::transport::Channel;

use super::{Devices, request_id, reservation::wait_of};
use crate::{
    address,
    args::{SriovCommand, TriedArgs},
    client::waited,
    error::CliError,
    progress::Waiting,
    render::{self, Output},
};

pub(super) async fn run(
    channel: Channel,
    command: SriovCommand,
    output: &Output,
) -> Result<(), CliError> {
    let client = Devices::new(channel);
    let (device, vfs, restore, args) = match command {
        SriovCommand::Set { device, vfs, args } => (device, vfs, false, args),
        SriovCommand::Restore { device, args } => (device, 0, true, args),
    };
    let TriedArgs { dry_run, wait, request_id: id } = args;
    let (wait_ms, no_wait) = wait_of(wait);
    let request = v1::SetSriovRequest {
        device: Some(device),
        vfs,
        restore,
        dry_run,
        request_id: if dry_run { String::new() } else { request_id(id) },
        wait_ms,
        no_wait,
    };
    let verb = if restore { "give the VFs back" } else { "set the VFs" };
    let named = address::text(request.device.as_ref());
    let answer = waited(Waiting::to(format!("{verb} of {named}")), || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.set_sriov(request).await }
    })
    .await?;
    if dry_run {
        return output.tried(&answer, |answer| render::writes::plan(&answer.writes));
    }
    output.show(&answer, render::sriov::block)
}
