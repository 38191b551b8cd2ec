//! Where the nodes of VFIO and iommufd are, as sysfs tells.

use std::os::fd::AsFd as _;

use rustix::io::Errno;

use super::{
    drivers::is_vfio,
    pci,
    procs::is_node,
    tree::{self, Root, file_error},
};
use crate::{HostError, Node, PciAddress};

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Its path on the running machine.
    pub(super) path: String,
    /// Major and minor number.
    pub(super) number: (u32, u32),
}

/// Finds a node.
///
/// # Errors
/// ENOENT when there is none, [`HostError::NoDevice`] when its device is gone.
pub(super) fn find(root: &Root, node: Node) -> Result<Place, HostError> {
    let (path, below) = match node {
        Node::Cdev(device) => {
            let name = cdev_of(root, device)?;
            let below = format!("sys/bus/pci/devices/{device}/vfio-dev/{name}/dev");
            (format!("/dev/vfio/devices/{name}"), below)
        }
        Node::Group(group) => (format!("/dev/vfio/{group}"), format!("sys/class/vfio/{group}/dev")),
        Node::Iommu => ("/dev/iommu".to_owned(), "sys/class/misc/iommu/dev".to_owned()),
        Node::Container => ("/dev/vfio/vfio".to_owned(), "sys/class/misc/vfio/dev".to_owned()),
    };
    let file = root.join(&below);
    let text = std::fs::read_to_string(&file)
        .map_err(|error| file_error("read", &file, errno_of(&error)))?;
    let number = number(&text).ok_or_else(|| file_error("read", &file, Errno::INVAL))?;
    Ok(Place { path, number })
}

/// The nodes by which a device can be open: its group's and its cdev. Asked of every device of VFIO's
/// at each scan, so that nothing else is read.
pub(super) fn leading_to(root: &Root, device: PciAddress) -> Result<Vec<String>, HostError> {
    let dir = tree::open_dir(&root.device(device)).map_err(|_| HostError::NoDevice(device))?;
    let mut link = vec![0; tree::PAGE_BYTES];
    let group = tree::link_name_at(&dir, "iommu_group", &mut link);
    let group = group.map(|number| format!("/dev/vfio/{number}"));
    let driver = tree::link_name_at(&dir, "driver", &mut link);
    let cdev = driver.and_then(|driver| pci::cdev(dir.as_fd(), driver));
    Ok(group.into_iter().chain(cdev).filter(|node| is_node(node)).collect())
}

/// The name of a device's cdev: another one after each bind.
fn cdev_of(root: &Root, device: PciAddress) -> Result<String, HostError> {
    let dir = root.device(device);
    let names = match tree::names_in(&dir.join("vfio-dev")) {
        Err(Errno::NOENT) if !dir.exists() => return Err(HostError::NoDevice(device)),
        found => found.map_err(|errno| file_error("find", dir.join("vfio-dev"), errno))?,
    };
    let missing = || file_error("find", dir.join("vfio-dev"), Errno::NOENT);
    names.into_iter().next().ok_or_else(missing)
}

/// Whether VFIO has a device open, also one that its driver is just being unbound from.
///
/// # Kernel
/// VFIO enables a device at its first open and disables it at the last close; its drivers alone
/// leave it disabled, while host drivers enable it.
pub(super) fn in_use(root: &Root, device: PciAddress) -> Result<bool, HostError> {
    match driver_of(root, device) {
        Some(driver) if !is_vfio(&driver) => Ok(false),
        _ => is_enabled(root, device),
    }
}

/// Whether a driver is being unbound from a device and waits: it isn't its driver any more, and has
/// the device enabled still. True also of one that a driver left enabled.
///
/// # Kernel
/// `__device_release_driver` removes the link before it calls the driver's `remove`, which on vfio-pci
/// waits for the last close. `unbind` has the device's lock meanwhile.
pub(super) fn unbind_waits(root: &Root, device: PciAddress) -> Result<bool, HostError> {
    Ok(driver_of(root, device).is_none() && is_enabled(root, device)?)
}

