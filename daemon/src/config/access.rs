//! Who gets which role through a listener.

use std::ops::Range;

use toml::Spanned;

use super::{
    ConfigError,
    error::Source,
    raw::{RawListener, RawRule},
    whom,
};
use crate::model::{PeerId, Role, Who};

/// Who gets which role through a listener. The listener's role is the ceiling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The ceiling.
    pub role: Role,
    /// Narrower roles of some identities; `None` shuts one out.
    pub rules: Vec<Rule>,
    /// The role of identities without a rule; `None` shuts them out.
    pub others: Option<Role>,
    /// The label that those are confined to whose rule names none.
    pub label: Option<String>,
}

/// The role of somebody at one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Whose.
    pub who: Who,
    /// Never above the listener's; `None` shuts them out.
    pub role: Option<Role>,
    /// The label that they are confined to.
    pub label: Option<String>,
}

impl Access {
    /// Everybody who gets through the listener has `role`.
    #[must_use]
    pub fn all(role: Role) -> Self {
        Self { role, rules: Vec::new(), others: Some(role), label: None }
    }

    /// The role of a uid without groups; without a uid (TCP) that of the others.
    #[must_use]
    pub fn role_of(&self, uid: Option<u32>) -> Option<Role> {
        match uid {
            Some(uid) => self.grant(PeerId::Unix { uid, gids: &[] }).0,
            None => self.grant(PeerId::Nobody).0,
        }
    }

    /// The role of a peer, and by which rule. It depends on the listener and its rules alone: uid 0
    /// gets no more than anybody else.
    #[must_use]
    pub fn grant(&self, peer: PeerId<'_>) -> (Option<Role>, Option<&Rule>) {
        let rule = Who::most_exact(&self.rules, |rule| Some(&rule.who), peer);
        let granted = match rule {
            Some(rule) => rule.role,
            None => self.others,
        };
        (granted.map(|role| role.min(self.role)), rule)
    }

    /// The label that a peer with such a rule, or without one, is confined to.
    #[must_use]
    pub fn tenant<'a>(&'a self, rule: Option<&'a Rule>) -> Option<&'a str> {
        rule.and_then(|rule| rule.label.as_deref()).or(self.label.as_deref())
    }

    /// Whether groups have to be asked for.
    #[must_use]
    pub fn asks_for_groups(&self) -> bool {
        self.rules.iter().any(|rule| matches!(rule.who, Who::Gid(_)))
    }
}

/// What a listener's kind allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// The highest ceiling.
    pub(super) most: Role,
    /// What whoever isn't named gets at most.
    pub(super) usual: Role,
    /// Whether its peers have certificates, and nothing else.
    pub(super) certified: bool,
}

/// The ceiling, the rules and the others of a listener.
pub(super) fn resolve(
    raw: &RawListener,
    kind: Kind,
    source: &Source<'_>,
) -> Result<Access, ConfigError> {
    let named_only = kind.certified;
    let usual = if named_only { kind.most } else { kind.most.min(kind.usual) };
    let role = match &raw.role {
        None => usual,
        Some(word) => role(word, "listen.role", source)?.ok_or_else(|| {
            let message = "a listener that lets nobody in is of no use";
            source.error(Some(word.span()), "listen.role", message, "remove the listener")
        })?,
    };
    if role > kind.most {
        let message = "TCP without TLS serves reading only";
        let way_out = "use role = \"viewer\", add tls, or a path for changes";
        let span = raw.role.as_ref().map(Spanned::span);
        return Err(source.error(span, "listen.role", message, way_out));
    }
    let others = match &raw.others {
        None if named_only => None,
        None => Some(role.min(kind.usual)),
        Some(word) => narrower(word, role, "listen.others", source)?,
    };
    if let (true, Some(word), Some(_)) = (named_only, &raw.others, others) {
        let message = "a certificate that no rule names is refused";
        let way_out = "add a [[listen.rule]] with uri, e.g. uri = \"spiffe://site/ns/*\"";
        return Err(source.error(Some(word.span()), "listen.others", message, way_out));
    }
    let mut rules: Vec<Rule> = Vec::new();
    for rule in &raw.rule {
        let (who, span, key) = who(rule, named_only, source)?;
        if rules.iter().any(|earlier| earlier.who == who) {
            let message = format!("{who} has two rules");
            return Err(source.error(Some(span), key, message, "keep one of them"));
        }
        let label = confined(rule.label.as_ref(), "listen.rule.label", source)?;
        let role = narrower(&rule.role, role, "listen.rule.role", source)?;
        rules.push(Rule { who, role, label });
    }
    let label = confined(raw.label.as_ref(), "listen.label", source)?;
    Ok(Access { role, rules, others, label })
}

