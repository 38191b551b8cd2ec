//! The attributes of sysfs that acts write, and what undoes a write.

use super::PciAddress;

/// An attribute that acts write for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// `driver_override`: which driver alone may have the device; `\n` clears it.
    Override,
    /// `driver/unbind`: takes the device whose address is written from its driver.
    Unbind,
    /// `drivers_probe` of the bus: offers the device whose address is written to drivers.
    Probe,
    /// `bind` of a driver: gives it the device whose address is written.
    Bind(String),
    /// `sriov_numvfs`: how many virtual functions there are.
    Vfs,
    /// `sriov_drivers_autoprobe`: whether host drivers are offered them.
    Autoprobe,
    /// `reset`: resets the function.
    Reset,
}

const DEVICES: &str = "/sys/bus/pci/devices/";
const DRIVERS: &str = "/sys/bus/pci/drivers/";
const PROBE: &str = "/sys/bus/pci/drivers_probe";

impl Attribute {
    /// Its name below the device's directory; `None` of one of the bus or of a driver.
    #[must_use]
    pub fn below_device(&self) -> Option<&'static str> {
        match self {
            Self::Override => Some("driver_override"),
            Self::Unbind => Some("driver/unbind"),
            Self::Vfs => Some("sriov_numvfs"),
            Self::Autoprobe => Some("sriov_drivers_autoprobe"),
            Self::Reset => Some("reset"),
            Self::Probe | Self::Bind(_) => None,
        }
    }

    /// Its path, for a device.
    #[must_use]
    pub fn path(&self, device: PciAddress) -> String {
        match (self, self.below_device()) {
            (_, Some(name)) => format!("{DEVICES}{device}/{name}"),
            (Self::Bind(driver), None) => format!("{DRIVERS}{driver}/bind"),
            (_, None) => PROBE.to_owned(),
        }
    }

    /// The device and the attribute that a write of `value` to `path` is about; `None` where it is no
    /// attribute of the list.
    #[must_use]
    pub fn of(path: &str, value: &str) -> Option<(PciAddress, Self)> {
        if path == PROBE {
            return Some((value.parse().ok()?, Self::Probe));
        }
        if let Some(driver) = path.strip_prefix(DRIVERS).and_then(|rest| rest.strip_suffix("/bind"))
        {
            return Some((value.parse().ok()?, Self::Bind(driver.to_owned())));
        }
        let (device, name) = path.strip_prefix(DEVICES)?.split_once('/')?;
        let all = [Self::Override, Self::Unbind, Self::Vfs, Self::Autoprobe, Self::Reset];
        let found = all.into_iter().find(|one| one.below_device() == Some(name))?;
        Some((device.parse().ok()?, found))
    }
}

/// One write to an attribute, and what undoes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysfsWrite {
    /// The attribute's path.
    pub path: String,
    /// What is written; `\n` is an empty line.
    pub value: String,
    /// What undoes it. Several writes are undone in the opposite order.
    pub undo: Undo,
}

/// What undoes a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undo {
    /// Another write.
    Write {
        /// The attribute's path.
        path: String,
        /// What is written.
        value: String,
    },
    /// Nothing does, or nothing has to.
    None {
        /// Why.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::Attribute;

    #[test]
    fn a_path_says_which_attribute_it_is() {
        let device = "0000:65:00.0".parse().unwrap();
        for attribute in [
            Attribute::Override,
            Attribute::Unbind,
            Attribute::Probe,
            Attribute::Bind("nvme".to_owned()),
            Attribute::Vfs,
            Attribute::Autoprobe,
            Attribute::Reset,
        ] {
            let path = attribute.path(device);
            assert_eq!(Attribute::of(&path, "0000:65:00.0"), Some((device, attribute)), "{path}");
        }
        assert_eq!(Attribute::of("/sys/bus/pci/devices/0000:65:00.0/remove", "1"), None);
        assert_eq!(Attribute::of("/sys/bus/pci/rescan", "1"), None);
    }
}
