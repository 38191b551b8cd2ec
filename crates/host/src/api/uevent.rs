//! What the kernel tells of devices as it happens.

use std::{fmt::Debug, time::Duration};

use super::{HostError, PciAddress};

/// One message about a PCI function.
///
/// # Source
/// `kobject_uevent_env` in `lib/kobject_uevent.c`, `pci_uevent` in `drivers/pci/pci-driver.c`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `bind`, `unbind`, `change`, …
    pub action: String,
    /// Of which function.
    pub device: PciAddress,
}

impl Uevent {
    /// Whether it is about a function's driver, and not about its being there.
    #[must_use]
    pub fn is_of_driver(&self) -> bool {
        ["bind", "unbind"].contains(&self.action.as_str())
    }
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Messages in their order; none when nothing came in time.
    Uevents(Vec<Uevent>),
    /// The kernel had to drop some: only a look at everything tells what changed.
    Dropped,
}

/// A subscription. What happens after it began is told; what is told is to be read again, as the
/// messages say only that something happened.
pub trait Uevents: Send + Debug {
    /// Waits until something comes, or the time is over.
    ///
    /// # Errors
    /// The errno of the socket.
    fn next(&mut self, patience: Duration) -> Result<News, HostError>;
}
