//! Whom a rule about identities is about.

use std::fmt;

/// Whom a quota or a rate is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// `uid:N`.
    Uid(u32),
    /// Callers with this gid, each by its own identity.
    Gid(u32),
    /// The URI of a client certificate.
    Uri(String),
    /// URIs that begin so, each for itself.
    UriPrefix(String),
    /// What is under one label, whoever asked.
    Label(String),
    /// Each identity that no other rule is about, and each label that a caller is confined to.
    Others,
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Gid(gid) => write!(f, "gid {gid}"),
            Self::Uri(uri) => write!(f, "uri {uri}"),
            Self::UriPrefix(prefix) => write!(f, "uri {prefix}*"),
            Self::Label(label) => write!(f, "label {label}"),
            Self::Others => f.write_str("others"),
        }
    }
}

impl Whom {
    /// The rule of an identity: by its own name, else by the longest beginning of its URI, else by
    /// the first of its groups in the file, else that of the others.
    pub fn most_exact<'a, T>(
        rules: &'a [T],
        whom: impl Fn(&T) -> &Self,
        identity: &str,
        gids: &[u32],
    ) -> Option<&'a T> {
        let uid = identity.strip_prefix("uid:").and_then(|uid| uid.parse::<u32>().ok());
        let named = rules.iter().find(|rule| match whom(rule) {
            Self::Uid(named) => Some(*named) == uid,
            Self::Uri(uri) => uri == identity,
            _ => false,
        });
        let length = |rule: &&T| match whom(rule) {
            Self::UriPrefix(start)
                if identity.len() > start.len() && identity.starts_with(start.as_str()) =>
            {
                start.len()
            }
            _ => 0,
        };
        let begun = || rules.iter().max_by_key(length).filter(|rule| length(rule) > 0);
        let of_group = |rule: &&T| matches!(whom(rule), Self::Gid(gid) if gids.contains(gid));
        let grouped = || rules.iter().find(of_group);
        let others = || rules.iter().find(|rule| *whom(rule) == Self::Others);
        named.or_else(begun).or_else(grouped).or_else(others)
    }

    /// The rule of a label by its name.
    pub fn of_label<'a, T>(
        rules: &'a [T],
        whom: impl Fn(&T) -> &Self,
        label: &str,
    ) -> Option<&'a T> {
        rules.iter().find(|rule| matches!(whom(rule), Self::Label(named) if named == label))
    }
}
