//! The page: static files, embedded.

use axum::{
    Router,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderName, HeaderValue, header};

/// Path, media type, content.
type File = (&'static str, &'static str, &'static str);

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! web {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../web/", $name))
    };
}

const FILES: &[File] = &[
    ("/", HTML, web!("index.html")),
    ("/web/api.js", SCRIPT, web!("api.js")),
    ("/web/changes.js", SCRIPT, web!("changes.js")),
    ("/web/dialog.js", SCRIPT, web!("dialog.js")),
    ("/web/dom.js", SCRIPT, web!("dom.js")),
    ("/web/event-row.js", SCRIPT, web!("event-row.js")),
    ("/web/explain.js", SCRIPT, web!("explain.js")),
    ("/web/facts.js", SCRIPT, web!("facts.js")),
    ("/web/grid.js", SCRIPT, web!("grid.js")),
    ("/web/health.js", SCRIPT, web!("health.js")),
    ("/web/history.js", SCRIPT, web!("history.js")),
    ("/web/lease.js", SCRIPT, web!("lease.js")),
    ("/web/log.js", SCRIPT, web!("log.js")),
    ("/web/main.js", SCRIPT, web!("main.js")),
    ("/web/parts.js", SCRIPT, web!("parts.js")),
    ("/web/router.js", SCRIPT, web!("router.js")),
    ("/web/session.js", SCRIPT, web!("session.js")),
    ("/web/session-bar.js", SCRIPT, web!("session-bar.js")),
    ("/web/sse.js", SCRIPT, web!("sse.js")),
    ("/web/store.js", SCRIPT, web!("store.js")),
    ("/web/tree.js", SCRIPT, web!("tree.js")),
    ("/web/words.js", SCRIPT, web!("words.js")),
    ("/web/views/doctor.js", SCRIPT, web!("views/doctor.js")),
    ("/web/views/events.js", SCRIPT, web!("views/events.js")),
    ("/web/views/host.js", SCRIPT, web!("views/host.js")),
    ("/web/views/object.js", SCRIPT, web!("views/object.js")),
    ("/web/views/reservations.js", SCRIPT, web!("views/reservations.js")),
    ("/web/style.css", STYLE, web!("style.css")),
    ("/web/tree.css", STYLE, web!("tree.css")),
    ("/web/views.css", STYLE, web!("views.css")),
    ("/web/dialog.css", STYLE, web!("dialog.css")),
    ("/web/icon.svg", IMAGE, web!("icon.svg")),
];

/// Nothing from elsewhere, no inline script or style, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// No window that opened it, or that it opened, reaches into it.
const OPENER: (HeaderName, HeaderValue) = (
    HeaderName::from_static("cross-origin-opener-policy"),
    HeaderValue::from_static("same-origin"),
);

/// The page's files.
pub(super) fn router() -> Router {
    let mut router = Router::new();
    for file in FILES {
        router = router.route(file.0, get(move || async move { respond(file) }));
    }
    router
}

fn respond((_, kind, content): &'static File) -> Response {
    let mut response = content.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(super::SAME_ORIGIN.0, super::SAME_ORIGIN.1);
    headers.insert(OPENER.0, OPENER.1);
    response
}
