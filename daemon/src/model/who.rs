//! Identities, as rules name them.

use std::fmt;

/// An identity, or many of them, that a rule names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// The peer of a unix socket by its uid.
    Uid(u32),
    /// The peer of a unix socket by its gid, or one of its supplementary groups.
    Gid(u32),
    /// A client certificate by its URI.
    Uri(String),
    /// Client certificates by how their URI begins: it goes on with at least one more character.
    UriPrefix(String),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Gid(gid) => write!(f, "gid {gid}"),
            Self::Uri(uri) => write!(f, "uri {uri}"),
            Self::UriPrefix(prefix) => write!(f, "uri {prefix}*"),
        }
    }
}

/// Who is at the other end of a connection, as far as it is proven.
#[derive(Debug, Clone, Copy)]
pub enum PeerId<'a> {
    /// The kernel's word about the peer of a unix socket.
    Unix {
        /// Its uid when it connected.
        uid: u32,
        /// Its gid and supplementary groups then.
        gids: &'a [u32],
    },
    /// The URI of a client certificate that was verified.
    Uri(&'a str),
    /// Nothing is known.
    Nobody,
}

impl<'a> PeerId<'a> {
    /// By the name that an identity has on record: `uid:N`, or the URI of a certificate.
    #[must_use]
    pub fn recorded(identity: &'a str, gids: &'a [u32]) -> Self {
        match identity.strip_prefix("uid:").map(str::parse) {
            Some(Ok(uid)) => Self::Unix { uid, gids },
            _ => Self::Uri(identity),
        }
    }
}

impl Who {
    /// The rule of a peer: by its uid or whole URI, else by the longest beginning of its URI, else by
    /// the first of its groups in the file.
    pub fn most_exact<'a, T>(
        rules: &'a [T],
        who: impl Fn(&'a T) -> Option<&'a Self>,
        peer: PeerId<'_>,
    ) -> Option<&'a T> {
        let fit = |rule: &&'a T| who(rule).map_or(0, |who| who.fit(peer));
        // The last of equals would be taken.
        rules.iter().rev().max_by_key(fit).filter(|rule| fit(rule) > 0)
    }

    /// How well it fits; 0 is not at all.
    fn fit(&self, peer: PeerId<'_>) -> usize {
        match (self, peer) {
            (Self::Uid(named), PeerId::Unix { uid, .. }) if *named == uid => usize::MAX,
            (Self::Gid(gid), PeerId::Unix { gids, .. }) if gids.contains(gid) => 1,
            (Self::Uri(whole), PeerId::Uri(uri)) if whole == uri => usize::MAX,
            (Self::UriPrefix(start), PeerId::Uri(uri))
                if uri.len() > start.len() && uri.starts_with(start.as_str()) =>
            {
                start.len()
            }
            _ => 0,
        }
    }
}
