//! The hand-over socket: descriptors and memory registrations, which no RPC can carry.
//!
//! `SOCK_SEQPACKET`, one JSON object per packet, descriptors by `SCM_RIGHTS`. The peer is known by
//! the kernel's word, and its process is watched: what it holds ends with it. The words are those
//! of `berth_handover`; see `docs/handover.md`.

mod desk;
mod peer;
mod refusal;
mod server;
mod thread;

use std::{os::fd::OwnedFd, path::Path};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

pub use server::{House, serve, serve_in};
pub use thread::Serving;

/// Binds the socket at a path, where nothing may be yet.
///
/// # Errors
/// EADDRINUSE when something is at the path; else what the directory answers.
pub fn bind_socket(path: &Path) -> std::io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, 128)?;
    Ok(socket)
}
