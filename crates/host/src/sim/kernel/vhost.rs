//! Host drivers with a domain of their own, and the node through which a process makes them have it.
//!
//! # Source
//! `drivers/vhost/vdpa.c`: `vhost_vdpa_open`, `vhost_vdpa_release`.

use rustix::io::Errno;

use super::{Kernel, files::FileId, owner::GroupDomain};
use crate::{DmaKind, PciAddress, PrivateDomain};

impl Kernel {
    /// Opens the vhost node of a device, whose host driver attaches a domain of its own.
    pub(crate) fn open_vhost(&mut self, address: PciAddress) -> Result<FileId, Errno> {
        if !self.on_host_driver(address) {
            return Err(Errno::NOENT);
        }
        let number = self.group_of(address)?;
        let group = self.group_mut(number)?;
        let members = group.members.len();
        group.ownership.attach_device(address, members)?;
        let id = self.fresh();
        self.vhost_files.insert(id, address);
        Ok(id)
    }

    /// Closes it: the default domain is back.
    pub(crate) fn close_vhost(&mut self, id: FileId) {
        let Some(address) = self.vhost_files.remove(&id) else { return };
        let group = self.group_of(address).and_then(|number| self.group_mut(number));
        if let Ok(group) = group {
            group.ownership.detach();
        }
    }

    /// The path of the node, while it is open.
    pub(crate) fn vhost_node(&self, address: PciAddress) -> Option<String> {
        let (id, _) = self.vhost_files.iter().find(|(_, device)| **device == address)?;
        Some(format!("/dev/vhost-vdpa-{id}"))
    }

    /// The domain of its own that a device's host driver has; who keeps it is not known here.
    pub(crate) fn private_domain(&self, address: PciAddress) -> Option<PrivateDomain> {
        let group = self.group_of(address).and_then(|number| self.group(number)).ok()?;
        let own = group.ownership.domain == GroupDomain::Private(address);
        let node = self.vhost_node(address);
        (own && self.on_host_driver(address))
            .then_some(PrivateDomain { node, processes: Vec::new() })
    }

    fn on_host_driver(&self, address: PciAddress) -> bool {
        let kind = self.dev(address).map(|device| device.model.facts.dma);
        matches!(kind, Ok(DmaKind::Kernel | DmaKind::Assumed))
    }
}
