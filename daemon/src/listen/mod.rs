//! Listeners: unix sockets with known peers, TLS with certificates, TCP for reading.
//!
//! A listener decides who a caller is and what they may be, once per connection. Everything
//! behind it sees an [`Admission`] in the request's extensions.

mod connection;
mod gather;
mod guard;
mod meters;
mod passed;
mod pieces;
mod preface;
mod seats;
mod tls;
mod unix;

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, response::Response};
use http::{Method, Uri};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    connection::{Door, Protocol},
    guard::Guard,
    tls::{TlsDoor, TlsError},
};
pub use self::{
    meters::{Excess, Kind as CallKind, Meter, Meters},
    passed::{Passed, PassedSocketError, passed},
    seats::{Seat, Seats, Taker},
    unix::{BindError, Kind, SocketFile, bind as bind_unix, make_directory},
};
pub(crate) use self::{
    passed::assign,
    tls::{TlsPart, check as check_tls},
};
use crate::{
    audit,
    config::{Access, Endpoint, Limits, Listener, Rule, Serve, Timeouts, Tls},
    model::{ApiError, Caller, Live, Origin, PeerId},
    rest::Metrics,
    websession::WebSessions,
};

/// Who a connection is, or why it is nobody.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Result<Caller, ApiError>>);

impl Admission {
    /// The peer of a unix socket, by the rules of the listener at `at`.
    #[must_use]
    pub fn unix(access: &Access, at: &str, peer: &UnixPeer) -> Self {
        let UnixPeer { uid, pid, gids } = peer;
        let (role, rule) = access.grant(PeerId::Unix { uid: *uid, gids });
        let origin = Origin { listener: at.to_owned(), peer: None, rule: ground(rule) };
        Self(Arc::new(match role {
            Some(role) => Ok(Caller::unix(*uid, *pid, role)
                .in_groups(gids)
                .of_tenant(access.tenant(rule))
                .through(origin)),
            None => Err(ApiError::permission(
                format!("uid:{uid}"),
                format!("uid {uid} may not use this listener ({})", origin.rule),
            )),
        }))
    }

    /// Somebody on TCP.
    #[must_use]
    pub fn tcp(access: &Access, at: &str, peer: SocketAddr) -> Self {
        let (role, rule) = access.grant(PeerId::Nobody);
        let peer = Some(peer.to_string());
        let origin = Origin { listener: at.to_owned(), peer, rule: ground(rule) };
        Self(Arc::new(match role {
            Some(role) => Ok(Caller::tcp(role).of_tenant(access.tenant(rule)).through(origin)),
            None => Err(ApiError::permission("anonymous", "nobody may use this listener")),
        }))
    }

    /// The owner of a client certificate that was verified, or why it names nobody.
    #[must_use]
    pub fn certified(
        access: &Access,
        at: &str,
        peer: SocketAddr,
        uri: Result<String, &'static str>,
    ) -> Self {
        Self(Arc::new(uri.map_err(|why| ApiError::permission("certificate", why)).and_then(
            |uri| {
                let (role, rule) = access.grant(PeerId::Uri(&uri));
                let peer = Some(peer.to_string());
                let origin = Origin { listener: at.to_owned(), peer, rule: ground(rule) };
                match role {
                    Some(role) => Ok(Caller::certified(uri, role)
                        .of_tenant(access.tenant(rule))
                        .through(origin)),
                    None => {
                        let text = format!("{uri} may not use this listener ({})", origin.rule);
                        Err(ApiError::permission(uri, text))
                    }
                }
            },
        )))
    }

    /// Somebody who was let in before.
    #[must_use]
    pub fn of(caller: Caller) -> Self {
        Self(Arc::new(Ok(caller)))
    }

    /// Whether both give the same rights.
    #[must_use]
    pub fn has_the_rights_of(&self, other: &Self) -> bool {
        match (&*self.0, &*other.0) {
            (Ok(one), Ok(two)) => (one.role, &one.tenant) == (two.role, &two.tenant),
            (Err(_), Err(_)) => true,
            _ => false,
        }
    }

    /// The caller.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when the listener's rules shut the peer out.
    pub fn caller(&self) -> Result<&Caller, ApiError> {
        self.0.as_ref().as_ref().map_err(Clone::clone)
    }
}

/// By what a role is given.
pub(crate) fn ground(rule: Option<&Rule>) -> String {
    rule.map_or_else(|| "no rule: others".to_owned(), |rule| format!("rule {}", rule.who))
}

/// Who the kernel says is at the other end of a unix socket.
#[derive(Debug, Clone)]
pub struct UnixPeer {
    /// Its uid when it connected.
    pub uid: u32,
    /// Its pid.
    pub pid: Option<i32>,
    /// Its gid and supplementary groups then; the latter are empty where no rule asks for them.
    pub gids: Vec<u32>,
}

