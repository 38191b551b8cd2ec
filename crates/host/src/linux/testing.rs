//! Fake machines as directory trees: for tests, and for benches that need 10,000 devices.
//!
//! The tree has the shape of sysfs: devices lie below `sys/devices`, everything else links there.

mod attributes;
mod config;
mod health;
pub mod texts;

pub use config::ConfigBytes;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::PciAddress;

/// A tree that is being built.
#[derive(Debug)]
pub struct FakeTree {
    root: PathBuf,
    /// Where each device lies below `sys/devices`.
    places: RefCell<BTreeMap<PciAddress, String>>,
}

/// One PCI function of a fake tree.
#[derive(Debug, Clone)]
pub struct FakeDevice {
    /// Its address.
    pub address: PciAddress,
    /// The port above, added before.
    pub parent: Option<PciAddress>,
    /// Content of `config`.
    pub config: Vec<u8>,
    /// Number of its group.
    pub group: Option<u32>,
    /// Bound driver.
    pub driver: Option<String>,
    /// `driver_override`.
    pub driver_override: Option<String>,
    /// `numa_node`.
    pub numa_node: i32,
    /// `reset_method`; `None` leaves out the file and `reset`.
    pub reset_method: Option<String>,
    /// BAR 0's size; 0 for none.
    pub bar0_bytes: u64,
    /// Its physical function, added before.
    pub physical_function: Option<PciAddress>,
    /// `sriov_totalvfs`; 0 leaves it out.
    pub sriov_total: u16,
}

impl FakeDevice {
    /// A plain function without group, driver or reset.
    #[must_use]
    pub fn new(address: PciAddress, config: &ConfigBytes) -> Self {
        Self {
            address,
            parent: None,
            config: config.bytes(),
            group: None,
            driver: None,
            driver_override: None,
            numa_node: -1,
            reset_method: None,
            bar0_bytes: 0x1000,
            physical_function: None,
            sriov_total: 0,
        }
    }

    /// Puts it below a port.
    #[must_use]
    pub fn below(mut self, parent: PciAddress) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Puts it into a group.
    #[must_use]
    pub fn group(mut self, number: u32) -> Self {
        self.group = Some(number);
        self
    }

    /// Binds a driver.
    #[must_use]
    pub fn driver(mut self, name: &str) -> Self {
        self.driver = Some(name.to_owned());
        self
    }

    /// Gives it reset methods.
    #[must_use]
    pub fn resets(mut self, methods: &str) -> Self {
        self.reset_method = Some(methods.to_owned());
        self
    }
}

impl FakeTree {
    /// An empty tree with the directories that are always there.
    ///
    /// # Errors
    /// Of the file system.
    pub fn at(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        for below in [
            "sys/bus/pci/devices",
            "sys/bus/pci/drivers",
            "sys/kernel/iommu_groups",
            "sys/class/block",
            "sys/class/net",
            "proc/self",
            "proc/net",
            "lib/modules",
        ] {
            fs::create_dir_all(root.join(below))?;
        }
        Ok(Self { root, places: RefCell::default() })
    }

    /// Where the tree is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a file, with the directories above it.
    ///
    /// # Errors
    /// Of the file system.
    pub fn file(&self, below: &str, content: impl AsRef<[u8]>) -> io::Result<()> {
        let path = self.root.join(below);
        if let Some(above) = path.parent() {
            fs::create_dir_all(above)?;
        }
        fs::write(path, content)
    }

    /// Makes a link, with the directories above it. The target is taken as it is.
    ///
    /// # Errors
    /// Of the file system.
    pub fn link(&self, below: &str, target: impl AsRef<Path>) -> io::Result<()> {
        let path = self.root.join(below);
        if let Some(above) = path.parent() {
            fs::create_dir_all(above)?;
        }
        std::os::unix::fs::symlink(target, path)
    }

    /// The directory of a device, from the root.
    #[must_use]
    pub fn place(&self, address: PciAddress) -> String {
        let known = self.places.borrow().get(&address).cloned();
        known.unwrap_or_else(|| format!("pci{:04x}:{:02x}/{address}", address.domain(), 0))
    }

    /// Adds a device with its group and driver.
    ///
    /// # Errors
    /// Of the file system.
    pub fn add(&self, device: &FakeDevice) -> io::Result<()> {
        let address = device.address;
        let place = match device.parent {
            Some(parent) => format!("{}/{address}", self.place(parent)),
            None => format!("pci{:04x}:00/{address}", address.domain()),
        };
        self.places.borrow_mut().insert(address, place.clone());
        let dir = format!("sys/devices/{place}");
        fs::create_dir_all(self.root.join(&dir))?;
        self.link(&format!("sys/bus/pci/devices/{address}"), format!("../../../devices/{place}"))?;
        self.attributes(device, &dir)?;
        let up = "../".repeat(dir.split('/').count() - 1);
        self.link(&format!("{dir}/subsystem"), format!("{up}bus/pci"))?;
        if let Some(driver) = &device.driver {
            fs::create_dir_all(self.root.join(format!("sys/bus/pci/drivers/{driver}")))?;
            self.link(&format!("{dir}/driver"), format!("{up}bus/pci/drivers/{driver}"))?;
        }
        if let Some(physical) = device.physical_function {
            self.link(&format!("{dir}/physfn"), format!("{up}devices/{}", self.place(physical)))?;
        }
        if let Some(number) = device.group {
            self.link(&format!("{dir}/iommu_group"), format!("{up}kernel/iommu_groups/{number}"))?;
            self.member(number, address, &place)?;
        }
        Ok(())
    }

    fn member(&self, number: u32, address: PciAddress, place: &str) -> io::Result<()> {
        let group = format!("sys/kernel/iommu_groups/{number}");
        self.link(&format!("{group}/devices/{address}"), format!("../../../../devices/{place}"))?;
        if !self.root.join(&group).join("type").exists() {
            self.file(&format!("{group}/type"), "DMA-FQ\n")?;
            self.file(
                &format!("{group}/reserved_regions"),
                "0x00000000fee00000 0x00000000feefffff msi\n",
            )?;
        }
        Ok(())
    }
}

/// Builds a tree of `count` single-function devices, each in a group of its own: on 32-device
/// buses of as many domains as are needed, every 16th on vfio-pci. All of them can be reserved as
/// they are.
///
/// # Errors
/// Of the file system.
pub fn build_large(root: impl Into<PathBuf>, count: u32) -> io::Result<FakeTree> {
    let tree = FakeTree::at(root)?;
    let config = ConfigBytes::endpoint(0x15b3, 0x101e, 0x02_00_00).acs(0x1d, 0x1d);
    for number in 0..count {
        let [low, bus, _, _] = (number >> 5 << 8 | number & 31).to_le_bytes();
        let domain = number >> 13;
        let Some(address) = PciAddress::new(domain, bus, low, 0) else { continue };
        let mut device = FakeDevice::new(address, &config).group(number).resets("flr bus");
        if number % 16 == 0 {
            device.driver = Some("vfio-pci".to_owned());
        }
        tree.add(&device)?;
        if device.driver.is_some() {
            let node = format!("sys/devices/{}/vfio-dev/vfio{number}/dev", tree.place(address));
            tree.file(&node, format!("511:{number}\n"))?;
        }
    }
    Ok(tree)
}

/// What `/proc/PID/stat` of a process says that started at `start_time`.
#[must_use]
pub fn process_stat(pid: i32, comm: &str, start_time: u64) -> String {
    let before = "1 ".repeat(18);
    format!("{pid} ({comm}) S {before}{start_time} 4096 1\n")
}
