//! Where the metrics are served.

use std::{fmt, net::SocketAddr, path::PathBuf};

/// A loopback address, or a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// `127.0.0.1:9711`, `[::1]:9711`.
    Tcp(SocketAddr),
    /// `unix:/run/berth/kubelet-plugin.sock`.
    Unix(PathBuf),
}

impl Door {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err("the socket's path is not absolute")
            };
        }
        let address: SocketAddr =
            text.parse().map_err(|_| "it is neither an address with a port nor unix:/PATH")?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err("others could read it there: it is not a loopback address")
        }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
