//! What a function shows of how it keeps what is below it, or beside it, apart.

use serde::{Deserialize, Serialize};

/// The device/port type of a PCI Express function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortType {
    /// A device.
    Endpoint,
    /// A port of the root complex.
    RootPort,
    /// A switch's port to the root.
    UpstreamPort,
    /// A switch's port to a device.
    DownstreamPort,
    /// PCI Express to conventional PCI.
    PciBridge,
    /// Conventional PCI to PCI Express.
    PcieBridge,
    /// An endpoint inside the root complex.
    RootComplexEndpoint,
    /// An event collector of the root complex.
    EventCollector,
    /// Another one.
    Other(u8),
}

impl PortType {
    /// From the flags of the PCI Express capability.
    #[must_use]
    pub fn from_flags(flags: u16) -> Self {
        match flags.to_le_bytes()[0] >> 4 {
            0 | 1 => Self::Endpoint,
            4 => Self::RootPort,
            5 => Self::UpstreamPort,
            6 => Self::DownstreamPort,
            7 => Self::PciBridge,
            8 => Self::PcieBridge,
            9 => Self::RootComplexEndpoint,
            10 => Self::EventCollector,
            other => Self::Other(other),
        }
    }
}

/// Access Control Services of a function: its registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acs {
    /// What it can.
    pub capable: u16,
    /// What of it is on.
    pub enabled: u16,
}

impl Acs {
    const SOURCE_VALIDATION: u16 = 1 << 0;
    const REQUEST_REDIRECT: u16 = 1 << 2;
    const COMPLETION_REDIRECT: u16 = 1 << 3;
    const UPSTREAM_FORWARDING: u16 = 1 << 4;
    const REQUIRED: u16 = Self::SOURCE_VALIDATION
        | Self::REQUEST_REDIRECT
        | Self::COMPLETION_REDIRECT
        | Self::UPSTREAM_FORWARDING;

    /// Whether all that isolation needs is on: what the function isn't capable of isn't asked.
    ///
    /// # Kernel
    /// `pci_acs_flags_enabled` with `REQ_ACS_FLAGS`.
    #[must_use]
    pub fn isolates(self) -> bool {
        let wanted = Self::REQUIRED & self.capable;
        self.enabled & wanted == wanted
    }
}

/// What the kernel's grouping rests on, of one function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Isolation {
    /// `None`: conventional PCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortType>,
    /// `None`: it has no such capability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acs: Option<Acs>,
    /// The function says that its device has several.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub multifunction: bool,
}