fn driver_of(root: &Root, device: PciAddress) -> Option<String> {
    let link = std::fs::read_link(root.device(device).join("driver")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

fn is_enabled(root: &Root, device: PciAddress) -> Result<bool, HostError> {
    let dir = root.device(device);
    let file = dir.join("enable");
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok(text.trim() != "0"),
        Err(_) if !dir.exists() => Err(HostError::NoDevice(device)),
        Err(error) => Err(file_error("read", &file, errno_of(&error))),
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// `MAJOR:MINOR`.
fn number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{ConfigBytes, FakeDevice, FakeTree};

    #[test]
    fn a_device_is_in_use_while_a_vfio_driver_has_it_enabled() {
        let dir = tempfile::tempdir().unwrap();
        let tree = FakeTree::at(dir.path()).unwrap();
        let root = Root::new(dir.path());
        let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
        let devices = [("vfio-pci", "0000:00:05.0"), ("nvme", "0000:00:06.0")];
        for (driver, address) in devices {
            let device: PciAddress = address.parse().unwrap();
            tree.add(&FakeDevice::new(device, &config).group(8).driver(driver)).unwrap();
            for (text, used) in [("0\n", false), ("1\n", true), ("2\n", true)] {
                tree.file(&format!("sys/devices/pci0000:00/{address}/enable"), text).unwrap();
                assert_eq!(in_use(&root, device), Ok(used && driver == "vfio-pci"), "{driver}");
            }
        }
        let gone = "0000:00:07.0".parse().unwrap();
        assert_eq!(in_use(&root, gone), Err(HostError::NoDevice(gone)));
    }

    #[test]
    fn an_unbind_waits_while_a_device_without_a_driver_is_enabled() {
        let dir = tempfile::tempdir().unwrap();
        let tree = FakeTree::at(dir.path()).unwrap();
        let root = Root::new(dir.path());
        let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
        let bare: PciAddress = "0000:00:05.0".parse().unwrap();
        let driven: PciAddress = "0000:00:06.0".parse().unwrap();
        tree.add(&FakeDevice::new(bare, &config).group(8)).unwrap();
        tree.add(&FakeDevice::new(driven, &config).group(9).driver("vfio-pci")).unwrap();
        for (text, on) in [("0\n", false), ("1\n", true)] {
            for device in [bare, driven] {
                let file = format!("sys/devices/pci0000:00/{device}/enable");
                tree.file(&file, text).unwrap();
                assert_eq!(unbind_waits(&root, device), Ok(on && device == bare), "{device}");
                assert_eq!(in_use(&root, device), Ok(on), "{device}");
            }
        }
        let gone = "0000:00:07.0".parse().unwrap();
        assert_eq!(unbind_waits(&root, gone), Err(HostError::NoDevice(gone)));
    }

    #[test]
    fn nodes_are_where_sysfs_says() {
        let dir = tempfile::tempdir().unwrap();
        let tree = FakeTree::at(dir.path()).unwrap();
        let root = Root::new(dir.path());
        let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
        let device: PciAddress = "0000:00:05.0".parse().unwrap();
        tree.add(&FakeDevice::new(device, &config).group(8)).unwrap();
        let dev = "sys/devices/pci0000:00/0000:00:05.0/vfio-dev/vfio3/dev";
        tree.file(dev, "511:3\n").unwrap();
        tree.file("sys/class/vfio/8/dev", "243:0\n").unwrap();
        tree.file("sys/class/misc/iommu/dev", "nonsense\n").unwrap();
        let place = |path: &str, number| Ok(Place { path: path.to_owned(), number });
        assert_eq!(find(&root, Node::Cdev(device)), place("/dev/vfio/devices/vfio3", (511, 3)));
        assert_eq!(find(&root, Node::Group(8)), place("/dev/vfio/8", (243, 0)));
        for (node, errno) in [
            (Node::Iommu, Errno::INVAL),
            (Node::Container, Errno::NOENT),
            (Node::Group(9), Errno::NOENT),
        ] {
            let found = find(&root, node).unwrap_err().errno();
            assert_eq!(found, Some(errno.raw_os_error()), "{node}");
        }
    }
}