fn confined(
    text: Option<&Spanned<String>>,
    key: &str,
    source: &Source<'_>,
) -> Result<Option<String>, ConfigError> {
    text.map(|text| whom::label(text, key, source)).transpose()
}

type Named = (Who, Range<usize>, &'static str);

/// Whom a rule names; exactly one thing, of a kind that the listener's peers can prove.
fn who(rule: &RawRule, certified: bool, source: &Source<'_>) -> Result<Named, ConfigError> {
    let named = [rule.uid.is_some(), rule.gid.is_some(), rule.uri.is_some()];
    if named.iter().filter(|named| **named).count() != 1 {
        let message = "a rule names exactly one of uid, gid and uri";
        let span = Some(rule.role.span());
        return Err(source.error(span, "[[listen.rule]]", message, "give one of them"));
    }
    if let Some(uri) = &rule.uri {
        if !certified {
            let message = "only peers with a client certificate have a URI";
            let way_out = "use uid or gid, or give the listener address and tls";
            return Err(source.error(Some(uri.span()), "listen.rule.uri", message, way_out));
        }
        let key = "listen.rule.uri";
        return Ok((pattern(uri, key, source)?, uri.span(), key));
    }
    let (who, span, key) = match (&rule.uid, &rule.gid) {
        (Some(uid), _) => (Who::Uid(*uid.get_ref()), uid.span(), "listen.rule.uid"),
        (_, Some(group)) => {
            let gid = whom::gid(group, "listen.rule.gid", source)?;
            (Who::Gid(gid), group.span(), "listen.rule.gid")
        }
        (None, None) => {
            return Err(source.error(None, "[[listen.rule]]", "names nobody", "add uid"));
        }
    };
    if certified {
        let message = "peers with a certificate have no uid and no gid here";
        return Err(source.error(Some(span), key, message, "name their URI with uri"));
    }
    Ok((who, span, key))
}

/// A URI, or how URIs begin. A beginning holds the whole authority, or `spiffe://site*` would let
/// `spiffe://site.evil/` in.
pub(super) fn pattern(
    uri: &Spanned<String>,
    key: &str,
    source: &Source<'_>,
) -> Result<Who, ConfigError> {
    let text = uri.get_ref().as_str();
    let start = text.strip_suffix('*').unwrap_or(text);
    let rest = start.split_once("://").map(|(scheme, rest)| (scheme, rest.split_once('/')));
    let whole =
        matches!(rest, Some((scheme, Some((host, _)))) if !scheme.is_empty() && !host.is_empty());
    if !whole || start.contains('*') || start.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let message = format!("{text:?} is not a URI, nor the beginning of one");
        let way_out = "write it like spiffe://site/ns/berth, or spiffe://site/ns/* for all below";
        return Err(source.error(Some(uri.span()), key, message, way_out));
    }
    let start = start.to_owned();
    Ok(if text.ends_with('*') { Who::UriPrefix(start) } else { Who::Uri(start) })
}

fn narrower(
    word: &Spanned<String>,
    ceiling: Role,
    key: &str,
    source: &Source<'_>,
) -> Result<Option<Role>, ConfigError> {
    let role = role(word, key, source)?;
    if role > Some(ceiling) {
        let message = "a rule can't give more than its listener's role";
        let way_out = "raise the listener's role and narrow the others";
        return Err(source.error(Some(word.span()), key, message, way_out));
    }
    Ok(role)
}

fn role(
    word: &Spanned<String>,
    key: &str,
    source: &Source<'_>,
) -> Result<Option<Role>, ConfigError> {
    if word.get_ref() == "none" {
        return Ok(None);
    }
    Role::by_name(word.get_ref()).map(Some).ok_or_else(|| {
        let message = format!("{:?} is not a role", word.get_ref());
        let way_out = "use viewer, holder, orchestrator, operator or none";
        source.error(Some(word.span()), key, message, way_out)
    })
}
