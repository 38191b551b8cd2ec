//! Virtual functions: `sriov_numvfs`.
//!
//! # Source
//! `sriov_numvfs_store` in `drivers/pci/iov.c`.

use rustix::io::Errno;

use super::Kernel;
use crate::{DmaKind, PciAddress, sim::topology::DeviceModel};

impl Kernel {
    /// A write to `sriov_numvfs`, with `sriov_drivers_autoprobe` off.
    pub(crate) fn set_functions(&mut self, address: PciAddress, count: u16) -> Result<(), Errno> {
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
        if facts.driver.is_none() {
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
        model.host_drivers = vf.drivers;
        model.uses = Vec::new();
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
