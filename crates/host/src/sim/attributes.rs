//! The attributes of a simulated device, and what writes to them do.

use rustix::io::Errno;

use super::{
    fault::Site,
    host::SimHost,
    kernel::Kernel,
    shared::{Shared, lock},
    topology::ResetKind,
};
use crate::{Attribute, HostError, PciAddress, steps};

/// A device and what its attributes are read from and written to.
pub(super) struct Device<'s> {
    pub(super) shared: &'s Shared,
    pub(super) address: PciAddress,
}

impl Device<'_> {
    fn put(&self, attribute: &Attribute, text: &str) -> Result<(), Errno> {
        let (shared, device) = (self.shared, self.address);
        let pass = |site| shared.pass(site, Some(device), None);
        match attribute {
            Attribute::Override => {
                pass(Site::WriteOverride)?;
                let driver = text.trim_end();
                shared.kernel().set_override(device, (!driver.is_empty()).then_some(driver))
            }
            Attribute::Unbind => {
                pass(Site::WriteUnbind)?;
                shared.kernel_without_users(device).unbind_driver(device)
            }
            Attribute::Probe => {
                pass(Site::WriteProbe)?;
                shared.kernel().drivers_probe(device)
            }
            Attribute::Bind(driver) => {
                pass(Site::WriteBind)?;
                shared.kernel().bind_driver(device, driver)
            }
            Attribute::Vfs | Attribute::Autoprobe => {
                shared.kernel().write_sriov(device, attribute, text)
            }
            Attribute::Reset => match shared.kernel().dev(device)?.model.reset {
                ResetKind::Verified | ResetKind::Failed => Ok(()),
                ResetKind::NotPossible => Err(Errno::NOENT),
            },
        }
    }
}

impl steps::Device for Device<'_> {
    fn address(&self) -> PciAddress {
        self.address
    }

    fn driver(&self) -> Option<String> {
        self.shared.kernel().dev(self.address).ok()?.model.facts.driver.clone()
    }

    fn read(&self, attribute: &Attribute) -> Option<String> {
        let kernel = self.shared.kernel();
        steps::shown(&kernel.dev(self.address).ok()?.model.facts, attribute)
    }

    fn write(&self, attribute: &Attribute, text: &str) -> Result<(), HostError> {
        let path = attribute.path(self.address);
        match self.put(attribute, text) {
            Ok(()) => {
                if let Some(written) = &mut *lock(&self.shared.written) {
                    written.push((path, text.to_owned()));
                }
                Ok(())
            }
            Err(errno) => Err(HostError::File { op: "write", path, errno: errno.raw_os_error() }),
        }
    }

    fn registered(&self, driver: &str) -> Result<String, HostError> {
        registered(&self.shared.kernel(), driver)
    }

    fn reset_method(&self) -> Option<String> {
        let kernel = self.shared.kernel();
        kernel.dev(self.address).ok()?.model.facts.reset_methods.first().cloned()
    }

    /// The first 64 bytes; all ones for a device whose reset fails.
    fn config(&self) -> Result<Vec<u8>, HostError> {
        let kernel = self.shared.kernel();
        let gone = |_| HostError::NoDevice(self.address);
        let found = kernel.dev(self.address).map_err(gone)?;
        if found.model.reset == ResetKind::Failed {
            return Ok(vec![0xff; 64]);
        }
        let facts = &found.model.facts;
        let open = found.vfio.as_ref().is_some_and(|vfio| vfio.open_count > 0);
        let mut bytes = vec![0; 64];
        bytes[0..2].copy_from_slice(&facts.vendor.to_le_bytes());
        bytes[2..4].copy_from_slice(&facts.device.to_le_bytes());
        // Memory space, and bus master while somebody has it open.
        bytes[4] = if open || kernel.masters.contains(&self.address) { 6 } else { 2 };
        bytes[8] = facts.revision;
        bytes[9..12].copy_from_slice(&facts.class.to_le_bytes()[..3]);
        bytes[14] = u8::from(facts.bridge);
        bytes[44..46].copy_from_slice(&facts.subsystem_vendor.to_le_bytes());
        bytes[46..48].copy_from_slice(&facts.subsystem_device.to_le_bytes());
        Ok(bytes)
    }
}

/// The real act looks for the driver's directory before it writes anything.
pub(super) fn registered(kernel: &Kernel, driver: &str) -> Result<String, HostError> {
    let known = ["vfio-pci", "pci-stub", "pcieport"].contains(&driver)
        || kernel.devices.values().any(|device| {
            device.model.facts.vfio_driver == driver
                || device.model.host_drivers.iter().any(|name| name == driver)
        });
    if known && !kernel.unloaded.contains(driver) {
        return Ok(driver.to_owned());
    }
    let path = format!("/sys/bus/pci/drivers/{driver}");
    Err(HostError::File { op: "find driver", path, errno: Errno::NOENT.raw_os_error() })
}

impl SimHost {
    /// Keeps what is written to sysfs from now on.
    pub fn note_writes(&self) {
        *lock(&self.shared.written) = Some(Vec::new());
    }

    /// What was written to sysfs since that was to be kept, path and value, in order.
    #[must_use]
    pub fn written(&self) -> Vec<(String, String)> {
        lock(&self.shared.written).clone().unwrap_or_default()
    }

    /// Somebody writes an attribute in sysfs, as a shell does.
    ///
    /// # Errors
    /// The kernel's errno; ENOENT where it is no attribute that acts write.
    pub fn write(&self, path: &str, value: &str) -> Result<(), HostError> {
        let nothing = || HostError::File {
            op: "write",
            path: path.to_owned(),
            errno: Errno::NOENT.raw_os_error(),
        };
        let (address, attribute) = Attribute::of(path, value).ok_or_else(nothing)?;
        steps::Device::write(&Device { shared: &self.shared, address }, &attribute, value)
    }
}
