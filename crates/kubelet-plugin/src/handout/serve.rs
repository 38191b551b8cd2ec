//! One socket: a task for each connection, one request at a time.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use berth_handover::{
    Reply, Request,
    packet::{REQUEST, Received, receive, send},
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    bind, listen, socket_with, sockopt::socket_peercred,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinSet,
};

use super::desk::{Answer, Desk, refusal, refused};

/// Connections that a container has at a time.
const MOST: usize = 16;
/// How long an answer may be left unread.
const UNREAD: Duration = Duration::from_secs(10);
/// Before a listener that can't accept is asked again.
const AGAIN: Duration = Duration::from_millis(50);

/// Binds a socket at a path where nothing is.
pub(super) fn listener(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, 16)?;
    Ok(socket)
}

/// Registers a descriptor with the runtime.
#[expect(
    deprecated,
    reason = "its successor is unsafe for types whose descriptor may change; an OwnedFd's can't"
)]
fn ready(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

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
                let full = refused(refusal("UNAVAILABLE", &allocation, text, way_out));
                if let Err(error) = send_now(&socket, &full) {
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
        let answer = match next(&socket).await? {
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
        deliver(&socket, &answer).await?;
    }
}

fn unread(allocation: &str, what: &str) -> Answer {
    let way_out = "see docs/handover.md for what each request carries";
    refused(refusal("INVALID_ARGUMENT", allocation, what.to_owned(), way_out))
}

async fn next(socket: &AsyncFd<OwnedFd>) -> io::Result<Received> {
    loop {
        let mut guard = socket.readable().await?;
        let received = guard.try_io(|socket| Ok(receive(socket, RecvFlags::DONTWAIT, REQUEST)?));
        if let Ok(received) = received {
            return received;
        }
    }
}

fn send_now(socket: impl AsFd, answer: &Answer) -> io::Result<()> {
    let (reply, fds): &(Reply, Vec<OwnedFd>) = answer;
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    Ok(send(socket, &serde_json::to_vec(reply)?, &fds, SendFlags::DONTWAIT)?)
}

async fn deliver(socket: &AsyncFd<OwnedFd>, answer: &Answer) -> io::Result<()> {
    let sending = async {
        loop {
            let mut guard = socket.writable().await?;
            if let Ok(sent) = guard.try_io(|socket| send_now(socket, answer)) {
                return sent;
            }
        }
    };
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    tokio::time::timeout(UNREAD, sending).await.map_err(|_| late())?
}
