//! A server stream whose messages are counted and not decoded: what a watcher makes of a message is
//! its own affair, and watchers share the server's processors here.

use std::marker::PhantomData;

use anyhow::{Context as _, Result};
use http::uri::PathAndQuery;
use prost::{Message, bytes::Buf as _};
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

/// Opens one.
///
/// # Errors
/// The refusal.
pub(super) async fn follow<T: Message + 'static>(
    channel: Channel,
    path: &'static str,
    request: T,
) -> Result<Streaming<usize>> {
    let mut client = Grpc::new(channel);
    client.ready().await.context("wait for the connection")?;
    let path = PathAndQuery::from_static(path);
    let stream = client.server_streaming(Request::new(request), path, Lengths(PhantomData)).await;
    Ok(stream.with_context(|| "follow")?.into_inner())
}

/// Requests are encoded, answers measured.
struct Lengths<T>(PhantomData<fn(T)>);

impl<T: Message + 'static> Codec for Lengths<T> {
    type Encode = T;
    type Decode = usize;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + 'static> Encoder for Lengths<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, request: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        request.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<T> Decoder for Lengths<T> {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let length = buffer.remaining();
        buffer.advance(length);
        Ok(Some(length))
    }
}
