//! Virtual functions: `sriov_numvfs` and `sriov_drivers_autoprobe`.
//!
//! # Source
//! `sriov_numvfs_store` and `sriov_drivers_autoprobe_store` in `drivers/pci/iov.c`,
//! `vfio_pci_sriov_configure` in `drivers/vfio/pci/vfio_pci.c`, `vfio_pci_bus_notifier` in
//! `drivers/vfio/pci/vfio_pci_core.c`.

use rustix::io::Errno;

use super::Kernel;
use crate::{
    Attribute, DmaKind, Isolation, PciAddress,
    sim::topology::{DeviceModel, is_vfio},
};

impl Kernel {
    /// A write to one of the two attributes.
    pub(crate) fn write_sriov(
        &mut self,
        address: PciAddress,
        attribute: &Attribute,
        value: &str,
    ) -> Result<(), Errno> {
        let number: u16 = value.parse().map_err(|_| Errno::INVAL)?;
        if *attribute == Attribute::Vfs {
            return self.set_functions(address, number);
        }
        if self.dev(address)?.model.facts.sriov_total == 0 {
            return Err(Errno::NOENT);
        }
        self.dev_mut(address)?.model.facts.sriov_autoprobe = number != 0;
        Ok(())
    }

    fn set_functions(&mut self, address: PciAddress, count: u16) -> Result<(), Errno> {
        let facts = &self.dev(address)?.model.facts;
        if facts.sriov_total == 0 {
            return Err(Errno::NOENT);
        }
        if count > facts.sriov_total {
            return Err(Errno::RANGE);
        }
        let present = facts.virtual_functions.clone();
        if usize::from(count) == present.len() {
            return Ok(());
        }
        // No driver, or one without `sriov_configure`; vfio-pci refuses unless `enable_sriov` is set.
        let on_vfio = facts.driver.as_deref().is_some_and(is_vfio);
        let makes = |driver: &str| driver != "pci-stub" && (!is_vfio(driver) || self.vfio_sriov);
        if !facts.driver.as_deref().is_some_and(makes) {
            return Err(Errno::NOENT);
        }
        if count == 0 {
            for function in present {
                self.remove_device(function)?;
            }
            return Ok(());
        }
        if !present.is_empty() {
            return Err(Errno::BUSY);
        }
        self.make_functions(address, count);
        if on_vfio {
            for function in self.dev(address)?.model.facts.virtual_functions.clone() {
                self.set_override(function, Some("vfio-pci"))?;
            }
        }
        if self.dev(address)?.model.facts.sriov_autoprobe {
            for function in self.dev(address)?.model.facts.virtual_functions.clone() {
                // What no driver takes is left without one.
                let _unbound = self.drivers_probe(function);
            }
        }
        Ok(())
    }

    /// Makes virtual functions without drivers, each in a group of its own.
    pub(crate) fn make_functions(&mut self, physical: PciAddress, count: u16) {
        for index in 0..count {
            let number = self.free_group();
            let Some(model) = self.function_model(physical, index, number) else { continue };
            let address = model.facts.address;
            self.insert_device(model);
            if let Ok(device) = self.dev_mut(physical) {
                device.model.facts.virtual_functions.push(address);
            }
        }
    }

    fn function_model(&self, physical: PciAddress, index: u16, group: u32) -> Option<DeviceModel> {
        let parent = &self.devices.get(&physical)?.model;
        let vf = parent.vf.clone()?;
        let mut model = parent.clone();
        model.facts.address = routed(physical, vf.offset + index * vf.stride)?;
        model.facts.group = parent.facts.group.map(|_| group);
        model.facts.device = vf.device;
        model.facts.device_name = vf.device_name;
        model.facts.serial = None;
        model.facts.driver = None;
        model.facts.dma = DmaKind::None;
        model.facts.driver_override = None;
        model.facts.vfio_driver = vf.vfio_driver.unwrap_or_else(|| "vfio-pci".to_owned());
        model.facts.physical_function = Some(physical);
        model.facts.virtual_functions = Vec::new();
        model.facts.sriov_total = 0;
        model.facts.reset_methods = vec!["flr".to_owned()];
        model.facts.reset_set = Vec::new();
        model.facts.isolation = model.facts.isolation.map(|of| Isolation { acs: None, ..of });
        model.host_drivers = vf.drivers;
        model.uses = Vec::new();
        // It has no link: the physical function ends it.
        model.health.link = None;
        model.vf = None;
        Some(model)
    }
}

/// The address that is `offset` routing ids after another.
fn routed(from: PciAddress, offset: u16) -> Option<PciAddress> {
    let id =
        u16::from(from.bus()) << 8 | u16::from(from.device()) << 3 | u16::from(from.function());
    let [bus, slot] = id.checked_add(offset)?.to_be_bytes();
    PciAddress::new(from.domain(), bus, slot >> 3, slot & 7)
}
