//! Devices that come and go.

use rustix::io::Errno;

use super::{Device, Group, Kernel};
use crate::{
    PciAddress,
    sim::topology::{DeviceModel, GroupModel},
};

impl Kernel {
    /// A device appears, without a driver, in its group; the group is made when it isn't there.
    pub(crate) fn insert_device(&mut self, mut model: DeviceModel) {
        let address = model.facts.address;
        self.last_instance += 1;
        model.facts.instance = Some(self.last_instance);
        if let Some(number) = model.facts.group {
            let group =
                self.groups.entry(number).or_insert_with(|| Group::new(GroupModel::new(number)));
            group.members.insert(address);
            let direct = group.model.reserved.iter().any(|range| range.kind == "direct");
            group.ownership.firmware_1to1 |= model.firmware_1to1 || direct;
        }
        self.devices.insert(address, Device { model, vfio: None });
        self.tell("add", address);
    }

    /// A device is gone. Its driver is unbound first, which waits like any unbind.
    pub(crate) fn remove_device(&mut self, address: PciAddress) -> Result<(), Errno> {
        if self.dev(address)?.model.facts.driver.is_some() {
            self.unbind_driver(address)?;
        }
        let Some(device) = self.devices.remove(&address) else { return Err(Errno::NODEV) };
        if let Some(number) = device.model.facts.group
            && let Some(group) = self.groups.get_mut(&number)
        {
            group.members.remove(&address);
            if group.members.is_empty() {
                self.groups.remove(&number);
            }
        }
        for other in self.devices.values_mut() {
            other.model.facts.virtual_functions.retain(|function| *function != address);
            other.model.facts.reset_set.retain(|member| *member != address);
        }
        self.tell("remove", address);
        Ok(())
    }

    /// The lowest group number that is free: numbers are used again.
    pub(crate) fn free_group(&self) -> u32 {
        (0..).find(|number| !self.groups.contains_key(number)).unwrap_or(u32::MAX)
    }
}
