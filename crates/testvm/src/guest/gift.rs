//! Descriptors that one process of a scenario gives another, past `berthd`.
//!
//! Each connects to a socket of the scenario's own, which passes on what it got and keeps nothing.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, ensure};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

use super::{Ctx, handover, holder::Holder};

/// Where the two meet.
struct Meeting {
    listener: OwnedFd,
    path: PathBuf,
}

impl Meeting {
    fn open(ctx: &Ctx) -> Result<Self> {
        let path = ctx.dir().join("gift.sock");
        let kind = SocketType::SEQPACKET;
        let listener = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        bind(&listener, &SocketAddrUnix::new(&path)?)?;
        listen(&listener, 4)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        Ok(Self { listener, path })
    }

    fn next(&self) -> Result<OwnedFd> {
        accept_with(&self.listener, SocketFlags::CLOEXEC).context("wait for a process")
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// One holder sends another a device's descriptor, and has its own still.
///
/// # Errors
/// It has none.
pub fn pass(ctx: &Ctx, from: &mut Holder, to: &mut Holder, device: &str) -> Result<()> {
    let meeting = Meeting::open(ctx)?;
    from.give(device, &meeting.path)?;
    let giver = meeting.next()?;
    let fd = take(&giver)?;
    thread::scope(|scope| {
        let taking = scope.spawn(|| to.take(&meeting.path));
        let taker = meeting.next()?;
        handover::send(&taker, b"{}", &[fd.as_fd()])?;
        taking.join().map_err(|_| anyhow::anyhow!("the taker's thread panicked"))?
    })
}

/// One holder sends a device's descriptor to somebody who doesn't receive it. It is closed when this
/// is dropped.
///
/// # Errors
/// It has none.
pub fn under_way(ctx: &Ctx, from: &mut Holder, device: &str) -> Result<OwnedFd> {
    let meeting = Meeting::open(ctx)?;
    from.give(device, &meeting.path)?;
    meeting.next()
}

/// Connects and sends a descriptor.
pub(super) fn give(socket: &Path, fd: impl AsFd) -> Result<()> {
    handover::send(handover::connect_to(socket)?, b"{}", &[fd.as_fd()])
}

/// Connects and receives a descriptor.
pub(super) fn receive(socket: &Path) -> Result<OwnedFd> {
    take(&handover::connect_to(socket)?)
}

fn take(socket: &OwnedFd) -> Result<OwnedFd> {
    let mut fds = handover::receive(socket)?.fds;
    ensure!(fds.len() == 1, "{} descriptors came, not one", fds.len());
    fds.pop().context("no descriptor")
}
