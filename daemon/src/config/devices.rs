//! `[[device]]`: which devices may be given away.

use toml::Spanned;

use super::{ConfigError, check, error::Source, raw::RawDevice};
use crate::model::{DeviceRule, DeviceRules, Ruling};

/// The rules in the file's order.
pub(super) fn rules(
    raw: Vec<Spanned<RawDevice>>,
    source: &Source<'_>,
) -> Result<DeviceRules, ConfigError> {
    let rules = raw.into_iter().map(|raw| rule(raw, source));
    rules.collect::<Result<_, _>>().map(DeviceRules)
}

fn rule(raw: Spanned<RawDevice>, source: &Source<'_>) -> Result<DeviceRule, ConfigError> {
    let place = format!("{}:{}", source.file.display(), source.line_of(raw.span().start));
    let raw = raw.into_inner();
    let verdict = match raw.verdict.get_ref().as_str() {
        "allow" => Ruling::Allow,
        "deny" => Ruling::Deny,
        other => {
            let message = format!("{other:?} is not a verdict");
            let span = Some(raw.verdict.span());
            return Err(source.error(span, "device.verdict", message, "use allow or deny"));
        }
    };
    let (vendor, device) = match &raw.vendor {
        None => (None, None),
        Some(text) => ids(text.get_ref()).ok_or_else(|| {
            let message = format!("{:?} is not an id", text.get_ref());
            let way_out = "write VENDOR or VENDOR:DEVICE, four hexadecimal digits each";
            source.error(Some(text.span()), "device.vendor", message, way_out)
        })?,
    };
    Ok(DeviceRule {
        verdict,
        class: class(raw.class.as_ref(), source)?,
        vendor,
        device,
        address: address(raw.address.as_ref(), source)?,
        note: raw.note,
        place,
    })
}

fn class(
    raw: Option<&Spanned<String>>,
    source: &Source<'_>,
) -> Result<Option<String>, ConfigError> {
    let Some(text) = raw else { return Ok(None) };
    check::class(text.get_ref()).ok_or_else(|| {
        let message = format!("{:?} is not a class", text.get_ref());
        let way_out = "use gpu, nic, nvme, or 2, 4 or 6 hexadecimal digits such as 0108";
        source.error(Some(text.span()), "device.class", message, way_out)
    })
}

fn ids(text: &str) -> Option<(Option<u16>, Option<u16>)> {
    let id = |text: &str| {
        let digits = text.len() == 4 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        u16::from_str_radix(text, 16).ok().filter(|_| digits)
    };
    match text.split_once(':') {
        None => Some((Some(id(text)?), None)),
        Some((vendor, device)) => Some((Some(id(vendor)?), Some(id(device)?))),
    }
}

/// A pattern is compared with full addresses, in lower case. One that none can be like is an error.
fn address(
    raw: Option<&Spanned<String>>,
    source: &Source<'_>,
) -> Result<Option<String>, ConfigError> {
    let Some(text) = raw else { return Ok(None) };
    let pattern = text.get_ref().to_ascii_lowercase();
    let could_be = pattern.bytes().all(|b| b.is_ascii_hexdigit() || b":.*".contains(&b));
    let whole = pattern.contains('*') || pattern.parse::<berth_host::PciAddress>().is_ok();
    if could_be && whole && !pattern.is_empty() {
        // Without a star it may be a short one.
        let full = pattern.parse::<berth_host::PciAddress>().map(|at| at.to_string());
        return Ok(Some(full.unwrap_or(pattern)));
    }
    let message = format!("{:?} is not a pattern of addresses", text.get_ref());
    let way_out = "write a full address, or one in which * stands for any text: 0000:65:*";
    Err(source.error(Some(text.span()), "device.address", message, way_out))
}
