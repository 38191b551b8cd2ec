//! Links to the page.

use berth_proto::v1;

use super::event;

/// As whom a link signs in, and until when.
pub(crate) fn remark(link: &v1::WebSessionLink) -> String {
    let label =
        if link.label.is_empty() { String::new() } else { format!(", label {}", link.label) };
    let until = match &link.expires_at {
        Some(at) => format!(" until {}", event::time_of(Some(at))),
        None => String::new(),
    };
    format!("signs in once{until}, as {}, {}{label}; it is a secret", link.identity, link.role)
}
