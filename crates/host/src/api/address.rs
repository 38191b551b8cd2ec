//! PCI addresses: parsed to numbers, printed in full.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A PCI function: domain, bus, device, function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// What is wrong with an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a PCI address; write it like 0000:65:00.0, 65:00.0 or pci_0000_65_00_0")]
pub struct ParseAddressError {
    input: String,
}

impl PciAddress {
    /// An address from its parts; `None` when device or function is out of range.
    #[must_use]
    pub fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self { domain, bus, device, function })
    }

    /// The PCI domain (segment).
    #[must_use]
    pub fn domain(self) -> u32 {
        self.domain
    }

    /// The bus number.
    #[must_use]
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// The device (slot) number, 0 to 31.
    #[must_use]
    pub fn device(self) -> u8 {
        self.device
    }

    /// The function number, 0 to 7.
    #[must_use]
    pub fn function(self) -> u8 {
        self.function
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PciAddress {
    type Err = ParseAddressError;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        parse(input).ok_or_else(|| ParseAddressError { input: input.chars().take(80).collect() })
    }
}

fn parse(input: &str) -> Option<PciAddress> {
    let hex = |text: &str, digits: std::ops::RangeInclusive<usize>| {
        let fits = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        if fits { u32::from_str_radix(text, 16).ok() } else { None }
    };
    let parts: Vec<&str> = match input.strip_prefix("pci_") {
        Some(rest) => rest.split('_').collect(),
        None => {
            let (front, function) = input.rsplit_once('.')?;
            front.split(':').chain([function]).collect()
        }
    };
    let (domain, rest) = match parts.as_slice() {
        [bus, device, function] if !input.starts_with("pci_") => (0, [*bus, *device, *function]),
        [domain, bus, device, function] => (hex(domain, 4..=8)?, [*bus, *device, *function]),
        _ => return None,
    };
    let [bus, device, function] = rest;
    PciAddress::new(
        domain,
        u8::try_from(hex(bus, 2..=2)?).ok()?,
        u8::try_from(hex(device, 2..=2)?).ok()?,
        u8::try_from(hex(function, 1..=1)?).ok()?,
    )
}

impl TryFrom<String> for PciAddress {
    type Error = ParseAddressError;

    fn try_from(value: String) -> Result<Self, Self::Error> {
        value.parse()
    }
}

impl From<PciAddress> for String {
    fn from(value: PciAddress) -> Self {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_three_forms_and_prints_in_full() {
        for form in ["65:00.0", "0000:65:00.0", "pci_0000_65_00_0"] {
            assert_eq!(form.parse::<PciAddress>().unwrap().to_string(), "0000:65:00.0");
        }
        assert_eq!("10000:e1:1f.7".parse::<PciAddress>().unwrap().to_string(), "10000:e1:1f.7");
    }

    #[test]
    fn refuses_everything_else() {
        for bad in [
            "",
            ".",
            ":",
            "65:00",
            "65:00.8",
            "65:20.0",
            "0000:65:00.0/..",
            "../../etc",
            "+5:00.0",
            "pci_65_00_0",
            "0:65:00.0",
            "000:65:00.0",
            "65:0.0",
            "65:00.00",
            "pci_",
            "é5:00.0",
        ] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }
}
