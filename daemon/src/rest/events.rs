//! Events over server-sent events, resumable by `Last-Event-ID`, or as one JSON list.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{Event, KeepAlive, Sse},
};
use berth_proto::v1;
use futures::{Stream, StreamExt as _, stream};
use http::{HeaderMap, Uri, header};

use super::{Front, bind, problem};
use crate::{
    listen::Seat,
    model::{ApiError, Caller},
    service::served,
    view::WatchedEvent,
};

const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// What a client should wait before it comes back.
const RECONNECT: Duration = Duration::from_secs(2);

/// True when the client asks for one JSON document and not for a stream.
pub(super) fn wants_document(headers: &HeaderMap) -> bool {
    let mut document = false;
    for value in headers.get_all(header::ACCEPT) {
        let Ok(text) = value.to_str() else { continue };
        for item in text.split(',') {
            match item.split(';').next().unwrap_or("").trim() {
                "text/event-stream" => return false,
                "application/json" => document = true,
                _ => {}
            }
        }
    }
    document
}

/// The stream, from where the client left off.
pub(super) async fn stream(
    front: &Front,
    caller: Caller,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let request = watch_request(uri, headers)?;
    let permit = front.watcher()?;
    let answer = front.service.watch(&caller, request).await;
    let mut events = Box::pin(served(&caller, "watch", answer)?);
    // A refusal that is known now is a plain problem, which clients see better than one in a
    // stream that began well.
    let early = match futures::poll!(events.next()) {
        std::task::Poll::Ready(Some(Err(error))) => return Err(error),
        std::task::Poll::Ready(Some(Ok(event))) => Some(event),
        std::task::Poll::Ready(None) | std::task::Poll::Pending => None,
    };
    let instance = uri.path().to_owned();
    // The head leaves with the first bytes of the body: without this an idle stream would look as if
    // it were never opened.
    let opening = Event::default().comment("follows").retry(RECONNECT);
    let frames =
        stream::iter(early.map(Ok)).chain(events).map(move |event| frame(event, &instance));
    let frames = stream::iter([opening]).chain(frames).map(Ok::<_, Infallible>);
    let held = Held { frames: Box::pin(frames), _permit: permit };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("alive");
    let mut response = Sse::new(held).keep_alive(keep_alive).into_response();
    response.headers_mut().insert("x-accel-buffering", http::HeaderValue::from_static("no"));
    Ok(response)
}

/// A stream that counts among the watchers until it is dropped.
struct Held<S> {
    frames: std::pin::Pin<Box<S>>,
    _permit: Seat,
}

impl<S: Stream> Stream for Held<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.frames.as_mut().poll_next(cx)
    }
}

fn frame(event: Result<Arc<WatchedEvent>, ApiError>, instance: &str) -> Event {
    match event {
        Ok(event) => Event::default().id(event.record().seq.to_string()).data(event.json()),
        Err(error) => {
            let status = error.reason().http_status();
            let data = problem::document(error.refusal(), status, instance).to_string();
            Event::default().event("problem").data(data)
        }
    }
}

fn watch_request(uri: &Uri, headers: &HeaderMap) -> Result<v1::WatchRequest, ApiError> {
    let mut request = v1::WatchRequest::default();
    for (name, text) in bind::pairs(uri)? {
        match name.as_str() {
            "since" | "sinceSeq" | "since_seq" => request.since_seq = Some(seq(&name, &text)?),
            "object" => request.object = text,
            "limit" => {}
            _ => {
                let message = format!("unknown parameter {name:?}");
                return Err(ApiError::invalid_argument(name, message, "use since, object"));
            }
        }
    }
    if let Some(last) = headers.get("last-event-id") {
        let text = last.to_str().unwrap_or("");
        request.since_seq = Some(seq("Last-Event-ID", text)?);
    }
    Ok(request)
}

fn seq(name: &str, text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| {
        ApiError::invalid_argument(
            name,
            format!("{text:?} is not a sequence number"),
            "give the seq of the last event that was seen",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(text: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, http::HeaderValue::from_static(text))])
    }

    #[test]
    fn a_stream_is_the_default_and_json_is_asked_for() {
        assert!(!wants_document(&HeaderMap::new()));
        assert!(!wants_document(&accepting("*/*")));
        assert!(!wants_document(&accepting("text/event-stream")));
        assert!(!wants_document(&accepting("application/json, text/event-stream")));
        assert!(wants_document(&accepting("application/json")));
        assert!(wants_document(&accepting("text/html, application/json;q=0.9")));
    }

    #[test]
    fn last_event_id_outranks_the_query() {
        let uri: Uri = "/api/v1/events?since=3&object=g-1".parse().expect("a URI");
        let mut headers = HeaderMap::new();
        let request = watch_request(&uri, &headers).expect("known parameters");
        assert_eq!((request.since_seq, request.object.as_str()), (Some(3), "g-1"));
        headers.insert("last-event-id", http::HeaderValue::from_static("7"));
        let request = watch_request(&uri, &headers).expect("known parameters");
        assert_eq!(request.since_seq, Some(7));
        headers.insert("last-event-id", http::HeaderValue::from_static("x"));
        watch_request(&uri, &headers).expect_err("not a number");
    }
}
