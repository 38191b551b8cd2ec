//! One PCI function, read from its sysfs directory with few system calls.

use std::{
    ffi::CStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{fs::OFlags, io::Errno};

use super::{
    config_space::{self, ConfigSpace, STANDARD_BYTES, STEP_BYTES},
    drivers, resource,
    tree::{self, PAGE_BYTES},
};
use crate::{Bar, PciAddress};

/// What one function's directory says; relations to others are found later.
#[derive(Debug, Clone)]
pub(super) struct Function {
    pub address: PciAddress,
    /// The number of its directory: sysfs gives each one anew.
    pub instance: u64,
    pub parent: Option<PciAddress>,
    pub ids: ConfigSpace,
    pub group: Option<u32>,
    pub driver: Option<String>,
    pub driver_override: Option<String>,
    pub physical_function: Option<PciAddress>,
    pub numa_node: i32,
    pub bars: Vec<Bar>,
    pub reset_methods: Vec<String>,
    pub sriov_total: u16,
    pub sriov_autoprobe: bool,
    pub serial: Option<String>,
    pub cdev: Option<String>,
}

/// Buffers that one scan uses again for each function.
#[derive(Debug)]
pub(super) struct Reader {
    page: Box<[u8; PAGE_BYTES]>,
    link: Box<[u8; PAGE_BYTES]>,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { page: Box::new([0; PAGE_BYTES]), link: Box::new([0; PAGE_BYTES]) }
    }

    /// Reads a function below the directory of all devices.
    ///
    /// # Errors
    /// ENOENT or ENODEV when it isn't there (any more); what keeps its ids from being read: a
    /// function without them would look like another one.
    pub(super) fn read(
        &mut self,
        devices: BorrowedFd<'_>,
        address: PciAddress,
    ) -> Result<Function, Errno> {
        let name = address.to_string();
        let parent = tree::link_at(devices, &name, &mut self.link[..]).and_then(parent_of);
        let dir = tree::open_dir_at(devices, &name)?;
        let dir = dir.as_fd();
        let instance = rustix::fs::fstat(dir)?.st_ino;
        let ids = self.ids(dir)?;
        let driver = self.link_name(dir, c"driver");
        let sriov_total = self.sriov_total(dir, &ids);
        Ok(Function {
            address,
            instance,
            parent,
            group: self.link_name(dir, c"iommu_group").and_then(|name| name.parse().ok()),
            driver_override: self.driver_override(dir, driver.is_some()),
            physical_function: self.link_name(dir, c"physfn").and_then(|name| name.parse().ok()),
            numa_node: self.number(dir, c"numa_node").unwrap_or(-1),
            bars: resource::parse(self.bytes(dir, c"resource")),
            reset_methods: self.words(dir, c"reset_method"),
            sriov_total,
            sriov_autoprobe: sriov_total == 0 || self.text(dir, c"sriov_drivers_autoprobe") != "0",
            serial: serial(dir, &ids, driver.as_deref()),
            cdev: driver.as_deref().and_then(|driver| cdev(dir, driver)),
            ids,
            driver,
        })
    }

    fn ids(&mut self, dir: BorrowedFd<'_>) -> Result<ConfigSpace, Errno> {
        let parsed = tree::open_at(dir, c"config").ok().and_then(|file| {
            let count = rustix::io::pread(&file, &mut self.page[..STANDARD_BYTES], 0).ok()?;
            config_space::parse(&self.page[..count], |at, step| read_step(&file, at, step))
        });
        match parsed {
            // Virtual functions read all ones there, and so does a device that is gone.
            Some(ids) if ids.vendor != u16::MAX => Ok(ids),
            parsed => self.ids_from_attributes(dir, parsed.unwrap_or_default()),
        }
    }

    fn ids_from_attributes(
        &mut self,
        dir: BorrowedFd<'_>,
        read: ConfigSpace,
    ) -> Result<ConfigSpace, Errno> {
        let vendor = self.id(dir, c"vendor")?;
        let device = self.id(dir, c"device")?;
        let class = self.hex(dir, c"class").unwrap_or(0);
        Ok(ConfigSpace {
            vendor,
            device,
            subsystem_vendor: self.hex16(dir, c"subsystem_vendor"),
            subsystem_device: self.hex16(dir, c"subsystem_device"),
            class: class & 0x00ff_ffff,
            revision: self.hex16(dir, c"revision").to_le_bytes()[0],
            bridge: class >> 8 == 0x0604,
            multifunction: read.multifunction && read.vendor != u16::MAX,
            capabilities: read.capabilities,
        })
    }

    fn id(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<u16, Errno> {
        let text = tree::read_at(dir, name, &mut self.page[..])?;
        let text = std::str::from_utf8(text).unwrap_or_default().trim();
        u16::from_str_radix(text.trim_start_matches("0x"), 16).map_err(|_| Errno::IO)
    }

    fn sriov_total(&mut self, dir: BorrowedFd<'_>, ids: &ConfigSpace) -> u16 {
        if ids.capabilities.known && !ids.capabilities.sriov {
            return 0;
        }
        self.number(dir, c"sriov_totalvfs").unwrap_or(0)
    }

    /// `None` too while a driver is being unbound: the kernel reads it under the device's lock, which
    /// the unbind has until the device's last user goes (6.12; not in 7.3).
    fn driver_override(&mut self, dir: BorrowedFd<'_>, has_driver: bool) -> Option<String> {
        if !has_driver && !matches!(self.text(dir, c"enable"), "" | "0") {
            return None;
        }
        let text = self.text(dir, c"driver_override");
        (!text.is_empty() && text != "(null)").then(|| text.to_owned())
    }

    fn words(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Vec<String> {
        self.text(dir, name).split_ascii_whitespace().map(str::to_owned).collect()
    }

    fn number<T: std::str::FromStr>(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Option<T> {
        self.text(dir, name).parse().ok()
    }

    fn hex(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Option<u32> {
        u32::from_str_radix(self.text(dir, name).trim_start_matches("0x"), 16).ok()
    }

    fn hex16(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> u16 {
        self.hex(dir, name).and_then(|value| u16::try_from(value).ok()).unwrap_or(0)
    }

    fn text(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> &str {
        std::str::from_utf8(self.bytes(dir, name)).unwrap_or("").trim_end()
    }

    fn bytes(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> &[u8] {
        tree::read_at(dir, name, &mut self.page[..]).unwrap_or(&[])
    }

    fn link_name(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Option<String> {
        tree::link_name_at(dir, name, &mut self.link[..]).map(str::to_owned)
    }
}

fn read_step(file: &OwnedFd, at: u16, step: &mut [u8; STEP_BYTES]) -> bool {
    matches!(rustix::io::pread(file, &mut step[..], u64::from(at)), Ok(STEP_BYTES))
}

/// The port above, from the target of the link `sys/bus/pci/devices/ADDRESS`.
fn parent_of(target: &str) -> Option<PciAddress> {
    let mut names = target.rsplit('/');
    names.next()?;
    names.next()?.parse().ok()
}

fn serial(dir: BorrowedFd<'_>, ids: &ConfigSpace, driver: Option<&str>) -> Option<String> {
    if let Some(number) = ids.capabilities.serial {
        let bytes = number.to_be_bytes().map(|byte| format!("{byte:02x}"));
        return Some(bytes.join("-"));
    }
    if driver != Some("nvme") {
        return None;
    }
    let mut serial = None;
    tree::each_name_at(dir, "nvme", |controller| {
        serial = tree::text_at(dir, format!("nvme/{controller}/serial"));
    });
    serial.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The node of a device's cdev, where its driver is one of VFIO's.
pub(super) fn cdev(dir: BorrowedFd<'_>, driver: &str) -> Option<String> {
    if !drivers::is_vfio(driver) {
        return None;
    }
    let mut found = None;
    tree::each_name_at(dir, "vfio-dev", |name| {
        found = Some(format!("/dev/vfio/devices/{name}"));
    });
    found
}

/// Opens the directory of all PCI functions.
pub(super) fn open_devices(root: &tree::Root) -> Result<OwnedFd, crate::HostError> {
    let path = root.join("sys/bus/pci/devices");
    rustix::fs::open(
        &path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|errno| tree::file_error("open", &path, errno))
}
