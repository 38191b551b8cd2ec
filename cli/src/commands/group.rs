//! `berth group`.

use berth_proto::v1;
use tonic::transport::Channel;

use super::{Groups, watched};
use crate::{
    address,
    args::{GroupCommand, WatchArgs},
    error::CliError,
    render::{self, Output},
};

pub(super) async fn run(
    channel: Channel,
    command: GroupCommand,
    output: &Output,
) -> Result<(), CliError> {
    let mut client = Groups::new(channel.clone()).max_decoding_message_size(usize::MAX);
    match command {
        GroupCommand::List(WatchArgs { watch }) => {
            watched::shown(&channel, watch, output, |output| {
                let mut client = client.clone();
                async move {
                    let list = client.list_groups(v1::ListGroupsRequest {}).await?.into_inner();
                    output.show(&list, |list| render::group::table(&list.groups))
                }
            })
            .await
        }
        GroupCommand::Show { group } => {
            let request = v1::GetGroupRequest { group: address::object(&group) };
            let group = client.get_group(request).await?.into_inner();
            output.show(&group, render::group::block)
        }
    }
}
