//! One socket: a task for each connection, one request at a time.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use berth_handover::{
    Request,
    asynchronous::{deliver, next, ready, send_now},
    packet::Received,
};
use rustix::net::{SocketFlags, accept_with, sockopt::socket_peercred};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinSet,
};

use super::desk::{Answer, Desk, refusal, refused};

/// Connections that a container has at a time.
const MOST: usize = 16;
/// Before a listener that can't accept is asked again.
const AGAIN: Duration = Duration::from_millis(50);

/// Serves a socket until the task is dropped.
pub(super) async fn serve(listener: OwnedFd, desk: Arc<Desk>, allocation: Arc<str>) {
    let listener = match ready(listener, Interest::READABLE) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, %allocation, "a container's socket can't be served");
            return;
        }
    };
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match accept(&listener).await {
            Ok(socket) if connections.len() < MOST => {
                connections.spawn(connection(socket, Arc::clone(&desk), Arc::clone(&allocation)));
            }
            Ok(socket) => {
                let text = format!("a container has at most {MOST} connections to this socket");
                let way_out = "close connections that nobody uses, then connect again";
                let (full, _) = refused(refusal("UNAVAILABLE", &allocation, text, way_out));
                if let Err(error) = send_now(&socket, &full, &[]) {
                    tracing::debug!(%error, "a peer without a place was not told");
                }
            }
            Err(error) => {
                tracing::warn!(%error, %allocation, "accept on a container's socket");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<OwnedFd> {
    loop {
        let mut guard = listener.readable().await?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        if let Ok(accepted) = guard.try_io(|socket| Ok(accept_with(socket, flags)?)) {
            return accepted;
        }
    }
}

async fn connection(socket: OwnedFd, desk: Arc<Desk>, allocation: Arc<str>) {
    if let Err(error) = converse(socket, &desk, &allocation).await {
        tracing::debug!(%error, %allocation, "a container's connection broke");
    }
}

async fn converse(socket: OwnedFd, desk: &Arc<Desk>, allocation: &Arc<str>) -> io::Result<()> {
    let pid = socket_peercred(&socket)?.pid;
    let socket = ready(socket, Interest::READABLE | Interest::WRITABLE)?;
    loop {
        let (reply, fds) = match next(&socket).await? {
            Received::End => return Ok(()),
            Received::TooMuch(what) => unread(allocation, what),
            Received::Packet(bytes, fds) => match serde_json::from_slice::<Request>(&bytes) {
                Err(error) => unread(allocation, &format!("the request can't be read: {error}")),
                Ok(request) => {
                    let (desk, allocation) = (Arc::clone(desk), Arc::clone(allocation));
                    let work = move || desk.answer(&allocation, pid, request, fds);
                    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
                }
            },
        };
        deliver(&socket, &reply, &fds).await?;
    }
}

fn unread(allocation: &str, what: &str) -> Answer {
    let way_out = "see docs/handover.md for what each request carries";
    refused(refusal("INVALID_ARGUMENT", allocation, what.to_owned(), way_out))
}
