//! `berth group`.

use berth_proto::v1;
use tonic::transport::Channel;

use super::Groups;
use crate::{
    address,
    args::GroupCommand,
    error::CliError,
    render::{self, Output},
};

pub(super) async fn run(
    channel: Channel,
    command: GroupCommand,
    output: &Output,
) -> Result<(), CliError> {
    let mut client = Groups::new(channel).max_decoding_message_size(usize::MAX);
    match command {
        GroupCommand::List => {
            let list = client.list_groups(v1::ListGroupsRequest {}).await?.into_inner();
            output.show(&list, |list| render::group::table(&list.groups))
        }
        GroupCommand::Show { group } => {
            let request = v1::GetGroupRequest { group: address::object(&group) };
            let group = client.get_group(request).await?.into_inner();
            output.show(&group, render::group::block)
        }
    }
}