impl UnixPeer {
    fn of(stream: &tokio::net::UnixStream, with_groups: bool) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let mut gids = vec![credentials.gid()];
        if with_groups {
            gids.extend(berth_uapi::peer_groups(stream)?);
        }
        Ok(Self { uid: credentials.uid(), pid: credentials.pid(), gids })
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
    pub limits: Live<Limits>,
    /// How long things may take.
    pub timeouts: Live<Timeouts>,
    /// How often each may call.
    pub meters: Arc<Meters>,
    /// Sessions of browsers.
    pub web: Arc<WebSessions>,
    /// Who is connected where.
    pub doors: Arc<Doors>,
    /// Told when the listeners' rules changed.
    pub rules: watch::Sender<()>,
    /// Whether something beside the listeners' rules is about groups.
    pub asks_for_groups: Live<bool>,
    /// Cancelled when the daemon stops.
    pub stopping: CancellationToken,
    /// Connections under way.
    pub connections: TaskTracker,
    /// Counts what HTTP answers.
    pub metrics: Arc<Metrics>,
}

/// The places at all listeners, for those who look.
#[derive(Debug, Default)]
pub struct Doors(Mutex<Vec<(Serve, String, Arc<Seats>)>>);

impl Doors {
    /// The places of a listener that begins.
    pub fn seats(&self, serve: Serve, at: &str) -> Arc<Seats> {
        let seats = Arc::new(Seats::default());
        let mut doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        doors.push((serve, at.to_owned(), Arc::clone(&seats)));
        seats
    }

    /// All of them: what is spoken, where, and the places.
    pub fn all(&self) -> Vec<(Serve, String, Arc<Seats>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A listener that is bound and not yet served.
#[derive(Debug)]
pub struct Bound {
    socket: Socket,
    serve: Serve,
    access: Live<Access>,
    at: String,
    passed: bool,
}

#[derive(Debug)]
enum Socket {
    /// The file is ours to remove, unless the socket was passed to us.
    Unix(tokio::net::UnixListener, Option<SocketFile>),
    Tcp(TcpListener, Inside),
}

/// What is spoken on TCP: HTTP for reading, on names that are known, or TLS.
#[derive(Debug, Clone)]
enum Inside {
    Plain(Vec<String>),
    Tls(Arc<TlsDoor>),
}

impl Inside {
    /// The address, where it is on loopback and without TLS.
    fn page_at(&self, listener: &TcpListener) -> Option<SocketAddr> {
        let address = listener.local_addr().ok().filter(|address| address.ip().is_loopback());
        address.filter(|_| matches!(self, Self::Plain(_)))
    }

    fn of(listener: &Listener, hosts: &[String], tls: Option<&Tls>) -> Result<Self, BindError> {
        let unfit =
            |TlsError { message, way_out, .. }| BindError::at(&listener.endpoint, message, way_out);
        Ok(match tls {
            None => Self::Plain(hosts.to_vec()),
            Some(files) => {
                Self::Tls(Arc::new(TlsDoor::open(files, listener.serve).map_err(unfit)?))
            }
        })
    }
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
            Endpoint::Tcp { address, hosts, tls } => {
                let inside = Inside::of(listener, hosts, tls.as_ref())?;
                let socket = TcpListener::bind(address)
                    .await
                    .map_err(|error| BindError::tcp(*address, &error))?;
                Socket::Tcp(socket, inside)
            }
        };
        let (serve, access) = (listener.serve, Live::new(listener.access.clone()));
        let at = listener.endpoint.to_string();
        Ok(Self { socket, serve, access, at, passed: false })
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
            Endpoint::Tcp { hosts, tls, .. } => {
                let inside = Inside::of(listener, hosts, tls.as_ref())?;
                let socket = TcpListener::from_std(socket.into()).map_err(broken)?;
                Socket::Tcp(socket, inside)
            }
        };
        let (serve, access) = (listener.serve, Live::new(listener.access.clone()));
        let at = listener.endpoint.to_string();
        Ok(Self { socket, serve, access, at, passed: true })
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

