//! Device addresses: `65:00.0`, `0000:65:00.0` and `pci_0000_65_00_0` are one device.

use berth_proto::v1::{DeviceAddress, device_address::Kind};

/// Parses an address for clap; the result is printed in full.
pub(crate) fn parse(input: &str) -> Result<DeviceAddress, String> {
    full(input).map(|pci| DeviceAddress { kind: Some(Kind::Pci(pci)) }).ok_or_else(|| {
        format!(
            "{input:?} is not a device; write it like 0000:65:00.0, 65:00.0 or pci_0000_65_00_0"
        )
    })
}

/// The full form of a PCI address, or `None` when it isn't one.
pub(crate) fn full(input: &str) -> Option<String> {
    let parts: Vec<&str> = if let Some(rest) = input.strip_prefix("pci_") {
        let parts: Vec<&str> = rest.split('_').collect();
        (parts.len() == 4).then_some(parts)?
    } else {
        let (front, function) = input.rsplit_once('.')?;
        front.split(':').chain([function]).collect()
    };
    let (domain, bus, device, function) = match parts.as_slice() {
        [bus, device, function] => ("0000", *bus, *device, *function),
        [domain, bus, device, function] => (*domain, *bus, *device, *function),
        _ => return None,
    };
    let number = |text: &str, digits: std::ops::RangeInclusive<usize>, below: u32| {
        let fits = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        let value = if fits { u32::from_str_radix(text, 16).ok() } else { None };
        value.filter(|value| *value < below)
    };
    Some(format!(
        "{:04x}:{:02x}:{:02x}.{:x}",
        number(domain, 4..=8, u32::MAX)?,
        number(bus, 2..=2, 256)?,
        number(device, 2..=2, 32)?,
        number(function, 1..=1, 8)?,
    ))
}

/// An address as it is printed.
pub(crate) fn text(address: Option<&DeviceAddress>) -> &str {
    match address.and_then(|address| address.kind.as_ref()) {
        Some(Kind::Pci(text) | Kind::Mdev(text) | Kind::Platform(text)) => text,
        None => "-",
    }
}

/// A group or device as the daemon expects it: device addresses in full, the rest as it is.
pub(crate) fn object(input: &str) -> String {
    full(input).unwrap_or_else(|| input.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_are_one_device() {
        for form in ["65:00.0", "0000:65:00.0", "pci_0000_65_00_0", "0000:65:00.0"] {
            assert_eq!(full(form).as_deref(), Some("0000:65:00.0"));
        }
        assert_eq!(full("E1:1F.7").as_deref(), Some("0000:e1:1f.7"));
    }

    #[test]
    fn anything_else_is_not_one() {
        for bad in
            ["", "g-0123", "17", "65:00", "65:20.0", "65:00.8", "pci_65_00_0", "a.b", "../x.0"]
        {
            assert_eq!(full(bad), None, "{bad}");
        }
    }
}
