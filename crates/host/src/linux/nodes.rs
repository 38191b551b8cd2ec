//! Where the nodes of VFIO and iommufd are, as sysfs tells.

use rustix::io::Errno;

use super::{
    drivers::is_vfio,
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

/// Whether VFIO has a device open.
///
/// # Kernel
/// VFIO enables a device at its first open and disables it at the last close; its drivers alone
/// leave it disabled, while host drivers enable it.
pub(super) fn in_use(root: &Root, device: PciAddress) -> Result<bool, HostError> {
    let dir = root.device(device);
    let link = std::fs::read_link(dir.join("driver")).ok();
    let driver = link.as_deref().and_then(|target| target.file_name()?.to_str());
    if dir.exists() && !driver.is_some_and(is_vfio) {
        return Ok(false);
    }
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
