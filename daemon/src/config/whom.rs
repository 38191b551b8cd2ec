//! Whom a `[[quota]]` or `[[rate]]` is about.

use std::ops::Range;

use toml::Spanned;

use super::{ConfigError, access, error::Source, system};
use crate::{
    model::{Who, Whom},
    service::is_name,
};

/// The keys that name somebody.
pub(super) struct Named<'a> {
    pub(super) section: &'static str,
    pub(super) uid: Option<&'a Spanned<u32>>,
    pub(super) gid: Option<&'a Spanned<String>>,
    pub(super) uri: Option<&'a Spanned<String>>,
    pub(super) label: Option<&'a Spanned<String>>,
}

impl Named<'_> {
    /// At most one of them; without any it is everybody else.
    pub(super) fn whom(
        &self,
        span: Range<usize>,
        source: &Source<'_>,
    ) -> Result<Whom, ConfigError> {
        let section = self.section;
        let named =
            [self.uid.is_some(), self.gid.is_some(), self.uri.is_some(), self.label.is_some()];
        if named.iter().filter(|named| **named).count() > 1 {
            let message = format!("a {section} names at most one of uid, gid, uri and label");
            let key = format!("[[{section}]]");
            return Err(source.error(Some(span), &key, message, "give one of them, or none"));
        }
        if let Some(uid) = self.uid {
            return Ok(Whom::Peer(Who::Uid(*uid.get_ref())));
        }
        if let Some(group) = self.gid {
            return gid(group, &format!("{section}.gid"), source)
                .map(|gid| Whom::Peer(Who::Gid(gid)));
        }
        if let Some(uri) = self.uri {
            return access::pattern(uri, &format!("{section}.uri"), source).map(Whom::Peer);
        }
        let Some(text) = self.label else { return Ok(Whom::Others) };
        label(text, &format!("{section}.label"), source).map(Whom::Label)
    }
}

/// The number of a group of users.
pub(super) fn gid(
    group: &Spanned<String>,
    key: &str,
    source: &Source<'_>,
) -> Result<u32, ConfigError> {
    system::group_id(group.get_ref()).ok_or_else(|| {
        let message = format!("there is no group {:?}", group.get_ref());
        let way_out = format!("create it: groupadd --system {}", group.get_ref());
        source.error(Some(group.span()), key, message, way_out)
    })
}

/// A label as reservations may have it.
pub(super) fn label(
    text: &Spanned<String>,
    key: &str,
    source: &Source<'_>,
) -> Result<String, ConfigError> {
    if is_name(text.get_ref()) {
        return Ok(text.get_ref().clone());
    }
    let message = format!("{:?} is not a label", text.get_ref());
    let way_out = "use 1 to 128 printable characters without spaces";
    Err(source.error(Some(text.span()), key, message, way_out))
}

/// Refuses a second rule about the same ones.
pub(super) fn only_one<'a>(
    whom: &Whom,
    mut earlier: impl Iterator<Item = &'a Whom>,
    section: &str,
    span: Range<usize>,
    source: &Source<'_>,
) -> Result<(), ConfigError> {
    if !earlier.any(|known| known == whom) {
        return Ok(());
    }
    let message = format!("{whom} has two");
    Err(source.error(Some(span), &format!("[[{section}]]"), message, "keep one of them"))
}
