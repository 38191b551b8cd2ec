//! Input: every error names the field, what is wrong and the way out.

use berth_host::PciAddress;
use berth_ownership::{Label, Reason, Refusal};
use berth_proto::v1;

use crate::model::ApiError;

const MAX_NAME: usize = 128;
const MAX_REQUEST_ID: usize = 128;
const MAX_TEXT: usize = 1024;

/// A name: of a holder, a label, an id.
pub(super) fn name(field: &str, text: &str) -> Result<(), ApiError> {
    let fault = if text.is_empty() {
        "is empty"
    } else if text.len() > MAX_NAME {
        "is longer than 128 bytes"
    } else if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        "has spaces or control characters"
    } else {
        return Ok(());
    };
    Err(ApiError::invalid_argument(
        field,
        format!("{field} {fault}"),
        format!("give {field} as 1 to {MAX_NAME} printable characters without spaces"),
    ))
}

/// Whether a text could be a label.
pub(crate) fn is_name(text: &str) -> bool {
    name("label", text).is_ok()
}

/// A text for people.
pub(super) fn text(field: &str, text: &str) -> Result<(), ApiError> {
    if text.len() <= MAX_TEXT && !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Ok(());
    }
    Err(ApiError::invalid_argument(
        field,
        format!("{field} is longer than {MAX_TEXT} bytes or has control characters"),
        format!("shorten {field}"),
    ))
}

/// A request id, if there is one.
pub(super) fn request_id(text: &str) -> Result<(), ApiError> {
    if text.len() > MAX_REQUEST_ID {
        return Err(ApiError::invalid_argument(
            "request_id",
            format!("request_id is longer than {MAX_REQUEST_ID} bytes"),
            "use a UUID",
        ));
    }
    if text.is_empty() { Ok(()) } else { name("request_id", text) }
}

/// A driver's name.
pub(super) fn driver(text: &str) -> Result<(), ApiError> {
    let fits = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fits {
        return Ok(());
    }
    Err(ApiError::invalid_argument(
        "driver",
        "driver is not a name of letters, digits, - and _",
        "name a driver as in /sys/bus/pci/drivers, e.g. nvme",
    ))
}

/// A device's address.
pub(super) fn device(
    field: &str,
    address: Option<&v1::DeviceAddress>,
) -> Result<PciAddress, ApiError> {
    use v1::device_address::Kind;
    match address.and_then(|address| address.kind.as_ref()) {
        Some(Kind::Pci(pci)) => pci.parse().map_err(|error| {
            ApiError::invalid_argument(
                field,
                format!("{field}: {error}"),
                "list the devices with `berth device list`",
            )
        }),
        Some(Kind::Mdev(id) | Kind::Platform(id)) => Err(Refusal::new(
            Reason::Unsupported,
            id,
            format!(
                "{field}: {id} is not a PCI device, and this version manages PCI devices alone"
            ),
        )
        .into()),
        None => Err(ApiError::invalid_argument(
            field,
            format!("{field} is missing"),
            format!("give {field} as {{\"pci\": \"0000:65:00.0\"}}"),
        )),
    }
}

/// An identity that may fetch: `uid:N`.
pub(super) fn identity(field: &str, text: &str) -> Result<(), ApiError> {
    let uid = text.strip_prefix("uid:").and_then(|uid| uid.parse::<u32>().ok());
    // A uid has one spelling, or two identities would be one.
    if uid.is_some_and(|uid| text == format!("uid:{uid}")) {
        return Ok(());
    }
    Err(ApiError::invalid_argument(
        field,
        format!("{field} {text:?} is not an identity"),
        "write it like uid:60001",
    ))
}

/// A trust label, or the default.
pub(super) fn label(text: &str, default: &str) -> Result<Label, ApiError> {
    if text.is_empty() {
        return Ok(Label::new(default));
    }
    name("label", text)?;
    Ok(Label::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_have_one_spelling() {
        assert!(identity("for", "uid:60001").is_ok());
        for bad in ["", "60001", "uid:", "uid:-1", "uid:+1", "uid:007", "uid:4294967296", "UID:1"] {
            assert!(identity("for", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_carry_no_blanks_and_no_controls() {
        assert!(name("holder", "vm-a/1").is_ok());
        for bad in ["", "a b", "a\nb", "\u{0}"] {
            assert!(name("holder", bad).is_err(), "{bad:?}");
        }
        assert!(name("holder", &"x".repeat(129)).is_err());
    }

    #[test]
    fn drivers_are_names_not_paths() {
        assert!(driver("vfio-pci").is_ok());
        for bad in ["", "../x", "a/b", "nvme\n", &"d".repeat(65)] {
            assert!(driver(bad).is_err(), "{bad:?}");
        }
    }
}
