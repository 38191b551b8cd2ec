//! The table of roles, walked over gRPC: every call, every role, and whose reservation it is about.
//! Every method of the protocol and every request of the hand-over socket has a row.

mod front_support;
mod roles_support;

use std::collections::BTreeSet;

use berth_proto::v1;
use berthd::model::{Call, Transport};
use front_support::{Running, channel_at};
use prost::{Message as _, bytes::Bytes};
use roles_support::{ROLES, STANDINGS, end, expected, for_want_of_rights, reservation};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};
use tonic_types::StatusExt as _;

/// Messages as bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put(buffer, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = prost::bytes::Buf::remaining(buffer);
        Ok(Some(prost::bytes::Buf::copy_to_bytes(buffer, length)))
    }
}

#[test]
fn every_method_and_every_request_of_the_hand_over_has_a_row() {
    let set = prost_types::FileDescriptorSet::decode(berth_proto::FILE_DESCRIPTOR_SET)
        .expect("the protocol's own descriptors");
    let mut wanted: BTreeSet<String> =
        ["fetch", "register", "unregister", "show_token"].into_iter().map(str::to_owned).collect();
    for service in set.file.iter().flat_map(|file| &file.service) {
        let methods = service.method.iter();
        wanted.extend(methods.map(|method| format!("{}/{}", service.name(), method.name())));
    }
    let found: Vec<String> =
        Call::ALL.iter().filter_map(|call| call.row().rpc).map(str::to_owned).collect();
    assert_eq!(found.iter().cloned().collect::<BTreeSet<_>>(), wanted);
    assert_eq!(found.len(), wanted.len(), "a call has two rows");
}

/// Whether the answer is a refusal for want of rights; `None` is any other answer.
async fn refused(channel: Channel, rpc: &str, id: &str) -> Option<String> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("ready");
    // Every request that is about a reservation has its id, or its context, as field 1; a device's
    // address is there else, or a holder's name, for which this is none. Replace has a domain as field 3.
    let mut body = Vec::new();
    let about_none = rpc.ends_with("/Adopt");
    if !about_none
        && !rpc.starts_with("Devices/")
        && !rpc.starts_with("Events/")
        && !rpc.starts_with("Host/")
    {
        let fields = v1::ReplaceRequest {
            id: id.to_owned(),
            domain: if rpc.ends_with("/Replace") { "d-x".to_owned() } else { String::new() },
            ..Default::default()
        };
        body = fields.encode_to_vec();
    }
    let path = format!("/berth.v1.{rpc}").parse().expect("a path");
    let request = tonic::Request::new(Bytes::from(body));
    let answer = match rpc {
        "Events/Watch" => grpc.server_streaming(request, path, Raw).await.map(drop),
        _ => grpc.unary(request, path, Raw).await.map(drop),
    };
    let status = answer.err()?;
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    for_want_of_rights(&reason)
}

fn settings(dir: &std::path::Path) -> String {
    let mut text = format!(
        "[[listen]]\nserve = \"http\"\npath = \"{0}/http.sock\"\n\
         [[listen]]\nserve = \"handover\"\npath = \"{0}/handover.sock\"\n",
        dir.display()
    );
    for role in ROLES {
        text += &format!(
            "[[listen]]\nserve = \"grpc\"\npath = \"{}/{role}.sock\"\nrole = \"{role}\"\n",
            dir.display()
        );
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_answers_as_the_table_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::with(&settings(dir.path())).await;
    let mut checked = 0;
    for call in Call::ALL {
        let Some(rpc) = call.row().rpc.filter(|rpc| rpc.contains('/')) else { continue };
        for standing in STANDINGS {
            for role in ROLES {
                // Made anew each time, as some calls end it.
                let id = reservation(&running, standing, v1::ReserveRequest::default()).await;
                let channel = channel_at(dir.path().join(format!("{role}.sock"))).await;
                let found = refused(channel, rpc, &id).await;
                let expected = expected(*call, role, Transport::Unix, standing);
                assert_eq!(found, expected, "{rpc} as {role}, {standing:?}");
                checked += 1;
                end(&running, id).await;
            }
        }
    }
    assert_eq!(checked, 35 * 3 * 4, "calls, standings, roles");
    running.daemon.stop().await;
}
