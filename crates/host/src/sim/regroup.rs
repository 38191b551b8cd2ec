//! Groups that get members which nothing keeps apart.

use rustix::io::Errno;

use super::host::SimHost;
use crate::{DmaKind, Grouping, PciAddress};

impl SimHost {
    /// Plugs in a copy of a device beside it, without a driver, in its group: they share it for the
    /// reason that is given. [`Self::unplug`] takes it out again.
    ///
    /// # Errors
    /// ENODEV: there is no such model, or it has no group. EEXIST: the address is taken.
    pub fn plug_beside(
        &self,
        address: PciAddress,
        like: PciAddress,
        why: &Grouping,
    ) -> Result<(), Errno> {
        let mut kernel = self.shared.kernel();
        if kernel.devices.contains_key(&address) {
            return Err(Errno::EXIST);
        }
        kernel.group_of(like)?;
        let beside = kernel.dev_mut(like)?;
        beside.model.facts.grouping = why.clone();
        let mut model = beside.model.clone();
        model.facts.address = address;
        model.facts.driver = None;
        model.facts.dma = DmaKind::None;
        model.facts.driver_override = None;
        model.facts.serial = None;
        model.facts.virtual_functions = Vec::new();
        model.facts.reset_set = Vec::new();
        model.uses = Vec::new();
        kernel.insert_device(model);
        Ok(())
    }
}
