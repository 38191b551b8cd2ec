//! `berth.v1.Events/Watch`. The generated service would encode an event anew for each who watches;
//! this one sends all of them the same bytes.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use berth_proto::v1::WatchRequest;
use futures::{Stream, StreamExt as _, future::BoxFuture};
use prost::{
    Message as _,
    bytes::{BufMut as _, Bytes},
};
use tonic::{
    Request, Response, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::ServerStreamingService,
};
use tower::Service;

use super::{Grpc, close, status};
use crate::{model::ApiError, service::served, view::WatchedEvent};

/// Where it is.
pub(super) const PATH: &str = "/berth.v1.Events/Watch";

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The method as a service of its own.
#[derive(Debug, Clone)]
pub(super) struct Watch(pub(super) Grpc);

impl Service<http::Request<Body>> for Watch {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            let limit = method.0.front.body_bytes;
            let mut grpc =
                tonic::server::Grpc::new(Encoded).apply_max_message_size_config(Some(limit), None);
            Ok(grpc.server_streaming(method, request).await)
        })
    }
}

impl ServerStreamingService<WatchRequest> for Watch {
    type Response = Bytes;
    type ResponseStream = Events<Bytes>;
    type Future = BoxFuture<'static, Result<Response<Events<Bytes>>, Status>>;

    fn call(&mut self, request: Request<WatchRequest>) -> Self::Future {
        let grpc = self.0.clone();
        Box::pin(async move { grpc.watch_as(request, |event| event.message()).await })
    }
}

impl Grpc {
    /// The events, each in some form.
    pub(super) async fn watch_as<T: 'static>(
        &self,
        request: Request<WatchRequest>,
        form: impl Fn(Arc<WatchedEvent>) -> T + Send + 'static,
    ) -> Result<Response<Events<T>>, Status> {
        let answer = self.follow(request, form).await;
        close(&self.front.metrics, answer)
    }

    async fn follow<T: 'static>(
        &self,
        request: Request<WatchRequest>,
        form: impl Fn(Arc<WatchedEvent>) -> T + Send + 'static,
    ) -> Result<Events<T>, ApiError> {
        let (caller, message) = self.open(request)?;
        let permit = self.front.watcher()?;
        let answer = self.front.service.watch(&caller, message).await;
        let events = served(&caller, "watch", answer)?;
        Ok(Box::pin(events.map(move |event| {
            // The permit lives as long as the stream does.
            let _counted = &permit;
            event.map(&form).map_err(|error| status(&error))
        })))
    }
}

/// Requests are decoded; answers are encoded already.
#[derive(Debug, Clone, Copy)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = WatchRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, event: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(event);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        // As the generated services say it.
        WatchRequest::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
