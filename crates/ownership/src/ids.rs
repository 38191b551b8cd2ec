//! Identifiers, epochs and times. All of them are handed in; none is made here.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;

// Ids of groups, devices and reservations are short enough to lie in the record itself, where
// looking one up finds it without following a pointer for each comparison.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(SmolStr);

        impl $name {
            /// Wraps the text.
            pub fn new(text: impl AsRef<str>) -> Self {
                Self(SmolStr::new(text))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(SmolStr::from(text))
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                SmolStr::deserialize(deserializer).map(Self)
            }
        }
    };
}

text_id!(
    /// An IOMMU group by its stable id: `g-` and a hash of its member addresses.
    GroupId
);
text_id!(
    /// A device by its full name: `0000:65:00.0`.
    DeviceId
);
text_id!(
    /// A reservation: `r-…`.
    ReservationId
);
text_id!(
    /// A context, which is one iommufd or one container: `c-…`.
    ContextId
);
text_id!(
    /// A domain, which is one I/O address space in a context: `d-…`.
    DomainId
);
text_id!(
    /// A trust label (tenant). Nothing is shared across labels.
    Label
);
text_id!(
    /// The name of the VM, pod or operator that a reservation is for.
    Holder
);
text_id!(
    /// The kernel's boot id: boot time is comparable within one of them only.
    BootId
);

/// The fencing number of a reservation. It only grows on a group.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Wall-clock time.
///
/// # Units
///
/// Milliseconds since 1970-01-01 UTC.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMs(pub u64);

/// The instant at which a command is decided.
///
/// # Units
///
/// `unix_ms` is wall-clock time; `boot_ms` is CLOCK_BOOTTIME in milliseconds of the boot `boot_id`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Time {
    /// Wall-clock time; only epochs and records use it.
    pub unix_ms: UnixMs,
    /// CLOCK_BOOTTIME; leases use it.
    pub boot_ms: u64,
    /// The boot that `boot_ms` belongs to.
    pub boot_id: BootId,
}

/// The end of a lease on the boot-time clock.
///
/// # Units
///
/// `boot_ms` is CLOCK_BOOTTIME in milliseconds of the boot `boot_id`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Expiry {
    /// The instant at which the lease ends.
    pub boot_ms: u64,
    /// The boot that the instant belongs to.
    pub boot_id: BootId,
}

impl Expiry {
    /// The end of a lease of `ttl_ms` that begins at `now`.
    ///
    /// # Units
    ///
    /// Milliseconds.
    pub fn after(now: &Time, ttl_ms: u64) -> Self {
        Self { boot_ms: now.boot_ms.saturating_add(ttl_ms), boot_id: now.boot_id.clone() }
    }

    /// Whether the lease has ended. On another boot this can't be told, so the answer is no.
    pub fn is_past(&self, now: &Time) -> bool {
        self.boot_id == now.boot_id && now.boot_ms >= self.boot_ms
    }
}
