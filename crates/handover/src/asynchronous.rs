//! The other end: listening, and packets on tokio's runtime. For who serves such a socket.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen,
        socket_with,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    Reply,
    packet::{REQUEST, Received, receive, send},
};

/// How long a peer may leave an answer unread before it is dropped.
const UNREAD: Duration = Duration::from_secs(10);

/// Binds a socket at a path, where nothing may be yet. Its descriptor doesn't block.
///
/// # Errors
/// EADDRINUSE when something is at the path; else what the directory answers.
pub fn bind_socket(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, 128)?;
    Ok(socket)
}

/// Registers a descriptor with the runtime.
///
/// # Errors
/// What epoll answers.
#[expect(
    deprecated,
    reason = "its successor is unsafe for types whose descriptor may change; an OwnedFd's can't"
)]
pub fn ready(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

/// The next packet of a peer.
///
/// # Errors
/// As [`receive`].
pub async fn next(socket: &AsyncFd<OwnedFd>) -> io::Result<Received> {
    loop {
        let mut guard = socket.readable().await?;
        let received = guard.try_io(|socket| Ok(receive(socket, RecvFlags::DONTWAIT, REQUEST)?));
        if let Ok(received) = received {
            return received;
        }
    }
}

/// Sends an answer, if it needn't be waited for that the peer reads.
///
/// # Errors
/// As [`send`]; EAGAIN where it would have to be waited.
pub fn send_now(socket: impl AsFd, reply: &Reply, fds: &[OwnedFd]) -> io::Result<()> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    Ok(send(socket, &serde_json::to_vec(reply)?, &fds, SendFlags::DONTWAIT)?)
}

/// Sends an answer, and waits for a while until the peer has room for it.
///
/// # Errors
/// As [`send`]; ETIMEDOUT of a peer that doesn't read.
pub async fn deliver(socket: &AsyncFd<OwnedFd>, reply: &Reply, fds: &[OwnedFd]) -> io::Result<()> {
    let sent = send_now(socket, reply, fds);
    if !would_block(&sent) {
        return sent;
    }
    let sending = async {
        loop {
            let mut guard = socket.writable().await?;
            if let Ok(sent) = guard.try_io(|socket| send_now(socket, reply, fds)) {
                return sent;
            }
        }
    };
    let unread = || io::Error::from(Errno::TIMEDOUT);
    tokio::time::timeout(UNREAD, sending).await.map_err(|_| unread())?
}

/// Whether a send would have had to wait.
#[must_use]
pub fn would_block(sent: &io::Result<()>) -> bool {
    sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
