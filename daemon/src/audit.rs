//! The log's side of the audit: who changed what, who was refused, from where, on what ground. Target
//! `audit`. So that a flood doesn't fill the disk, each has so many lines in a while; how many more
//! there were is told.

mod throttle;

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use berth_ownership::Reason;

use self::throttle::line;
use crate::model::{ApiError, Caller, Transport};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Changed,
    Refused,
    OverQuota,
    OverRate,
    ShutOut,
    TurnedAway,
    TooManyConnections,
    Handshake,
    NotLogged,
}

/// Names of the kinds, in their order.
const NAMES: [&str; 9] = [
    "changed",
    "refused",
    "over_quota",
    "over_rate",
    "shut_out",
    "turned_away",
    "too_many_connections",
    "handshake_failed",
    "not_logged",
];

static COUNTS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

fn count(kind: Kind, more: u64) {
    COUNTS[kind as usize].fetch_add(more, Ordering::Relaxed);
}

/// How often each happened since the process began; `not_logged` are those without a line.
pub(crate) fn counts() -> impl Iterator<Item = (&'static str, u64)> {
    NAMES.into_iter().zip(COUNTS.iter().map(|count| count.load(Ordering::Relaxed)))
}

/// Counts, and says whether there is a line for it.
fn wanted(kind: Kind, who: &str) -> bool {
    count(kind, 1);
    let wanted = line(NAMES[kind as usize], who);
    if !wanted {
        count(Kind::NotLogged, 1);
    }
    wanted
}

/// A client of TLS that didn't show who it is.
pub(crate) fn handshake_failed(listener: &str, peer: SocketAddr, error: &io::Error) {
    if wanted(Kind::Handshake, &peer.ip().to_string()) {
        tracing::warn!(target: "audit", listener, %peer, %error, "refused: TLS handshake");
    }
}

/// A peer whom a listener's rules shut out. Once for each connection.
pub(crate) fn shut_out(
    listener: &str,
    peer: Option<SocketAddr>,
    pid: Option<i32>,
    error: &ApiError,
) {
    let identity = &error.refusal().object;
    if wanted(Kind::ShutOut, identity) {
        let peer = peer.map(|peer| peer.to_string());
        tracing::warn!(
            target: "audit",
            listener,
            peer,
            identity,
            pid,
            reason = error.reason().name(),
            "shut out: {error}"
        );
    }
}

/// A request that is refused for its `Host`, `Origin`, method or session.
pub(crate) fn turned_away(caller: Option<&Caller>, path: &str, status: u16) {
    let origin = caller.and_then(|caller| caller.origin.as_deref());
    let peer = origin.and_then(|origin| origin.peer.as_deref());
    let address = peer.and_then(|peer| peer.rsplit_once(':')).map_or("", |(address, _)| address);
    if wanted(Kind::TurnedAway, address) {
        tracing::warn!(
            target: "audit",
            listener = origin.map(|origin| origin.listener.as_str()),
            peer,
            path,
            status,
            "refused: Host, Origin, method or session"
        );
    }
}

/// A call too many.
pub(crate) fn over_rate(caller: Option<&Caller>, path: &str, error: &ApiError) {
    let identity = caller.map_or(error.refusal().object.as_str(), |it| it.identity.as_str());
    if wanted(Kind::OverRate, identity) {
        let origin = caller.and_then(|caller| caller.origin.as_deref());
        tracing::warn!(
            target: "audit",
            identity,
            pid = caller.and_then(|caller| caller.pid),
            listener = origin.map(|origin| origin.listener.as_str()),
            peer = origin.and_then(|origin| origin.peer.as_deref()),
            path,
            reason = error.reason().name(),
            "refused: {error}"
        );
    }
}

/// A connection too many of one peer.
pub(crate) fn too_many_connections(listener: &str, peer: &str, most: usize) {
    if wanted(Kind::TooManyConnections, peer) {
        tracing::warn!(target: "audit", listener, peer, most, "refused: too many connections");
    }
}

/// A line of a caller's call: the caller's fields stand in each, in the same order.
macro_rules! of_caller {
    ($level:ident, $caller:expr, { $($field:tt)* }, $($text:tt)+) => {{
        let caller: &Caller = $caller;
        let origin = caller.origin.as_deref();
        tracing::$level!(
            target: "audit",
            $($field)*,
            identity = caller.identity,
            uid = caller.uid,
            pid = caller.pid,
            role = caller.role.name(),
            label = caller.tenant.as_deref(),
            web = (caller.transport == Transport::Web).then_some(true),
            listener = origin.map(|origin| origin.listener.as_str()),
            peer = origin.and_then(|origin| origin.peer.as_deref()),
            ground = origin.map(|origin| origin.rule.as_str()),
            $($text)+
        )
    }};
}

/// A call that changed something, or asked for it.
pub(crate) fn changed(caller: &Caller, call: &str, object: &str) {
    if wanted(Kind::Changed, &caller.identity) {
        of_caller!(info, caller, { call, object }, "done");
    }
}

/// A caller who may not do what was asked, or for whom it could not be done.
pub(crate) fn refused(caller: &Caller, call: &str, error: &ApiError) {
    if wanted(kind_of(error), &caller.identity) {
        let reason = error.reason().name();
        of_caller!(warn, caller, { call, reason }, "refused: {error}");
    }
}

/// Somebody who ended a browser's session.
pub(crate) fn signed_out(identity: &str) {
    if wanted(Kind::Changed, identity) {
        tracing::info!(target: "audit", call = "sign out", object = "session", identity, "done");
    }
}

fn kind_of(error: &ApiError) -> Kind {
    match error.reason() {
        Reason::QuotaExceeded => Kind::OverQuota,
        _ => Kind::Refused,
    }
}

/// Somebody at a hand-over socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AtHandOver<'a> {
    /// The socket.
    pub(crate) listener: &'a str,
    /// Who.
    pub(crate) uid: u32,
    /// Its process.
    pub(crate) pid: i32,
    /// Its role, by which rule.
    pub(crate) role: &'a str,
    /// The rule.
    pub(crate) ground: &'a str,
}

/// A request at a hand-over socket that is refused.
pub(crate) fn refused_at_hand_over(who: AtHandOver<'_>, reservation: &str, error: &ApiError) {
    if wanted(kind_of(error), &format!("uid:{}", who.uid)) {
        tracing::warn!(
            target: "audit",
            reservation,
            uid = who.uid,
            pid = who.pid,
            role = who.role,
            listener = who.listener,
            ground = who.ground,
            reason = error.reason().name(),
            "refused at the hand-over socket: {error}"
        );
    }
}
