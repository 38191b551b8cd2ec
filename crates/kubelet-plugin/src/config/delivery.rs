//! How a container comes to its devices.

use berth_proto::v1;
use serde::{Deserialize, Serialize};

/// Berth's words, as they are in the configuration and on record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// It opens nodes, which the runtime makes for it.
    #[default]
    Node,
    /// By the socket: devices that are bound and attached.
    Bound,
    /// By the socket: a fresh iommufd, and cdevs that it binds by itself.
    Unbound,
    /// By the socket: nothing but the right to register memory.
    Held,
}

impl Delivery {
    /// All words, the default first.
    pub(super) const WORDS: [(&str, Self); 4] = [
        ("node", Self::Node),
        ("bound", Self::Bound),
        ("unbound", Self::Unbound),
        ("held", Self::Held),
    ];

    /// Whether a socket is mounted into the container, and no node.
    #[must_use]
    pub const fn by_socket(self) -> bool {
        !matches!(self, Self::Node)
    }

    /// Whether `berthd` attaches the devices before the container starts.
    #[must_use]
    pub const fn is_attached(self) -> bool {
        matches!(self, Self::Bound | Self::Held)
    }
}

impl From<Delivery> for v1::Delivery {
    fn from(delivery: Delivery) -> Self {
        match delivery {
            Delivery::Node => Self::Node,
            Delivery::Bound => Self::Bound,
            Delivery::Unbound => Self::Unbound,
            Delivery::Held => Self::Held,
        }
    }
}
