//! A client of the hand-over socket: blocking, no runtime.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
        socket_with, sockopt,
    },
};

use crate::{
    packet::{ANSWER, Received, receive, send},
    refusal::Refusal,
    wire::{FdInfo, FdKind, Iova, NodeInfo, Reply, Request, VfToken},
};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket.
    #[error("{op} the hand-over socket: {errno}")]
    Socket {
        /// `connect to`, `send to`, `receive from`.
        op: &'static str,
        /// The errno.
        errno: Errno,
    },
    /// The daemon closed the connection.
    #[error("berthd closed the hand-over connection")]
    Closed,
    /// The daemon's answer makes no sense.
    #[error("berthd's answer can't be read: {0}")]
    Garbled(String),
    /// The daemon refused.
    #[error(transparent)]
    Refused(Box<Refusal>),
}

/// What a fetch gave.
#[derive(Debug)]
pub struct Fetched {
    /// What was said.
    pub reply: Reply,
    /// The descriptors, each with what it is.
    pub fds: Vec<(FdInfo, OwnedFd)>,
}

impl Fetched {
    /// Takes the descriptor of a device out: a bound one's, or a cdev that is still to be bound, as
    /// [`FdInfo::kind`] says.
    pub fn take_device(&mut self, address: &str) -> Option<(FdInfo, OwnedFd)> {
        let at = self.fds.iter().position(|(info, _)| info.address.as_deref() == Some(address))?;
        Some(self.fds.swap_remove(at))
    }

    /// Takes the context's descriptor out: an iommufd or a container.
    pub fn take_context(&mut self) -> Option<(FdInfo, OwnedFd)> {
        let context = |kind| matches!(kind, FdKind::Iommufd | FdKind::Container);
        let at = self.fds.iter().position(|(info, _)| context(info.kind))?;
        Some(self.fds.swap_remove(at))
    }

    /// The nodes that the holder opens by itself: none but with delivery `node`.
    #[must_use]
    pub fn nodes(&self) -> &[NodeInfo] {
        self.reply.nodes.as_deref().unwrap_or_default()
    }

    /// What has to be shown to open or bind a device; `None` where the kernel asks for nothing.
    #[must_use]
    pub fn vf_token(&self, address: &str) -> Option<&VfToken> {
        let tokens = self.reply.vf_tokens.as_deref().unwrap_or_default();
        tokens.iter().find(|token| token.address == address).map(|token| &token.vf_token)
    }
}

/// A connection to the hand-over socket.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
}

fn failed(op: &'static str) -> impl Fn(Errno) -> ClientError {
    move |errno| ClientError::Socket { op, errno }
}

/// Whether the other end closed the connection: what it said before is there still.
fn is_hung_up(errno: Errno) -> bool {
    matches!(errno, Errno::PIPE | Errno::CONNRESET)
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Socket`] when nobody listens there or the path isn't open to this user.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        let op = failed("connect to");
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(&op)?;
        connect(&socket, &SocketAddrUnix::new(path.as_ref()).map_err(&op)?).map_err(&op)?;
        let client = Self { socket };
        client.wait_at_most(PATIENCE)?;
        Ok(client)
    }

    /// Waits this long for every answer from now on, not the 60 seconds of a new connection. What
    /// passes it is EAGAIN; the daemon takes back what it could not send.
    ///
    /// # Errors
    /// [`ClientError::Socket`] for no time at all.
    pub fn wait_at_most(&self, limit: Duration) -> Result<(), ClientError> {
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(limit))
            .map_err(failed("set a time limit for"))
    }

    /// One request and its answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the daemon says no; the others when it wasn't heard.
    pub fn ask(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let bytes =
            serde_json::to_vec(request).map_err(|error| ClientError::Garbled(error.to_string()))?;
        // There is room, but for one who asks on and on and waits for no answer.
        let sent = send(&self.socket, &bytes, fds, SendFlags::DONTWAIT);
        if let Err(errno) = sent
            && !is_hung_up(errno)
        {
            return Err(failed("send to")(errno));
        }
        // Who is not served is told so before the connection is closed.
        let received = match receive(&self.socket, RecvFlags::empty(), ANSWER) {
            Err(errno) if is_hung_up(errno) => receive(&self.socket, RecvFlags::empty(), ANSWER),
            received => received,
        };
        match received.map_err(failed("receive from"))? {
            Received::End => Err(ClientError::Closed),
            Received::TooMuch(what) => Err(ClientError::Garbled(what.to_owned())),
            Received::Packet(bytes, fds) => {
                let reply: Reply = serde_json::from_slice(&bytes)
                    .map_err(|error| ClientError::Garbled(error.to_string()))?;
                if reply.ok { Ok((reply, fds)) } else { Err(refused(reply)) }
            }
        }
    }

    /// Fetches a reservation's descriptors, or has its nodes opened; this process becomes its holder.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn fetch(&self, reservation: &str, epoch: u64) -> Result<Fetched, ClientError> {
        self.fetch_with(reservation, epoch, &[])
    }

    /// Fetches for another process, which becomes the holder: one of the user that the reservation
    /// is for, named by its pidfd. Whoever passes the descriptors on closes its own.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn fetch_for(
        &self,
        reservation: &str,
        epoch: u64,
        holder: impl AsFd,
    ) -> Result<Fetched, ClientError> {
        self.fetch_with(reservation, epoch, &[holder.as_fd()])
    }

    fn fetch_with(
        &self,
        reservation: &str,
        epoch: u64,
        holder: &[BorrowedFd<'_>],
    ) -> Result<Fetched, ClientError> {
        let request = Request::Fetch { reservation: reservation.to_owned(), epoch };
        let (reply, fds) = self.ask(&request, holder)?;
        let infos = reply.fds.clone().unwrap_or_default();
        if infos.len() != fds.len() {
            return Err(ClientError::Garbled(format!(
                "{} descriptors were announced and {} came",
                infos.len(),
                fds.len()
            )));
        }
        Ok(Fetched { reply, fds: infos.into_iter().zip(fds).collect() })
    }

    /// Registers a sealed memfd, whole or in part, with the reservation's domain.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn register(
        &self,
        reservation: &str,
        memfd: impl AsFd,
        offset: u64,
        length_bytes: u64,
        iova: Option<u64>,
    ) -> Result<u64, ClientError> {
        let request = Request::Register {
            reservation: reservation.to_owned(),
            iova: iova.map(Iova),
            length_bytes,
            offset,
            write: true,
            read: true,
        };
        let (reply, _) = self.ask(&request, &[memfd.as_fd()])?;
        let missing = || ClientError::Garbled("an answer to register has no iova".to_owned());
        reply.iova.map(|iova| iova.0).ok_or_else(missing)
    }

    /// Removes a registration.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn unregister(
        &self,
        reservation: &str,
        iova: u64,
        length_bytes: u64,
    ) -> Result<u64, ClientError> {
        let request = Request::Unregister {
            reservation: reservation.to_owned(),
            iova: Iova(iova),
            length_bytes,
        };
        let (reply, _) = self.ask(&request, &[])?;
        Ok(reply.unmapped_bytes.unwrap_or_default())
    }
}

fn refused(reply: Reply) -> ClientError {
    match reply.refusal {
        Some(refusal) => ClientError::Refused(refusal),
        None => ClientError::Garbled("a refusal without a reason".to_owned()),
    }
}
