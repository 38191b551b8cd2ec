//! What is known of who calls, as far as it is decided from.

use std::fmt;

/// What a caller may do; each role may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Acts on reservations that are for its own identity.
    Holder,
    /// Reserves, attaches and releases for anybody.
    Orchestrator,
    /// Everything: kernel DMA, cordon, quarantine, force.
    Operator,
}

impl Role {
    /// The role of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "viewer" => Some(Self::Viewer),
            "holder" => Some(Self::Holder),
            "orchestrator" => Some(Self::Orchestrator),
            "operator" => Some(Self::Operator),
            _ => None,
        }
    }

    /// The name, as in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Holder => "holder",
            Self::Orchestrator => "orchestrator",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a call came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A unix socket: the peer's credentials are known.
    Unix,
    /// TCP: nobody is known.
    Tcp,
    /// TLS: the client's certificate was verified.
    Tls,
    /// TCP, with a session that a peer of a unix socket opened for a browser.
    Web,
    /// From within the daemon.
    Internal,
}
