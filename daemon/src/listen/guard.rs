//! What TCP lets through. Without TLS: reading, and only under names that are ours; on loopback also
//! what a browser's session may change. With TLS the certificates say who is who, and pages of other
//! origins are kept from using a browser's.
//!
//! A browser on this machine can be led to any address by a page from elsewhere. It can't be made
//! to lie about `Host` and `Origin`: a name that was rebound to a loopback address is refused.

use std::{net::IpAddr, sync::Arc};

use axum::response::Response;
use berth_ownership::{Reason, Refusal};
use http::{HeaderMap, HeaderValue, Method, Request, header};

use crate::{
    model::{ApiError, Origin},
    rest,
    websession::{self, Checked, WebSessions},
};

use super::Admission;

/// The checks of one TCP listener.
#[derive(Debug)]
pub(super) struct Guard {
    /// Names besides the loopback ones; `None` with TLS.
    hosts: Option<Vec<String>>,
    /// Sessions of browsers, where it is on loopback and without TLS.
    sessions: Option<Arc<WebSessions>>,
}

/// As what a request is let through.
#[derive(Debug)]
pub(super) enum Passage {
    /// As whoever is connected.
    Plain,
    /// To the page's own door.
    Door(Checked),
    /// As who opened a session.
    Session(Admission),
}

const CHANGES: &str = "send changes to the unix socket: curl --unix-socket /run/berth/http.sock";

impl Guard {
    pub(super) fn new(hosts: Option<Vec<String>>, sessions: Option<Arc<WebSessions>>) -> Self {
        Self { hosts, sessions }
    }

    /// As what a request is let through, by a peer who came in so; else the answer to it.
    ///
    /// # Errors
    /// It isn't let through.
    pub(super) fn pass<B>(
        &self,
        request: &Request<B>,
        came: Option<&Origin>,
    ) -> Result<Passage, Box<Response>> {
        match self.session(request, came) {
            None => self.refuse(request).map_or(Ok(Passage::Plain), |refused| Err(refused.into())),
            Some(found) => found,
        }
    }

    /// The same of a request that is about a session, or meant to be one's.
    fn session<B>(
        &self,
        request: &Request<B>,
        came: Option<&Origin>,
    ) -> Option<Result<Passage, Box<Response>>> {
        let sessions = self.sessions.as_ref()?;
        let path = request.uri().path();
        let host = host_of(request)?;
        let checked = websession::check(request, host)?;
        if let Some(refused) = self.foreign(request) {
            return Some(Err(refused.into()));
        }
        let admitted = checked.and_then(|checked| {
            if path == websession::PATH {
                return Ok(Passage::Door(checked));
            }
            sessions.admit(&checked.shows, came).map(Passage::Session)
        });
        Some(admitted.map_err(|error| Box::new(rest::problem_response(&error, path))))
    }

    /// The answer to a request that isn't let through.
    fn refuse<B>(&self, request: &Request<B>) -> Option<Response> {
        if let Some(refused) = self.foreign(request) {
            return Some(refused);
        }
        let may_change = self.hosts.is_none();
        if may_change || request.method() == Method::GET || request.method() == Method::HEAD {
            return None;
        }
        let message = format!("TCP without TLS serves GET only, not {}", request.method());
        let mut resolve = vec![CHANGES.to_owned()];
        if self.sessions.is_some() {
            resolve.push(format!("sign in on the page: {}", websession::SIGN_IN));
        }
        let refusal =
            Refusal::new(Reason::PermissionDenied, "method", message).with_resolve(resolve);
        let path = request.uri().path();
        let mut response = rest::problem_with_status(&ApiError::Refused(refusal), 405, path);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        Some(response)
    }

    /// The answer to a request under a name that isn't ours, or of another page.
    fn foreign<B>(&self, request: &Request<B>) -> Option<Response> {
        let path = request.uri().path();
        let Some(host) = host_of(request).filter(|host| self.knows(host)) else {
            let message = "the request's Host is not a name of this listener";
            let way_out = "use 127.0.0.1 or localhost, or add the name to the listener's hosts";
            return Some(forbidden("Host", message, way_out, path));
        };
        if request.headers().contains_key(header::ORIGIN) {
            let origin = single(request.headers(), header::ORIGIN);
            let scheme = if self.hosts.is_some() { "http://" } else { "https://" };
            if origin.and_then(|origin| origin.strip_prefix(scheme)) != Some(host) {
                let message = "the request comes from a page of another origin";
                let way_out = "use the page at / of this listener";
                return Some(forbidden("Origin", message, way_out, path));
            }
        }
        None
    }

    /// True for loopback names and addresses, and for the names that were added.
    fn knows(&self, host: &str) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        let name = without_port(host);
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost")
            || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            || hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// The name that a request is for.
fn host_of<B>(request: &Request<B>) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => single(request.headers(), header::HOST),
    }
}

/// The one value of a header that must not be repeated.
fn single(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn forbidden(object: &str, message: &str, way_out: &str, path: &str) -> Response {
    let refusal = Refusal::new(Reason::PermissionDenied, object, message)
        .with_resolve(vec![way_out.to_owned()]);
    rest::problem_response(&ApiError::Refused(refusal), path)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn status(method: Method, host: &str, origin: Option<&str>) -> Option<StatusCode> {
        let mut request = Request::builder().method(method).uri("/").header(header::HOST, host);
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        let request = request.body(()).expect("a request");
        let guard = Guard::new(Some(vec!["berth.example".to_owned()]), None);
        guard.refuse(&request).map(|response| response.status())
    }

    #[test]
    fn names_of_the_listener_are_let_through() {
        for host in ["127.0.0.1:7711", "localhost:7711", "LOCALHOST", "[::1]:7711", "[::1]"] {
            assert_eq!(status(Method::GET, host, None), None, "{host}");
        }
        assert_eq!(status(Method::HEAD, "berth.example:80", None), None);
    }

    #[test]
    fn rebound_names_are_refused() {
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil:7711", ""] {
            let refused = status(Method::GET, host, None);
            assert_eq!(refused, Some(StatusCode::FORBIDDEN), "{host}");
        }
    }

    #[test]
    fn other_origins_are_refused() {
        let host = "127.0.0.1:7711";
        assert_eq!(status(Method::GET, host, Some("http://127.0.0.1:7711")), None);
        for origin in ["http://evil.example", "null", "https://127.0.0.1:7711", "http://127.0.0.1"]
        {
            let refused = status(Method::GET, host, Some(origin));
            assert_eq!(refused, Some(StatusCode::FORBIDDEN), "{origin}");
        }
    }

    #[test]
    fn with_tls_changes_pass_and_pages_of_other_origins_do_not() {
        let post = |origin: &str| {
            let request = Request::post("/").header(header::HOST, "berth.example:7713");
            let request = request.header(header::ORIGIN, origin).body(()).expect("a request");
            Guard::new(None, None).refuse(&request).map(|response| response.status())
        };
        assert_eq!(post("https://berth.example:7713"), None);
        for origin in ["http://berth.example:7713", "https://evil.example", "null", ""] {
            assert_eq!(post(origin), Some(StatusCode::FORBIDDEN), "{origin}");
        }
        let request = Request::post("/").header(header::HOST, "any").body(()).expect("a request");
        assert!(Guard::new(None, None).refuse(&request).is_none());
    }

    #[test]
    fn changes_are_refused() {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            let refused = status(method.clone(), "127.0.0.1:7711", None);
            assert_eq!(refused, Some(StatusCode::METHOD_NOT_ALLOWED), "{method}");
        }
    }
}