    /// Whether clients have to show a certificate.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(&self.socket, Socket::Tcp(_, Inside::Tls(_)))
    }

    /// Where it really listens: the port is known now.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener, _) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    /// Where browsers on this machine find the page, and may sign in.
    #[must_use]
    pub fn page_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener, inside) if self.serve == Serve::Http => inside.page_at(listener),
            Socket::Tcp(..) | Socket::Unix(..) => None,
        }
    }

    /// Where it is, and its rules, which may change.
    #[must_use]
    pub fn rules(&self) -> (Serve, String, Live<Access>) {
        (self.serve, self.at.clone(), self.access.clone())
    }

    /// Serves until the daemon stops. The file of a socket that we bound goes with it.
    pub async fn serve(self, behind: Behind, shared: Shared) {
        let protocol = match self.serve {
            Serve::Grpc => Protocol::Http2,
            Serve::Http | Serve::Handover => Protocol::Http1,
        };
        let seats = shared.doors.seats(self.serve, &self.at);
        let named = Named { access: self.access, at: self.at.into() };
        let door = Door { protocol, behind, guard: None, shared };
        match self.socket {
            Socket::Unix(listener, _file) => serve_unix(listener, named, door, seats).await,
            Socket::Tcp(listener, inside) => serve_tcp(listener, inside, named, door, seats).await,
        }
    }
}

/// A listener's rules, and its name.
#[derive(Debug, Clone)]
struct Named {
    access: Live<Access>,
    at: Arc<str>,
}

async fn serve_unix(
    listener: tokio::net::UnixListener,
    Named { access, at }: Named,
    door: Door,
    seats: Arc<Seats>,
) {
    let shared = door.shared.clone();
    while let Some((mut seat, (stream, _))) = accept(&shared, &seats, || listener.accept()).await {
        let with_groups = access.get().asks_for_groups() || **shared.asks_for_groups.get();
        // Without credentials nobody is known, and nothing is served.
        let Ok(peer) = UnixPeer::of(&stream, with_groups) else { continue };
        let most = shared.limits.get().connections_per_uid;
        if !seat.is_for(Taker::Uid(peer.uid), most) {
            audit::too_many_connections(&at, &format!("uid:{}", peer.uid), most);
            continue;
        }
        let (named_at, pid) = (Arc::clone(&at), peer.pid);
        let (at, access) = (Arc::clone(&at), access.clone());
        let admit = move || Admission::unix(&access.get(), &at, &peer);
        if let Err(error) = admit().caller() {
            audit::shut_out(&named_at, None, pid, &error);
        }
        shared.connections.spawn(door.clone().serve(stream, admit, seat));
    }
}

async fn serve_tcp(
    listener: TcpListener,
    inside: Inside,
    named: Named,
    mut door: Door,
    seats: Arc<Seats>,
) {
    let hosts = match &inside {
        Inside::Plain(hosts) => Some(hosts.clone()),
        Inside::Tls(_) => None,
    };
    let sessions = inside.page_at(&listener).map(|_| Arc::clone(&door.shared.web));
    door.guard = Some(Arc::new(Guard::new(hosts, sessions)));
    let shared = door.shared.clone();
    while let Some((mut seat, (stream, peer))) = accept(&shared, &seats, || listener.accept()).await
    {
        let most = shared.limits.get().connections_per_uid;
        if !seat.is_for(Taker::Address(peer.ip()), most) {
            audit::too_many_connections(&named.at, &peer.ip().to_string(), most);
            continue;
        }
        // Small answers should leave at once; one that can't is served all the same.
        let _ = stream.set_nodelay(true);
        let (door, Named { access, at }) = (door.clone(), named.clone());
        let Inside::Tls(tls) = &inside else {
            if let Err(error) = Admission::tcp(&access.get(), &at, peer).caller() {
                audit::shut_out(&at, Some(peer), None, &error);
            }
            let admit = move || Admission::tcp(&access.get(), &at, peer);
            shared.connections.spawn(door.serve(stream, admit, seat));
            continue;
        };
        let tls = Arc::clone(tls);
        shared.connections.spawn(async move {
            let patience = Duration::from_millis(door.shared.timeouts.get().handshake_ms);
            match tls.handshake(stream, patience).await {
                Ok((stream, uri)) => {
                    let who = Admission::certified(&access.get(), &at, peer, uri.clone());
                    if let Err(error) = who.caller() {
                        audit::shut_out(&at, Some(peer), None, &error);
                    }
                    let admit = move || Admission::certified(&access.get(), &at, peer, uri.clone());
                    door.serve(stream, admit, seat).await;
                }
                Err(error) => audit::handshake_failed(&at, peer, &error),
            }
        });
    }
}

/// The next connection, once there is room for one. `None` when the daemon stops.
async fn accept<T, F: Future<Output = io::Result<T>>>(
    shared: &Shared,
    seats: &Arc<Seats>,
    mut accept: impl FnMut() -> F,
) -> Option<(Seat, T)> {
    let next = async {
        seats.room(|| shared.limits.get().connections).await;
        loop {
            match accept().await {
                Ok(connection) => return (seats.take(), connection),
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
        next = next => Some(next),
    }
}
