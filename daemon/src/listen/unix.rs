//! Unix sockets: owner and mode before the first connection, stale ones replaced, ours removed.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::{
    fs::{Gid, Mode},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

/// A listener can't be bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("listen at {at}: {message}; {way_out}")]
pub struct BindError {
    at: String,
    message: String,
    way_out: String,
}

impl BindError {
    fn new(path: &Path, message: impl ToString, way_out: &str) -> Self {
        Self::at(format!("unix:{}", path.display()), message, way_out)
    }

    /// About an address that was found, not asked for.
    pub(super) fn at(at: impl ToString, message: impl ToString, way_out: &str) -> Self {
        Self { at: at.to_string(), message: message.to_string(), way_out: way_out.to_owned() }
    }

    fn system(path: &Path, what: &str, errno: impl Into<io::Error>) -> Self {
        let message = format!("{what}: {}", errno.into().to_string().to_lowercase());
        Self::new(path, message, "name another path, or run as a user who may write there")
    }

    pub(super) fn tcp(address: SocketAddr, error: &io::Error) -> Self {
        let way_out = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::AFNOSUPPORT) => {
                "let a socket unit listen there: berthd's own unit lets it have unix sockets only"
            }
            _ => "end what listens there, or name another address with --listen-http",
        };
        Self::at(address, error.to_string().to_lowercase(), way_out)
    }
}

/// What kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A byte stream.
    Stream,
    /// Packets, for the hand-over of descriptors.
    Packets,
}

/// The file of a socket that we bound. It is removed on drop while it is still ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

/// Device, inode and birth: an inode's number alone is soon used again.
type Identity = (u64, u64, Option<SystemTime>);

fn identity(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino(), metadata.created().ok())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|now| identity(&now) == self.identity);
        if ours {
            // A file that can't be removed is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Makes the directory that a socket lies in.
///
/// # Errors
/// What is in the way.
pub fn make_directory(path: &Path) -> Result<(), BindError> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.map_err(|error| BindError::system(path, "create the directory", error))
}

/// Binds and listens. Mode and group are set before `listen`, so that nobody gets in before.
///
/// # Errors
/// What is in the way: a living listener, a file of another kind, a directory that can't be
/// written.
pub fn bind(
    path: &Path,
    mode: u32,
    gid: Option<u32>,
    kind: Kind,
) -> Result<(OwnedFd, SocketFile), BindError> {
    make_directory(path)?;
    remove_stale(path, kind)?;
    let address =
        SocketAddrUnix::new(path).map_err(|errno| BindError::system(path, "the path", errno))?;
    let socket_type = match kind {
        Kind::Stream => SocketType::STREAM,
        Kind::Packets => SocketType::SEQPACKET,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, socket_type, flags, None)
        .map_err(|errno| BindError::system(path, "socket", errno))?;
    rustix::net::bind(&socket, &address).map_err(|errno| BindError::system(path, "bind", errno))?;
    let metadata =
        fs::symlink_metadata(path).map_err(|error| BindError::system(path, "stat", error))?;
    let file = SocketFile { path: path.to_owned(), identity: identity(&metadata) };
    if let Some(gid) = gid {
        rustix::fs::chown(path, None, Some(Gid::from_raw(gid)))
            .map_err(|errno| BindError::system(path, "chown", errno))?;
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(mode))
        .map_err(|errno| BindError::system(path, "chmod", errno))?;
    rustix::net::listen(&socket, BACKLOG)
        .map_err(|errno| BindError::system(path, "listen", errno))?;
    Ok((socket, file))
}

/// The stream socket as tokio wants it.
pub(super) fn into_tokio(
    socket: OwnedFd,
    path: &Path,
) -> Result<tokio::net::UnixListener, BindError> {
    tokio::net::UnixListener::from_std(socket.into())
        .map_err(|error| BindError::system(path, "register", error))
}

/// Removes a socket that nobody listens at.
fn remove_stale(path: &Path, kind: Kind) -> Result<(), BindError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BindError::system(path, "stat", error)),
    };
    if !metadata.file_type().is_socket() {
        let way_out = "remove the file or name another path";
        return Err(BindError::new(path, "there is a file that is not a socket", way_out));
    }
    if is_alive(path, kind) {
        let way_out = "stop the berthd that runs, or name another path";
        return Err(BindError::new(path, "another process listens there", way_out));
    }
    fs::remove_file(path).map_err(|error| BindError::system(path, "remove", error))
}

/// True unless the kernel says that nobody listens.
fn is_alive(path: &Path, kind: Kind) -> bool {
    let refused = match kind {
        Kind::Stream => UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused),
        Kind::Packets => {
            let Ok(address) = SocketAddrUnix::new(path) else { return true };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
            socket.is_ok_and(|socket| {
                rustix::net::connect(&socket, &address) == Err(rustix::io::Errno::CONNREFUSED)
            })
        }
    };
    !refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/s.sock");
        let (socket, file) = bind(&path, 0o600, None, Kind::Stream).expect("bound");
        assert_eq!(fs::metadata(&path).expect("it exists").mode() & 0o777, 0o600);
        let error = bind(&path, 0o600, None, Kind::Stream).expect_err("somebody listens");
        assert!(error.to_string().contains("another process listens"), "{error}");
        drop(socket);
        let (_socket, newer) = bind(&path, 0o660, None, Kind::Stream).expect("it was stale");
        drop(file);
        assert!(path.exists(), "the older owner leaves the newer one's file");
        drop(newer);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_is_not_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, "mine").expect("written");
        for kind in [Kind::Stream, Kind::Packets] {
            let error = bind(&path, 0o600, None, kind).expect_err("not a socket");
            assert!(error.to_string().contains("not a socket"), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).expect("still there"), "mine");
    }

    #[test]
    fn packets_have_the_same_rules() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("h.sock");
        let (socket, _file) = bind(&path, 0o666, None, Kind::Packets).expect("bound");
        bind(&path, 0o666, None, Kind::Packets).expect_err("somebody listens");
        drop(socket);
        bind(&path, 0o666, None, Kind::Packets).expect("it was stale");
    }
}
