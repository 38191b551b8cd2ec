//! Drivers: match, `bind`, `drivers_probe`, `unbind`, `driver_override`.
//!
//! # Source
//! `drivers/base/{bus,dd}.c`, `drivers/pci/pci-driver.c`, `vfio_pci_core_register_device`.

use rustix::io::Errno;

use super::{Kernel, VfioDevice, vfio_group::VfioGroup};
use crate::{
    DmaKind, PciAddress,
    sim::{
        rule::Rule,
        topology::{dma_kind, is_vfio},
    },
};

/// Why a driver didn't get a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeError {
    /// Before the driver was asked: `drivers_probe` answers EINVAL for it.
    Core(Errno),
    /// The driver said no: `drivers_probe` succeeds and nothing is bound.
    Driver(Errno),
}

impl Kernel {
    /// What a driver would do with the group's DMA.
    pub(crate) fn kind(&self, driver: &str) -> DmaKind {
        dma_kind(Some(driver), self.unknown_drivers())
    }

    /// Whether a driver accepts a device: the override alone when there is one.
    fn matches(&self, address: PciAddress, driver: &str) -> bool {
        let Ok(device) = self.dev(address) else { return false };
        match &device.model.facts.driver_override {
            Some(only) if only == driver => {
                ["vfio-pci", "pci-stub"].contains(&driver)
                    || driver == device.model.facts.vfio_driver
                    || device.model.host_drivers.iter().any(|known| known == driver)
            }
            Some(_) => false,
            None => device.model.host_drivers.iter().any(|known| known == driver),
        }
    }

    /// A write to `drivers/D/bind`.
    pub(crate) fn bind_driver(&mut self, address: PciAddress, driver: &str) -> Result<(), Errno> {
        if !self.devices.contains_key(&address) || !self.matches(address, driver) {
            return Err(Errno::NODEV);
        }
        if self.dev(address)?.model.facts.driver.is_some() {
            return Err(Errno::BUSY);
        }
        self.really_probe(address, driver).map_err(|error| match error {
            ProbeError::Core(errno) | ProbeError::Driver(errno) => errno,
        })
    }

    /// A write to `drivers_probe`: nothing bound is no error, and every error is EINVAL.
    pub(crate) fn drivers_probe(&mut self, address: PciAddress) -> Result<(), Errno> {
        let device = self.dev(address)?;
        if device.model.facts.driver.is_some() {
            return Ok(());
        }
        let candidates: Vec<String> = match &device.model.facts.driver_override {
            Some(only) => vec![only.clone()],
            None => device.model.host_drivers.clone(),
        };
        for driver in candidates {
            if !self.matches(address, &driver) {
                continue;
            }
            match self.really_probe(address, &driver) {
                Ok(()) => return Ok(()),
                Err(ProbeError::Core(_)) => return Err(Errno::INVAL),
                Err(ProbeError::Driver(_)) => {}
            }
        }
        Ok(())
    }

    /// Ownership first, then the driver's own checks.
    fn really_probe(&mut self, address: PciAddress, driver: &str) -> Result<(), ProbeError> {
        let uses_dma = matches!(self.kind(driver), DmaKind::Kernel | DmaKind::Assumed);
        let checked = self.follows(Rule::OwnedRefusesDrivers);
        if uses_dma && let Ok(number) = self.group_of(address) {
            let group = self.group_mut(number).map_err(ProbeError::Core)?;
            match group.ownership.use_default_domain() {
                Err(errno) if checked => return Err(ProbeError::Core(errno)),
                Err(_) => group.ownership.owner_cnt += 1,
                Ok(()) => {}
            }
        }
        if is_vfio(driver) {
            self.vfio_register(address).map_err(ProbeError::Driver)?;
        }
        let kind = self.kind(driver);
        let device = self.dev_mut(address).map_err(ProbeError::Core)?;
        device.model.facts.driver = Some(driver.to_owned());
        device.model.facts.dma = kind;
        self.tell("bind", address);
        Ok(())
    }

    /// Binds as at boot, whatever the group's state.
    pub(crate) fn force_driver(&mut self, address: PciAddress, driver: &str) {
        // A driver of the file that can't have the device leaves it without one, as at a boot.
        let _probed = self.really_probe(address, driver);
    }

    fn vfio_register(&mut self, address: PciAddress) -> Result<(), Errno> {
        let device = self.dev(address)?;
        if device.model.facts.bridge {
            return Err(Errno::INVAL);
        }
        if !device.model.facts.virtual_functions.is_empty() {
            return Err(Errno::BUSY);
        }
        let number = device.model.facts.group.ok_or(Errno::INVAL)?;
        if !device.model.coherent {
            return Err(Errno::INVAL);
        }
        let cdev = (self.features.cdev && self.features.iommufd).then(|| self.free_cdev());
        let incarnation = self.fresh();
        self.group_mut(number)?.vfio.get_or_insert_with(|| VfioGroup::new(incarnation));
        let facts = &self.dev(address)?.model.facts;
        let on_vfio = |physical: &PciAddress| self.dev(*physical).is_ok_and(|it| it.vfio.is_some());
        let made_by = facts.physical_function.filter(on_vfio);
        let token = (facts.sriov_total > 0).then(|| self.unknown_token());
        let vfio = VfioDevice { cdev, token, made_by, ..VfioDevice::default() };
        self.dev_mut(address)?.vfio = Some(vfio);
        Ok(())
    }

    fn free_cdev(&self) -> u32 {
        let used: std::collections::BTreeSet<u32> =
            self.devices.values().filter_map(|d| d.vfio.as_ref()?.cdev).collect();
        (0..).find(|number| !used.contains(number)).unwrap_or_default()
    }

    /// The end of a write to `unbind`, once nobody has the device open.
    pub(crate) fn unbind_driver(&mut self, address: PciAddress) -> Result<(), Errno> {
        if self.dev(address)?.vfio.is_some() {
            // `vfio_pci_core_unregister_device` takes away what it made.
            for function in self.dev(address)?.model.facts.virtual_functions.clone() {
                self.remove_device(function)?;
            }
        }
        let device = self.dev_mut(address)?;
        let Some(driver) = device.model.facts.driver.take() else { return Err(Errno::NODEV) };
        let kind = std::mem::replace(&mut device.model.facts.dma, DmaKind::None);
        let was_vfio = device.vfio.take().is_some();
        let Ok(number) = self.group_of(address) else {
            self.tell("unbind", address);
            return Ok(());
        };
        if matches!(kind, DmaKind::Kernel | DmaKind::Assumed) {
            self.group_mut(number)?.ownership.unuse_default_domain();
        }
        if was_vfio || is_vfio(&driver) {
            self.vfio_unregister(number);
        }
        self.tell("unbind", address);
        Ok(())
    }

    /// The last VFIO member takes the node with it, and revokes who has it open.
    fn vfio_unregister(&mut self, number: u32) {
        let Ok(group) = self.group(number) else { return };
        let left = group
            .members
            .iter()
            .any(|member| self.devices.get(member).is_some_and(|device| device.vfio.is_some()));
        if left {
            return;
        }
        self.detach_container(number);
        if let Ok(group) = self.group_mut(number) {
            group.vfio = None;
        }
    }

    /// A write to `driver_override`.
    pub(crate) fn set_override(
        &mut self,
        address: PciAddress,
        driver: Option<&str>,
    ) -> Result<(), Errno> {
        self.dev_mut(address)?.model.facts.driver_override = driver.map(str::to_owned);
        Ok(())
    }
}
