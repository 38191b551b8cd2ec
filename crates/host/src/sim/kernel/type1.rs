//! Containers and their type1 driver.
//!
//! # Source
//! `drivers/vfio/container.c`, `drivers/vfio/vfio_iommu_type1.c`.

use std::collections::BTreeSet;

use rustix::io::Errno;

use super::{Kernel, files::FileId, owner::GroupDomain};
use crate::sim::space::Space;

/// An open `/dev/vfio/vfio`.
#[derive(Debug)]
pub(crate) struct Container {
    /// A user's descriptor is open.
    pub(crate) open: bool,
    pub(crate) groups: BTreeSet<u32>,
    /// Set by `SET_IOMMU`: the page table's number, gone with the last group.
    pub(crate) iommu: Option<u64>,
    /// What is mapped: nothing can be without the page table.
    pub(crate) space: Space,
}

impl Container {
    pub(crate) fn iommu_driver(&self) -> bool {
        self.iommu.is_some()
    }
}

impl Kernel {
    /// Opens `/dev/vfio/vfio`.
    pub(crate) fn open_container(&mut self) -> Result<FileId, Errno> {
        if !self.features.type1 {
            return Err(Errno::NOENT);
        }
        let id = self.fresh();
        let container =
            Container { open: true, groups: BTreeSet::new(), iommu: None, space: Space::type1() };
        self.containers.insert(id, container);
        Ok(id)
    }

    /// `SET_IOMMU` with type1 v2.
    pub(crate) fn set_iommu(&mut self, id: FileId) -> Result<(), Errno> {
        let domain = self.fresh();
        let container = self.containers.get_mut(&id).ok_or(Errno::BADF)?;
        if container.groups.is_empty() || container.iommu_driver() {
            return Err(Errno::INVAL);
        }
        let groups = container.groups.clone();
        container.iommu = Some(domain);
        for group in &groups {
            if let Err(errno) = self.type1_attach(id, *group) {
                self.undo_set_iommu(id, &groups);
                return Err(errno);
            }
        }
        Ok(())
    }

    fn undo_set_iommu(&mut self, id: FileId, groups: &BTreeSet<u32>) {
        for number in groups {
            if let Ok(group) = self.group_mut(*number)
                && matches!(group.ownership.domain, GroupDomain::Paging(_))
            {
                group.ownership.detach();
            }
        }
        if let Some(container) = self.containers.get_mut(&id) {
            container.iommu = None;
            for number in groups {
                container.space.release(*number);
            }
        }
    }

    /// `vfio_iommu_type1_attach_group`: the domain first, then what could speak against it.
    pub(crate) fn type1_attach(&mut self, id: FileId, number: u32) -> Result<(), Errno> {
        let msi_safe = self.msi_safe();
        let group = self.groups.get_mut(&number).ok_or(Errno::NODEV)?;
        let container = self.containers.get_mut(&id).ok_or(Errno::BADF)?;
        let domain = container.iommu.ok_or(Errno::INVAL)?;
        let before = group.ownership;
        group.ownership.attach_group(GroupDomain::Paging(domain))?;
        let reserved = &group.model.reserved;
        let refused = if container.space.overlaps(reserved) {
            Some(Errno::INVAL)
        } else {
            (!msi_safe).then_some(Errno::PERM)
        };
        if let Some(errno) = refused {
            group.ownership = before;
            return Err(errno);
        }
        container.space.reserve(number, reserved);
        Ok(())
    }

    /// A group left: the last one takes the driver and every mapping with it.
    pub(crate) fn leave_container(&mut self, id: FileId, number: u32) {
        if let Some(container) = self.containers.get_mut(&id) {
            container.groups.remove(&number);
            if container.groups.is_empty() && container.iommu.take().is_some() {
                container.space.clear();
            }
            container.space.release(number);
            self.reap_container(id);
        }
    }

    /// Forgets a container that nothing refers to.
    pub(crate) fn reap_container(&mut self, id: FileId) {
        if self.containers.get(&id).is_some_and(|c| !c.open && c.groups.is_empty()) {
            self.containers.remove(&id);
        }
    }
}
