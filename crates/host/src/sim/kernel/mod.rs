//! The simulated kernel: IOMMU groups, drivers, VFIO and iommufd as one state machine.
//!
//! Each file is one part of the real kernel and follows its order of checks, so that the errno of
//! a call is the real one also when several things are wrong. Nothing here waits or does I/O.

pub(crate) mod access;
pub(crate) mod cdev;
pub(crate) mod drivers;
pub(crate) mod files;
pub(crate) mod hotplug;
pub(crate) mod iommufd;
pub(crate) mod owner;
pub(crate) mod sriov;
pub(crate) mod type1;
pub(crate) mod uevents;
mod vf_token;
pub(crate) mod vfio_group;
pub(crate) mod vhost;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Weak,
};

use berth_uapi::VfToken;
use rustix::io::Errno;

use self::{
    access::AccessList,
    files::{DeviceFile, FileId, GroupFile},
    iommufd::Iommufd,
    owner::Ownership,
    type1::Container,
    uevents::Queue,
    vfio_group::VfioGroup,
};
use super::{
    rule::Rule,
    topology::{DeviceModel, FeatureSpec, GroupModel, Topology, is_vfio},
};
use crate::{DmaKind, PciAddress};

/// A member of a simulated machine.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) model: DeviceModel,
    /// Set while a VFIO driver is bound.
    pub(crate) vfio: Option<VfioDevice>,
}

/// What VFIO keeps of a device.
#[derive(Debug, Default)]
pub(crate) struct VfioDevice {
    /// N of `/dev/vfio/devices/vfioN`.
    pub(crate) cdev: Option<u32>,
    /// Files with access.
    pub(crate) open_count: u32,
    /// All files, those that aren't bound yet too: unbind waits for them.
    pub(crate) files: u32,
    /// Of the cdev.
    pub(crate) access: AccessList,
    /// Of a physical function: what its virtual ones are opened by.
    pub(crate) token: Option<VfToken>,
    /// Of a virtual function: the physical one whose VFIO driver made it.
    pub(crate) made_by: Option<PciAddress>,
}

/// An IOMMU group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) model: GroupModel,
    pub(crate) members: BTreeSet<PciAddress>,
    pub(crate) ownership: Ownership,
    /// There while a member is bound to a VFIO driver: the node `/dev/vfio/N`.
    pub(crate) vfio: Option<VfioGroup>,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) features: FeatureSpec,
    unknown_drivers: Vec<String>,
    pub(crate) devices: BTreeMap<PciAddress, Device>,
    pub(crate) groups: BTreeMap<u32, Group>,
    pub(crate) containers: BTreeMap<FileId, Container>,
    pub(crate) iommufds: BTreeMap<FileId, Iommufd>,
    pub(crate) group_files: BTreeMap<FileId, GroupFile>,
    pub(crate) device_files: BTreeMap<FileId, DeviceFile>,
    pub(crate) vhost_files: BTreeMap<FileId, PciAddress>,
    /// Of `/dev/iommu`.
    pub(crate) iommu_access: AccessList,
    pub(crate) broken: BTreeSet<Rule>,
    /// Drivers whose module was removed.
    pub(crate) unloaded: BTreeSet<String>,
    /// vfio-pci's parameter `enable_sriov`.
    pub(crate) vfio_sriov: bool,
    /// Devices that stay bus masters when they are closed.
    pub(crate) masters: BTreeSet<PciAddress>,
    /// Who is told what happens to devices.
    pub(crate) subscribers: Vec<Weak<Queue>>,
    last_id: u64,
    last_instance: u64,
}

