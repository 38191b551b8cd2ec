//! The log's side of the audit: who was refused, from where, on what ground. Target `audit`.

use std::{io, net::SocketAddr};

use crate::model::{ApiError, Caller};

/// A client of TLS that didn't show who it is.
pub(crate) fn handshake_failed(listener: &str, peer: SocketAddr, error: &io::Error) {
    tracing::warn!(target: "audit", listener, %peer, %error, "refused: TLS handshake");
}

/// A caller who may not do what was asked.
pub(crate) fn refused(caller: &Caller, call: &str, error: &ApiError) {
    let origin = caller.origin.as_deref();
    tracing::warn!(
        target: "audit",
        call,
        identity = caller.identity,
        uid = caller.uid,
        pid = caller.pid,
        role = caller.role.name(),
        listener = origin.map(|origin| origin.listener.as_str()),
        peer = origin.and_then(|origin| origin.peer.as_deref()),
        ground = origin.map(|origin| origin.rule.as_str()),
        reason = error.reason().name(),
        "refused: {error}"
    );
}
