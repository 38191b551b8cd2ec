//! What a browser's request must show before its session is looked at: that it comes from the page
//! itself.
//!
//! `Host` and `Origin` were compared before. A name that is rebound is no loopback name; another
//! server of this machine has another port, and so another origin.

use std::net::IpAddr;

use berth_ownership::{Reason, Refusal};
use http::{HeaderMap, HeaderName, Method, Request, header};

use super::Shown;
use crate::model::ApiError;

/// Where the page signs in (POST), asks for its session (GET) and signs out (DELETE).
pub(crate) const PATH: &str = "/web/session";

/// What the page alone knows of its session, and no other page can send.
const CSRF: HeaderName = HeaderName::from_static("x-berth-csrf");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// A request that came from the page itself.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    /// The cookie's name at this port: two daemons behind one address don't take it from each other.
    pub(crate) cookie: String,
    /// What the request shows of a session.
    pub(crate) shows: Shows,
}

/// Cookie and token of a request.
#[derive(Debug, Clone)]
pub(crate) struct Shows {
    cookies: Vec<String>,
    csrf: Option<String>,
}

impl Shows {
    /// Whether it is meant as a session's at all.
    pub(crate) fn anything(&self) -> bool {
        self.csrf.is_some() || !self.cookies.is_empty()
    }

    pub(super) fn shown(&self) -> Shown<'_> {
        Shown { cookies: &self.cookies, csrf: self.csrf.as_deref() }
    }
}

/// Looks at a request to a listener on loopback that is for `host`.
///
/// `None` is one that a session has nothing to do with.
///
/// # Errors
/// It may be another page's.
pub(crate) fn check<B>(request: &Request<B>, host: &str) -> Option<Result<Checked, ApiError>> {
    let headers = request.headers();
    let cookie = format!("berth_session_{}", port(host));
    let csrf = single(headers, &CSRF).map(str::to_owned);
    let shows = Shows { cookies: cookies(headers, &cookie), csrf };
    let at_the_door = request.uri().path() == PATH;
    let reads = *request.method() == Method::GET || *request.method() == Method::HEAD;
    // Reading needs no session.
    if !at_the_door && (reads || !shows.anything()) {
        return None;
    }
    Some(from_the_page(headers, host, reads).map(|()| Checked { cookie, shows }))
}

fn from_the_page(headers: &HeaderMap, host: &str, reads: bool) -> Result<(), ApiError> {
    if !is_loopback(host) {
        let text = "a session is for loopback names alone";
        return Err(denied("Host", text, "use the page by 127.0.0.1, [::1] or localhost"));
    }
    if headers.contains_key(&FETCH_SITE) && single(headers, &FETCH_SITE) != Some("same-origin") {
        let text = "the browser says that the request comes from elsewhere";
        return Err(denied("Sec-Fetch-Site", text, "use the page at / of this listener"));
    }
    if reads {
        return Ok(());
    }
    // One of another origin was refused before.
    if !headers.contains_key(header::ORIGIN) {
        let text = "the request doesn't say of which page it is";
        return Err(denied("Origin", text, "use the page at / of this listener"));
    }
    let kind = single(headers, &header::CONTENT_TYPE).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        let text = "a change in a session is JSON";
        return Err(denied("Content-Type", text, "send content-type: application/json"));
    }
    Ok(())
}

fn denied(object: &str, text: &str, way_out: &str) -> ApiError {
    let refusal = Refusal::new(Reason::PermissionDenied, object, text);
    refusal.with_resolve(vec![way_out.to_owned()]).into()
}

/// The one value of a header that must not be repeated.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// More than one of a name is nothing that the page makes.
const MOST_COOKIES: usize = 8;

fn cookies(headers: &HeaderMap, name: &str) -> Vec<String> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs =
        lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let own = pairs.filter(|(known, _)| *known == name).map(|(_, value)| value.to_owned());
    own.take(MOST_COOKIES).collect()
}

fn port(host: &str) -> &str {
    let port = host.rsplit_once(':').map_or("", |(_, port)| port);
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if is_port { port } else { "80" }
}

fn is_loopback(host: &str) -> bool {
    let name = host.strip_suffix(&format!(":{}", port(host))).unwrap_or(host);
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_has_the_port_in_its_name_and_others_are_left() {
        let lines = "berth_session_7711=a; other=b;berth_session_7712=c; berth_session_7711=d";
        let headers = HeaderMap::from_iter([(header::COOKIE, lines.parse().expect("a line"))]);
        assert_eq!(cookies(&headers, "berth_session_7711"), ["a", "d"]);
        assert_eq!(port("127.0.0.1:7711"), "7711");
        assert_eq!((port("[::1]:9"), port("[::1]"), port("localhost")), ("9", "80", "80"));
    }

    #[test]
    fn names_of_loopback_are_told_from_others() {
        for host in ["127.0.0.1:7711", "[::1]:7711", "[::1]", "localhost", "LocalHost:80"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["berth.example:7711", "10.0.0.1:7711", "localhost.evil", "127.0.0.1.evil", ""]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
