//! Sockets that the service manager opened and passed on, and which listener each of them is.
//!
//! A socket's name says what is spoken over it, its address which listener of the configuration it
//! is: from there come the role and its rules. Owner and mode are the socket unit's, which may not
//! let in more than the configuration says.

use std::{
    fs,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use berth_uapi::{PassedFd, passed_fds};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketType, getsockname,
    sockopt::{socket_acceptconn, socket_domain, socket_type},
};

use super::BindError;
use crate::{
    config::{Endpoint, GRPC_NEEDS_TLS, Listener, Serve},
    fdstore::KeptFd,
};

/// A listening socket that was passed to this process.
#[derive(Debug)]
pub struct Passed {
    serve: Serve,
    at: Place,
    socket: OwnedFd,
}

/// Where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Place {
    fn is(&self, endpoint: &Endpoint) -> bool {
        match (self, endpoint) {
            (Self::Unix(at), Endpoint::Unix { path, .. }) => at == path,
            (Self::Tcp(at), Endpoint::Tcp { address, .. }) => at == address,
            _ => false,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// A socket that was passed can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("socket {name} of the service manager: {message}; {way_out}")]
pub struct PassedSocketError {
    name: String,
    message: String,
    way_out: String,
}

/// Takes the sockets that the service manager passed to this process, and the descriptors that it
/// kept of the process before; none where it passed none. To be called before anything else is opened.
///
/// # Errors
/// One has a name that isn't known, is of another type than is spoken over it, or doesn't listen.
pub fn passed() -> Result<(Vec<Passed>, Vec<KeptFd>), PassedSocketError> {
    let fds = passed_fds().map_err(|error| PassedSocketError {
        name: "(none)".to_owned(),
        message: error.to_string(),
        way_out: "let a socket unit pass them, or unset LISTEN_PID".to_owned(),
    })?;
    let (kept, sockets): (Vec<PassedFd>, Vec<PassedFd>) =
        fds.into_iter().partition(|passed| passed.name.as_deref().is_some_and(KeptFd::is_kept));
    let named = |PassedFd { name, fd }| Some(KeptFd { name: name?, fd });
    let sockets = sockets.into_iter().map(recognized).collect::<Result<_, _>>()?;
    Ok((sockets, kept.into_iter().filter_map(named).collect()))
}

/// What a descriptor is for, if it is fit for that.
fn recognized(passed: PassedFd) -> Result<Passed, PassedSocketError> {
    let name = passed.name.unwrap_or_default();
    let wrong = |message: &str, way_out: &str| PassedSocketError {
        name: format!("{name:?}"),
        message: message.to_owned(),
        way_out: way_out.to_owned(),
    };
    let Some(serve) = Serve::by_word(&name) else {
        let way_out = "write FileDescriptorName=grpc, http or handover into its unit";
        return Err(wrong("not a name that berthd knows", way_out));
    };
    let socket = passed.fd;
    let unknown = |_| wrong("not a socket", "pass what a socket unit listens at");
    let family = socket_domain(&socket).map_err(unknown)?;
    let kind = socket_type(&socket).map_err(unknown)?;
    let (wanted, directive) = match serve {
        Serve::Grpc | Serve::Http => (SocketType::STREAM, "ListenStream="),
        Serve::Handover => (SocketType::SEQPACKET, "ListenSequentialPacket="),
    };
    let way_out = format!("use {directive} in its unit");
    match (family, serve) {
        (AddressFamily::UNIX, _)
        // Without TLS, no listener of gRPC is there.
        | (AddressFamily::INET | AddressFamily::INET6, Serve::Http | Serve::Grpc) => {}
        (AddressFamily::INET | AddressFamily::INET6, Serve::Handover) => {
            return Err(wrong("descriptors travel over unix sockets only", "use a path"));
        }
        _ => return Err(wrong("neither a unix socket nor TCP", &way_out)),
    }
    if kind != wanted {
        let message =
            format!("{serve} is not spoken over a socket of this type", serve = serve.word());
        return Err(wrong(&message, &way_out));
    }
    if socket_acceptconn(&socket) != Ok(true) {
        return Err(wrong("it doesn't listen", "leave Accept=no in its unit"));
    }
    let address = getsockname(&socket).map_err(unknown)?;
    let at = place(address).ok_or_else(|| wrong("it has no path", "give it one in its unit"))?;
    Ok(Passed { serve, at, socket })
}

fn place(address: SocketAddrAny) -> Option<Place> {
    if let Ok(address) = SocketAddr::try_from(address.clone()) {
        return Some(Place::Tcp(address));
    }
    let path = SocketAddrUnix::try_from(address).ok()?.path()?.to_bytes().to_vec();
    Some(Place::Unix(PathBuf::from(std::ffi::OsString::from_vec(path))))
}

/// A listener, and its socket where one was passed.
pub(crate) type Assigned = (Listener, Option<OwnedFd>);

/// Gives each socket to its listener. Where any was passed, those that are there by default only
/// are left out unless they were.
///
/// # Errors
/// A socket is no listener's, or one listener has two; a unit lets in more than the configuration.
pub(crate) fn assign(
    listeners: &[Listener],
    passed: Vec<Passed>,
) -> Result<Vec<Assigned>, BindError> {
    let any = !passed.is_empty();
    let mut all: Vec<Assigned> =
        listeners.iter().map(|listener| (listener.clone(), None)).collect();
    for Passed { serve, at, socket } in passed {
        let known = all.iter_mut().find(|(one, _)| one.serve == serve && at.is(&one.endpoint));
        let Some((listener, place)) = known else {
            if let (Place::Tcp(_), Serve::Grpc) = (&at, serve) {
                let way_out = "add a [[listen]] with this address and tls, or use a path";
                return Err(BindError::at(at, GRPC_NEEDS_TLS, way_out));
            }
            let message = format!(
                "the service manager passed it as {}, but no listener is there",
                serve.word()
            );
            let way_out = "add a [[listen]] with this address, or change it in the socket unit";
            return Err(BindError::at(at, message, way_out));
        };
        if place.is_some() {
            let message = "the service manager passed it twice";
            return Err(BindError::at(at, message, "keep one of the socket units"));
        }
        if let Endpoint::Unix { path, mode, gid } = &listener.endpoint {
            no_wider(path, *mode, *gid)?;
        }
        *place = Some(socket);
    }
    all.retain(|(listener, socket)| {
        let kept = !any || listener.given || socket.is_some();
        if !kept {
            tracing::info!(at = %listener.endpoint, "not passed by the service manager: left out");
        }
        kept
    });
    Ok(all)
}

/// Whether a socket's file lets in no more than the configuration says. Who may write may connect.
fn no_wider(path: &Path, mode: u32, gid: Option<u32>) -> Result<(), BindError> {
    let wrong = |message: String, way_out| {
        Err(BindError::at(format!("unix:{}", path.display()), message, way_out))
    };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) => return wrong(error.to_string().to_lowercase(), "restart its socket unit"),
    };
    let has = found.mode() & 0o777;
    if has & 0o222 & !mode != 0 {
        let message = format!("its unit gives it mode {has:04o}, the configuration {mode:04o}");
        return wrong(message, "make SocketMode= of the unit and mode of the [[listen]] the same");
    }
    match gid {
        Some(gid) if gid != found.gid() => {
            let message =
                format!("its unit gives it group {}, the configuration {gid}", found.gid());
            wrong(message, "make SocketGroup= of the unit and group of the [[listen]] the same")
        }
        _ => Ok(()),
    }
}
