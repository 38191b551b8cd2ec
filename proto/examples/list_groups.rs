//! Lists the groups of a host, and who owns them.

use berth_proto::v1::{ListGroupsRequest, groups_client::GroupsClient};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::var("BERTH_GRPC").unwrap_or("/run/berth/berthd.sock".to_owned());
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://berth").connect_with_connector(connect).await?;
    let answer = GroupsClient::new(channel).list_groups(ListGroupsRequest {}).await?.into_inner();
    for group in answer.groups {
        println!("{} {} {}", group.stable_id, group.ownership().as_str_name(), group.owner_cnt);
    }
    Ok(())
}
