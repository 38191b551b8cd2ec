//! Listeners: unix sockets with known peers, TCP for reading.
//!
//! A listener decides who a caller is and what they may be, once per connection. Everything
//! behind it sees an [`Admission`] in the request's extensions.

mod connection;
mod guard;
mod passed;
mod unix;

use std::{fmt, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use axum::{Router, response::Response};
use http::{Method, Uri};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::passed::assign;
use self::{
    connection::{Door, Protocol},
    guard::Guard,
};
pub use self::{
    passed::{Passed, PassedSocketError, passed},
    unix::{BindError, Kind, SocketFile, bind as bind_unix},
};
use crate::{
    config::{Access, Endpoint, Limits, Listener, Serve, Timeouts},
    model::{ApiError, Caller},
    rest::Metrics,
};

/// Who a connection is, or why it is nobody.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Result<Caller, ApiError>>);

impl Admission {
    /// The peer of a unix socket, by the listener's rules.
    #[must_use]
    pub fn unix(access: &Access, uid: u32, pid: Option<i32>) -> Self {
        Self(Arc::new(match access.role_of(Some(uid)) {
            Some(role) => Ok(Caller::unix(uid, pid, role)),
            None => Err(ApiError::permission(
                format!("uid:{uid}"),
                format!("uid {uid} may not use this listener"),
            )),
        }))
    }

    /// Somebody on TCP.
    #[must_use]
    pub fn tcp(access: &Access) -> Self {
        Self(Arc::new(match access.role_of(None) {
            Some(role) => Ok(Caller::tcp(role)),
            None => Err(ApiError::permission("anonymous", "nobody may use this listener")),
        }))
    }

    /// The caller.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when the listener's rules shut the peer out.
    pub fn caller(&self) -> Result<&Caller, ApiError> {
        self.0.as_ref().as_ref().map_err(Clone::clone)
    }
}

/// Answers what needs no work, or nothing: it is asked before the router.
pub type AtOnce = Arc<dyn Fn(&Admission, &Method, &Uri) -> Option<Response> + Send + Sync>;

/// What stands behind a listener.
#[derive(Clone)]
pub struct Behind {
    /// Answers every request.
    pub router: Router,
    /// Answers some before it.
    pub at_once: Option<AtOnce>,
}

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behind").field("router", &self.router).finish_non_exhaustive()
    }
}

impl From<Router> for Behind {
    fn from(router: Router) -> Self {
        Self { router, at_once: None }
    }
}

/// What all listeners share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// How much is let in.
    pub limits: Limits,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Cancelled when the daemon stops.
    pub stopping: CancellationToken,
    /// Connections under way.
    pub connections: TaskTracker,
    /// Counts what HTTP answers.
    pub metrics: Arc<Metrics>,
}

/// A listener that is bound and not yet served.
#[derive(Debug)]
pub struct Bound {
    socket: Socket,
    serve: Serve,
    access: Access,
    passed: bool,
}

#[derive(Debug)]
enum Socket {
    /// The file is ours to remove, unless the socket was passed to us.
    Unix(tokio::net::UnixListener, Option<SocketFile>),
    Tcp(TcpListener, Vec<String>),
}

impl Bound {
    /// Binds a listener of gRPC or HTTP.
    ///
    /// # Errors
    /// What is in the way, and the way out.
    pub async fn bind(listener: &Listener) -> Result<Self, BindError> {
        let socket = match &listener.endpoint {
            Endpoint::Unix { path, mode, gid } => {
                let (socket, file) = unix::bind(path, *mode, *gid, Kind::Stream)?;
                Socket::Unix(unix::into_tokio(socket, path)?, Some(file))
            }
            Endpoint::Tcp { address, hosts } => {
                let socket = TcpListener::bind(address)
                    .await
                    .map_err(|error| BindError::tcp(*address, &error))?;
                Socket::Tcp(socket, hosts.clone())
            }
        };
        let (serve, access) = (listener.serve, listener.access.clone());
        Ok(Self { socket, serve, access, passed: false })
    }

    /// Takes over a socket of gRPC or HTTP that listens already.
    ///
    /// # Errors
    /// The runtime can't have it.
    pub fn adopt(listener: &Listener, socket: OwnedFd) -> Result<Self, BindError> {
        let broken = |error: io::Error| {
            BindError::at(&listener.endpoint, error.to_string().to_lowercase(), "restart its unit")
        };
        rustix::io::ioctl_fionbio(&socket, true).map_err(|errno| broken(errno.into()))?;
        let socket = match &listener.endpoint {
            Endpoint::Unix { path, .. } => Socket::Unix(unix::into_tokio(socket, path)?, None),
            Endpoint::Tcp { hosts, .. } => {
                let socket = TcpListener::from_std(socket.into()).map_err(broken)?;
                Socket::Tcp(socket, hosts.clone())
            }
        };
        let (serve, access) = (listener.serve, listener.access.clone());
        Ok(Self { socket, serve, access, passed: true })
    }

    /// What is spoken over it.
    #[must_use]
    pub fn speaks(&self) -> Serve {
        self.serve
    }

    /// Whether it listened before there was this process.
    #[must_use]
    pub fn was_passed(&self) -> bool {
        self.passed
    }

    /// Where it really listens: the port is known now.
    #[must_use]
    pub fn tcp_address(&self) -> Option<std::net::SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener, _) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    /// Serves until the daemon stops. The file of a socket that we bound goes with it.
    pub async fn serve(self, behind: Behind, shared: Shared) {
        let protocol = match self.serve {
            Serve::Grpc => Protocol::Http2,
            Serve::Http | Serve::Handover => Protocol::Http1,
        };
        let permits = Arc::new(Semaphore::new(shared.limits.connections));
        let mut door = Door { protocol, behind, guard: None, shared: shared.clone() };
        match self.socket {
            Socket::Unix(listener, _file) => {
                while let Some((permit, (stream, _))) =
                    accept(&shared, &permits, || listener.accept()).await
                {
                    // Without credentials nobody is known, and nothing is served.
                    let Ok(peer) = stream.peer_cred() else { continue };
                    let admission = Admission::unix(&self.access, peer.uid(), peer.pid());
                    shared.connections.spawn(door.clone().serve(stream, admission, permit));
                }
            }
            Socket::Tcp(listener, hosts) => {
                door.guard = Some(Arc::new(Guard::new(hosts)));
                while let Some((permit, (stream, _))) =
                    accept(&shared, &permits, || listener.accept()).await
                {
                    // Small answers should leave at once; one that can't is served all the same.
                    let _ = stream.set_nodelay(true);
                    let admission = Admission::tcp(&self.access);
                    shared.connections.spawn(door.clone().serve(stream, admission, permit));
                }
            }
        }
    }
}

/// The next connection, once there is room for one. `None` when the daemon stops.
async fn accept<T, F: Future<Output = io::Result<T>>>(
    shared: &Shared,
    permits: &Arc<Semaphore>,
    mut accept: impl FnMut() -> F,
) -> Option<(tokio::sync::OwnedSemaphorePermit, T)> {
    let next = async {
        let permit = Arc::clone(permits).acquire_owned().await.ok()?;
        loop {
            match accept().await {
                Ok(connection) => return Some((permit, connection)),
                Err(error) => {
                    // Out of descriptors, or the peer is gone already: neither ends the listener.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shared.stopping.cancelled() => None,
        next = next => next,
    }
}
