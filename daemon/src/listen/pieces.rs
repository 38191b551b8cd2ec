//! Answers over HTTP/2 in pieces that are sent together.
//!
//! A frame of [`CHAINED`] bytes and more is written to the socket by itself, before anything that
//! comes after it, be that the end of the same answer or the frame of another stream. Smaller ones
//! are gathered, and one write takes all of them. So an event that goes to a hundred streams of a
//! connection takes a few writes and not a hundred.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::gather::Answering;

/// From so many bytes on h2 (`CHAIN_THRESHOLD_WITHOUT_VECTORED_IO`) writes a frame by itself.
const CHAINED: usize = 1024;
/// From so many bytes on copying costs more than a write.
const LARGE: usize = 8 * 1024;

/// A body that comes in pieces, if it is to.
#[derive(Debug)]
pub(super) struct Pieces {
    body: Body,
    rest: Bytes,
    /// That it is under way, where its data is taken apart.
    answering: Option<Answering>,
}

impl Pieces {
    /// A body whose data is taken apart.
    pub(super) fn of(body: Body, answering: Answering) -> Self {
        Self { body, rest: Bytes::new(), answering: Some(answering) }
    }

    /// A body as it is.
    pub(super) fn whole(body: Body) -> Self {
        Self { body, rest: Bytes::new(), answering: None }
    }

    /// The next piece of some data; the rest is kept.
    fn piece(&mut self, mut data: Bytes) -> Frame<Bytes> {
        if self.answering.is_some() && data.len() >= CHAINED && data.len() < LARGE {
            self.rest = data.split_off(CHAINED - 1);
        }
        Frame::data(data)
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Some(Ok(self.piece(rest))));
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        Poll::Ready(Some(Ok(match frame.into_data() {
            Ok(data) => self.piece(data),
            Err(trailers) => trailers,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        let of_body = self.body.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(of_body.lower().saturating_add(rest));
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt as _;

    use super::{super::gather::Traffic, *};

    fn apart(body: Body) -> Pieces {
        Pieces::of(body, Arc::new(Traffic::default()).answer())
    }

    async fn lengths(mut body: Pieces) -> Vec<usize> {
        let mut lengths = Vec::new();
        let mut all = Vec::new();
        let total = body.size_hint().exact();
        while let Some(frame) = body.frame().await {
            let data = frame.expect("no error").into_data().expect("data");
            assert!(lengths.is_empty() || !data.is_empty());
            lengths.push(data.len());
            all.extend_from_slice(&data);
        }
        assert!(body.is_end_stream());
        assert_eq!(total, u64::try_from(all.len()).ok());
        assert!(all.iter().zip((0..=u8::MAX).cycle()).all(|(byte, at)| *byte == at), "in order");
        lengths
    }

    fn body(length: usize) -> Body {
        Body::from((0..=u8::MAX).cycle().take(length).collect::<Vec<u8>>())
    }

    #[tokio::test]
    async fn what_would_be_written_by_itself_comes_in_pieces() {
        assert_eq!(lengths(apart(body(1))).await, [1]);
        assert_eq!(lengths(apart(body(1023))).await, [1023]);
        assert_eq!(lengths(apart(body(1024))).await, [1023, 1]);
        assert_eq!(lengths(apart(body(2046))).await, [1023, 1023]);
        assert_eq!(lengths(apart(body(2500))).await, [1023, 1023, 454]);
        assert_eq!(lengths(apart(body(LARGE))).await, [LARGE]);
        assert_eq!(lengths(Pieces::whole(body(2500))).await, [2500]);
    }

    #[tokio::test]
    async fn trailers_come_last() {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from(0));
        let body = http_body_util::Full::new(Bytes::from(vec![7; 1500]))
            .with_trailers(async move { Some(Ok(trailers)) });
        let mut pieces = apart(Body::new(body));
        for length in [1023, 477] {
            let frame = pieces.frame().await.expect("more").expect("no error");
            assert_eq!(frame.into_data().expect("data").len(), length);
            assert!(!pieces.is_end_stream());
        }
        let frame = pieces.frame().await.expect("more").expect("no error");
        assert!(frame.into_trailers().expect("trailers").contains_key("grpc-status"));
        assert!(pieces.frame().await.is_none());
    }
}
