//! Who calls, and what they may.

use std::sync::Arc;

use super::{Payer, Role, Transport};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// `uid:0`; the URI of a certificate; `anonymous` on TCP; `berthd` from within.
    pub identity: String,
    /// The peer's uid.
    pub uid: Option<u32>,
    /// The peer's pid.
    pub pid: Option<i32>,
    /// From the listener, narrowed by its rules for the uid.
    pub role: Role,
    /// How the call came in.
    pub transport: Transport,
    /// The peer's gids, where something asks for them.
    pub gids: Arc<[u32]>,
    /// The label that the caller is confined to.
    pub tenant: Option<Arc<str>>,
    /// By which door; `None` where there is none.
    pub origin: Option<Arc<Origin>>,
}

/// Where a caller comes from, and on what ground it has its role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The listener's address.
    pub listener: String,
    /// The peer's address, where it has one.
    pub peer: Option<String>,
    /// The rule that gave the role.
    pub rule: String,
}

impl Caller {
    /// The peer of a unix socket.
    #[must_use]
    pub fn unix(uid: u32, pid: Option<i32>, role: Role) -> Self {
        Self { uid: Some(uid), pid, ..Self::new(format!("uid:{uid}"), role, Transport::Unix) }
    }

    /// Somebody on TCP.
    #[must_use]
    pub fn tcp(role: Role) -> Self {
        Self::new("anonymous".to_owned(), role, Transport::Tcp)
    }

    /// The owner of a client certificate.
    #[must_use]
    pub fn certified(uri: String, role: Role) -> Self {
        Self::new(uri, role, Transport::Tls)
    }

    /// The same, by a door.
    #[must_use]
    pub fn through(self, origin: Origin) -> Self {
        Self { origin: Some(Arc::new(origin)), ..self }
    }

    /// The daemon itself.
    #[must_use]
    pub fn internal() -> Self {
        Self::new("berthd".to_owned(), Role::Operator, Transport::Internal)
    }

    fn new(identity: String, role: Role, transport: Transport) -> Self {
        Self {
            identity,
            uid: None,
            pid: None,
            role,
            transport,
            gids: Arc::default(),
            tenant: None,
            origin: None,
        }
    }

    /// The same, of some groups.
    #[must_use]
    pub fn in_groups(self, gids: &[u32]) -> Self {
        Self { gids: gids.into(), ..self }
    }

    /// The same, confined to a label.
    #[must_use]
    pub fn of_tenant(self, label: Option<&str>) -> Self {
        Self { tenant: label.map(Arc::from), ..self }
    }

    /// Whose quotas count for what it asks.
    #[must_use]
    pub fn payer(&self) -> Payer {
        Payer {
            identity: self.identity.clone(),
            gids: self.gids.to_vec(),
            tenant: self.tenant.as_deref().map(str::to_owned),
        }
    }
}
