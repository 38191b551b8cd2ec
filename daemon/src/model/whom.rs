//! Whom a rule about identities is about.

use std::fmt;

use super::{PeerId, Who};

/// Whom a quota or a rate is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// Identities, each by itself.
    Peer(Who),
    /// What is under one label, whoever asked.
    Label(String),
    /// Each identity that no other rule is about, and each label that a caller is confined to.
    Others,
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(who) => who.fmt(f),
            Self::Label(label) => write!(f, "label {label}"),
            Self::Others => f.write_str("others"),
        }
    }
}

impl Whom {
    /// The rule of an identity: see [`Who::most_exact`]; else that of the others.
    pub fn most_exact<'a, T>(
        rules: &'a [T],
        whom: impl Fn(&'a T) -> &'a Self,
        identity: &str,
        gids: &[u32],
    ) -> Option<&'a T> {
        let who = |rule: &'a T| match whom(rule) {
            Self::Peer(who) => Some(who),
            Self::Label(_) | Self::Others => None,
        };
        Who::most_exact(rules, who, PeerId::recorded(identity, gids))
            .or_else(|| rules.iter().find(|rule| *whom(rule) == Self::Others))
    }

    /// The rule of a label by its name.
    pub fn of_label<'a, T>(
        rules: &'a [T],
        whom: impl Fn(&'a T) -> &'a Self,
        label: &str,
    ) -> Option<&'a T> {
        rules.iter().find(|rule| matches!(whom(rule), Self::Label(named) if named == label))
    }

    /// Whether the groups of callers have to be known for it.
    #[must_use]
    pub fn asks_for_groups(&self) -> bool {
        matches!(self, Self::Peer(Who::Gid(_)))
    }
}
