//! The hand-over socket as a foreign program speaks it: packets of JSON with descriptors beside.
//!
//! Written from the protocol's description and not from `berthd`'s sources, so that the two are
//! compared whenever a scenario runs.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with, sockopt,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

/// The largest packet.
const PACKET_BYTES: usize = 16 * 1024;
/// More descriptors than any scenario is given.
const FDS: usize = 16;
/// How long an answer may take: an emulated guest is slow.
const PATIENCE: Duration = Duration::from_secs(600);

/// What came back.
#[derive(Debug)]
pub struct Packet {
    /// The answer.
    pub json: Value,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// One request on a connection of its own.
///
/// # Errors
/// Nobody listens, or the answer is none. A refusal is an answer: `"ok": false`.
pub fn ask(socket: &Path, request: &Value, fds: &[BorrowedFd<'_>]) -> Result<Packet> {
    let connection = connect_to(socket)?;
    send(&connection, request.to_string().as_bytes(), fds).context("send to berthd")?;
    receive(&connection).with_context(|| format!("the answer to {request}"))
}

/// A connection on which nothing was said yet.
///
/// # Errors
/// Nobody listens.
pub fn connect_to(socket: &Path) -> Result<OwnedFd> {
    let connection =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    connect(&connection, &SocketAddrUnix::new(socket)?)
        .with_context(|| format!("connect to {}", socket.display()))?;
    sockopt::set_socket_timeout(&connection, sockopt::Timeout::Recv, Some(PATIENCE))?;
    Ok(connection)
}

/// One request in the name of another process, whose pidfd goes with it.
///
/// # Errors
/// As [`ask`]; there is no such process.
pub fn ask_for(socket: &Path, request: &Value, process: u32) -> Result<Packet> {
    let pid = Pid::from_raw(i32::try_from(process)?).context("odd pid")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("open a pidfd")?;
    ask(socket, request, &[pidfd.as_fd()])
}

/// One packet with descriptors.
///
/// # Errors
/// The socket's.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ensure!(control.push(SendAncillaryMessage::ScmRights(fds)), "too many descriptors");
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub(super) fn receive(socket: impl AsFd) -> Result<Packet> {
    let mut bytes = vec![0; PACKET_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    ensure!(message.bytes > 0, "the connection was closed");
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    Ok(Packet { json: serde_json::from_slice(&bytes[..message.bytes])?, fds })
}
