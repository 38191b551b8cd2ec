//! `berth watch`, `berth history`, `berth history export`.

use berth_proto::v1;
use tonic::transport::Channel;

use super::Events;
use crate::{
    address,
    error::CliError,
    render::{self, Output},
};

pub(super) async fn watch(
    channel: Channel,
    since: Option<u64>,
    object: Option<String>,
    output: &Output,
) -> Result<(), CliError> {
    let request = v1::WatchRequest {
        since_seq: since,
        object: object.map(|object| address::object(&object)).unwrap_or_default(),
    };
    let mut stream = Events::new(channel).watch(request).await?.into_inner();
    while let Some(event) = stream.message().await? {
        output.line(&event, render::event::line)?;
    }
    Ok(())
}

pub(super) async fn history(
    channel: Channel,
    object: Option<String>,
    since_seq: u64,
    limit: u32,
    output: &Output,
) -> Result<(), CliError> {
    let request = v1::ListEventsRequest {
        since_seq,
        limit,
        object: object.map(|object| address::object(&object)).unwrap_or_default(),
    };
    let mut client = Events::new(channel).max_decoding_message_size(usize::MAX);
    let list = client.list_events(request).await?.into_inner();
    output.show(&list, |list| render::event::table(&list.events))
}

/// All that is kept, in pieces: however long the history is, little of it is in memory.
pub(super) async fn export(
    channel: Channel,
    object: Option<String>,
    since: u64,
    output: &Output,
) -> Result<(), CliError> {
    let object = object.map(|object| address::object(&object)).unwrap_or_default();
    let mut client = Events::new(channel).max_decoding_message_size(usize::MAX);
    let mut since_seq = since;
    let mut told = false;
    loop {
        let request = v1::ListEventsRequest { since_seq, limit: 0, object: object.clone() };
        let list = client.list_events(request).await?.into_inner();
        if !std::mem::replace(&mut told, true) && list.oldest_seq > since + 1 {
            output.remark(&format!("what is older than event {} isn't kept", list.oldest_seq));
        }
        for event in &list.events {
            output.json_line(event)?;
        }
        if list.resume_seq <= since_seq {
            return Ok(());
        }
        since_seq = list.resume_seq;
    }
}