impl Kernel {
    /// The machine right after boot: host drivers bound.
    pub(crate) fn boot(topology: &Topology) -> Self {
        let mut kernel = Self {
            features: topology.features().clone(),
            unknown_drivers: topology.unknown_drivers().to_vec(),
            devices: BTreeMap::new(),
            groups: BTreeMap::new(),
            containers: BTreeMap::new(),
            iommufds: BTreeMap::new(),
            group_files: BTreeMap::new(),
            device_files: BTreeMap::new(),
            vhost_files: BTreeMap::new(),
            iommu_access: AccessList::new(),
            broken: BTreeSet::new(),
            unloaded: BTreeSet::new(),
            vfio_sriov: false,
            masters: BTreeSet::new(),
            subscribers: Vec::new(),
            last_id: 0,
            last_instance: 0,
        };
        for group in &topology.groups {
            kernel.groups.insert(group.number, Group::new(group.clone()));
        }
        for device in &topology.devices {
            kernel.boot_device(device.clone());
        }
        kernel
    }

    fn boot_device(&mut self, mut model: DeviceModel) {
        let address = model.facts.address;
        let driver = model.facts.driver.take();
        let functions = std::mem::take(&mut model.sriov_vfs);
        if let Some(driver) = driver.as_ref().filter(|driver| !is_vfio(driver))
            && !model.host_drivers.contains(driver)
        {
            model.host_drivers.push(driver.clone());
        }
        self.insert_device(model);
        if let Some(driver) = driver {
            self.force_driver(address, &driver);
        }
        if functions > 0 {
            self.make_functions(address, functions);
        }
    }

    /// Whether a rule is followed; tests break one to see that its absence is noticed.
    pub(crate) fn follows(&self, rule: Rule) -> bool {
        !self.broken.contains(&rule)
    }

    /// A number that no file, domain or group incarnation had before.
    pub(crate) fn fresh(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn dev(&self, address: PciAddress) -> Result<&Device, Errno> {
        self.devices.get(&address).ok_or(Errno::NODEV)
    }

    pub(crate) fn dev_mut(&mut self, address: PciAddress) -> Result<&mut Device, Errno> {
        self.devices.get_mut(&address).ok_or(Errno::NODEV)
    }

    pub(crate) fn group(&self, number: u32) -> Result<&Group, Errno> {
        self.groups.get(&number).ok_or(Errno::NODEV)
    }

    pub(crate) fn group_mut(&mut self, number: u32) -> Result<&mut Group, Errno> {
        self.groups.get_mut(&number).ok_or(Errno::NODEV)
    }

    /// The group of a device.
    pub(crate) fn group_of(&self, address: PciAddress) -> Result<u32, Errno> {
        self.dev(address)?.model.facts.group.ok_or(Errno::NODEV)
    }

    pub(crate) fn unknown_drivers(&self) -> &[String] {
        &self.unknown_drivers
    }

    /// Whether interrupts of devices are isolated, or the risk is accepted.
    pub(crate) fn msi_safe(&self) -> bool {
        self.features.interrupt_remapping || self.features.allow_unsafe_interrupts
    }

    /// Checks what must hold in any state; the text says what doesn't.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (number, group) in &self.groups {
            let drivers = group
                .members
                .iter()
                .filter_map(|address| self.devices.get(address))
                .filter(|device| {
                    matches!(device.model.facts.dma, DmaKind::Kernel | DmaKind::Assumed)
                })
                .count();
            let bound = self.device_files.values().filter(|file| file.is_bound_in(*number)).count();
            let held = group.vfio.as_ref().is_some_and(|vfio| vfio.container.is_some());
            let expected = drivers + bound + usize::from(held);
            if usize::try_from(group.ownership.owner_cnt) != Ok(expected) {
                return Err(format!(
                    "group {number}: owner_cnt is {}, but there are {drivers} host drivers, {bound} \
                     bound devices and {} containers",
                    group.ownership.owner_cnt,
                    u8::from(held),
                ));
            }
        }
        Ok(())
    }
}

impl Group {
    pub(crate) fn new(model: GroupModel) -> Self {
        Self { model, members: BTreeSet::new(), ownership: Ownership::idle(false), vfio: None }
    }
}
