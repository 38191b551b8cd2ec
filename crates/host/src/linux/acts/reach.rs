//! What an act opens, so that whoever does it can give everything else up before.

use std::path::{Path, PathBuf};

use super::drivers;
use crate::{
    Act, PciAddress,
    linux::{drivers::is_driver_name, tree::Root},
};

/// The files that an act opens. What isn't there is left out by whoever uses this.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Files, and directories with all that is below them.
    pub read: Vec<PathBuf>,
    /// Attributes that are written.
    pub write: Vec<PathBuf>,
    /// Nodes of devices.
    pub devices: Vec<PathBuf>,
    /// It looks into other processes, which no process can that is kept from any file.
    pub processes: bool,
}

/// What `act` opens below `root`, once [`super::prepare`] was called.
#[must_use]
pub fn reach(root: &Path, act: &Act) -> Reach {
    let root = Root::new(root);
    match act {
        Act::Bind { device, driver } => binding(&root, *device, Some(driver)),
        Act::Restore { device, driver, .. } => binding(&root, *device, driver.as_deref()),
        Act::Unbind { device } => attributes(&root, *device, &["driver/unbind"]),
        Act::Override { device, .. } => attributes(&root, *device, &["driver_override"]),
        Act::Sriov { device, .. } => {
            attributes(&root, *device, &["sriov_drivers_autoprobe", "sriov_numvfs"])
        }
        Act::Reset { device } => attributes(&root, *device, &["reset"]),
        Act::ReadConfig { device } => attributes(&root, *device, &[]),
        Act::WhoHolds { .. } => Reach { processes: true, ..Reach::default() },
        // A process's own directory isn't the same file each time it is looked up.
        Act::Prlimit { .. } | Act::Kill { .. } => {
            Reach { read: vec![root.join("proc")], ..Reach::default() }
        }
        Act::OpenIommu => Reach { devices: vec!["/dev/iommu".into()], ..Reach::default() },
        // The node's access list is changed without opening it.
        Act::Access { .. } => Reach { read: vec![root.join("sys")], ..Reach::default() },
    }
}

/// The device's directory for reading, and some of its attributes for writing.
fn attributes(root: &Root, device: PciAddress, names: &[&str]) -> Reach {
    let dir = root.device(device);
    let write = names.iter().map(|name| dir.join(name)).collect();
    Reach { read: vec![dir], write, ..Reach::default() }
}

/// Taking a device from one driver and giving it to another.
fn binding(root: &Root, device: PciAddress, driver: Option<&str>) -> Reach {
    let mut reach = attributes(root, device, &["driver_override", "driver/unbind"]);
    reach.write.push(root.join("sys/bus/pci/drivers_probe"));
    let name = driver.filter(|name| is_driver_name(name));
    if let Some(name) = name.and_then(|name| drivers::spelled(root, name)) {
        reach.write.push(drivers::driver_dir(root, &name).join("bind"));
    }
    reach
}
