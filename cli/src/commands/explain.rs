//! `berth explain`.

use berth_proto::v1;
use tonic::transport::Channel;

use super::Groups;
use crate::{
    address,
    error::CliError,
    render::{self, Output},
};

pub(super) async fn run(
    channel: Channel,
    object: &str,
    label: Option<String>,
    memory: Option<u64>,
    output: &Output,
) -> Result<(), CliError> {
    let request = v1::ExplainRequest {
        object: address::object(object),
        label: label.unwrap_or_default(),
        memory_bytes: memory.unwrap_or_default(),
    };
    let explanation = Groups::new(channel).explain(request).await?.into_inner();
    output.show(&explanation, render::explain::text)
}
