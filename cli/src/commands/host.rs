//! `berth capabilities`, `berth doctor`, `berth snapshot`, `berth quota`.

use berth_proto::v1::{self, finding::Level};
use tonic::transport::Channel;

use super::Host;
use crate::{
    error::CliError,
    render::{self, Output},
};

/// Name of the simulated topology, when the host is simulated.
pub(super) async fn simulated(channel: &Channel) -> Option<String> {
    let request = v1::GetCapabilitiesRequest {};
    let answer = Host::new(channel.clone()).get_capabilities(request).await.ok()?.into_inner();
    answer.simulated.then_some(answer.topology)
}

pub(super) async fn capabilities(channel: Channel, output: &Output) -> Result<(), CliError> {
    let answer =
        Host::new(channel).get_capabilities(v1::GetCapabilitiesRequest {}).await?.into_inner();
    output.show(&answer, render::host::block)
}

pub(super) async fn doctor(channel: Channel, output: &Output) -> Result<(), CliError> {
    let mut client = Host::new(channel).max_decoding_message_size(usize::MAX);
    let answer = client.diagnose(v1::DiagnoseRequest {}).await?.into_inner();
    output.show(&answer, render::doctor::text)?;
    match render::doctor::count(&answer, Level::Problem) {
        0 => Ok(()),
        problems => Err(CliError::Problems(problems)),
    }
}

pub(super) async fn snapshot(
    channel: Channel,
    with_serials: bool,
    output: &Output,
) -> Result<(), CliError> {
    let mut client = Host::new(channel).max_decoding_message_size(usize::MAX);
    let answer = client.get_snapshot(v1::GetSnapshotRequest { with_serials }).await?.into_inner();
    output.show(&answer, |answer| answer.toml.trim_end().to_owned())
}

pub(super) async fn quota(channel: Channel, output: &Output) -> Result<(), CliError> {
    let answer = Host::new(channel).list_quotas(v1::ListQuotasRequest {}).await?.into_inner();
    output.show(&answer, render::quota::table)
}

pub(super) async fn config(channel: Channel, output: &Output) -> Result<(), CliError> {
    let answer = Host::new(channel).get_config(v1::GetConfigRequest {}).await?.into_inner();
    output.show(&answer, render::host::config)
}
