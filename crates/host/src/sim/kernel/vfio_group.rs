//! `/dev/vfio/N`: one opener, one container.
//!
//! # Source
//! `drivers/vfio/group.c`.

use berth_uapi::VfToken;
use rustix::io::Errno;

use super::{
    Kernel,
    access::AccessList,
    files::{DeviceFile, FileId, GroupFile, Via},
    owner::Token,
};
use crate::{PciAddress, sim::rule::Rule};

/// The VFIO side of a group, from its first VFIO-bound member to its last.
#[derive(Debug)]
pub(crate) struct VfioGroup {
    /// Which life of the node this is.
    pub(crate) incarnation: u64,
    pub(crate) opened_file: Option<FileId>,
    pub(crate) container: Option<FileId>,
    pub(crate) cdev_open_cnt: u32,
    /// Of the node.
    pub(crate) access: AccessList,
}

impl VfioGroup {
    pub(crate) fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            opened_file: None,
            container: None,
            cdev_open_cnt: 0,
            access: AccessList::new(),
        }
    }
}

impl Kernel {
    /// Opens `/dev/vfio/N`.
    pub(crate) fn open_group(&mut self, number: u32) -> Result<FileId, Errno> {
        if !self.features.type1 {
            return Err(Errno::NOENT);
        }
        let id = self.fresh();
        let alone = self.follows(Rule::GroupOpensOnce);
        let group = self.groups.get_mut(&number).ok_or(Errno::NOENT)?;
        let vfio = group.vfio.as_mut().ok_or(Errno::NOENT)?;
        if vfio.cdev_open_cnt > 0 || (alone && vfio.opened_file.is_some()) {
            return Err(Errno::BUSY);
        }
        vfio.opened_file = Some(id);
        let file = GroupFile { number, incarnation: vfio.incarnation, references: 1 };
        self.group_files.insert(id, file);
        Ok(id)
    }

    /// The live VFIO group of a file; ENODEV when its last member left VFIO since.
    pub(crate) fn vfio_of(&mut self, file: FileId) -> Result<(u32, &mut VfioGroup), Errno> {
        let file = self.group_files.get(&file).ok_or(Errno::BADF)?;
        let (number, incarnation) = (file.number, file.incarnation);
        let vfio = self.groups.get_mut(&number).and_then(|group| group.vfio.as_mut());
        match vfio {
            Some(vfio) if vfio.incarnation == incarnation => Ok((number, vfio)),
            _ => Err(Errno::NODEV),
        }
    }

    /// `GROUP_GET_STATUS`: whether VIABLE is set.
    pub(crate) fn group_viable(&mut self, file: FileId) -> Result<bool, Errno> {
        let (number, vfio) = self.vfio_of(file)?;
        let has_iommu = vfio.container.is_some();
        Ok(has_iommu || !self.group(number)?.ownership.claimed())
    }

    /// `SET_CONTAINER`.
    pub(crate) fn set_container(&mut self, file: FileId, container: FileId) -> Result<(), Errno> {
        let (number, vfio) = self.vfio_of(file)?;
        if vfio.container.is_some() {
            return Err(Errno::INVAL);
        }
        let token = Token::VfioGroup(vfio.incarnation);
        let driver = self.containers.get(&container).ok_or(Errno::BADFD)?.iommu_driver();
        self.group_mut(number)?.ownership.claim_group(token)?;
        if driver {
            let attached = self.type1_attach(container, number);
            if attached.is_err() {
                self.group_mut(number)?.ownership.release_group();
            }
            attached?;
        }
        let (_, vfio) = self.vfio_of(file)?;
        vfio.container = Some(container);
        if let Some(container) = self.containers.get_mut(&container) {
            container.groups.insert(number);
        }
        Ok(())
    }

    /// `UNSET_CONTAINER`.
    pub(crate) fn unset_container(&mut self, file: FileId) -> Result<(), Errno> {
        let (number, vfio) = self.vfio_of(file)?;
        if vfio.container.is_none() {
            return Err(Errno::INVAL);
        }
        let open = self
            .device_files
            .values()
            .any(|open| matches!(open.via, Via::Group { file: through } if through == file));
        if open {
            return Err(Errno::BUSY);
        }
        self.detach_container(number);
        Ok(())
    }

    /// Whether nobody owns a group: its node opens and VIABLE is set. Without a node only host
    /// drivers can own it, and cdevs where the kernel has no group nodes.
    pub(crate) fn probe_free(&mut self, number: u32) -> Result<bool, Errno> {
        match self.open_group(number) {
            Ok(file) => {
                let viable = self.group_viable(file);
                self.put_group_file(file);
                viable
            }
            Err(Errno::BUSY) => Ok(false),
            Err(_) => {
                let group = self.groups.get(&number).ok_or(Errno::NOENT)?;
                let cdevs = group.vfio.as_ref().is_some_and(|vfio| vfio.cdev_open_cnt > 0);
                Ok(!cdevs && !group.ownership.claimed())
            }
        }
    }

    /// `GET_DEVICE_FD` of a name alone.
    pub(crate) fn get_device_fd(
        &mut self,
        file: FileId,
        address: PciAddress,
    ) -> Result<FileId, Errno> {
        self.get_device_fd_by(file, address, None)
    }

    /// `GET_DEVICE_FD`, of a name with `vf_token=` too.
    pub(crate) fn get_device_fd_by(
        &mut self,
        file: FileId,
        address: PciAddress,
        token: Option<VfToken>,
    ) -> Result<FileId, Errno> {
        let (number, vfio) = self.vfio_of(file)?;
        let container = vfio.container;
        let member = self.group(number)?.members.contains(&address);
        if !member || self.dev(address)?.vfio.is_none() {
            return Err(Errno::NODEV);
        }
        self.check_token(address, token)?;
        let container = container.ok_or(Errno::INVAL)?;
        if !self.containers.get(&container).is_some_and(|container| container.iommu_driver()) {
            return Err(Errno::INVAL);
        }
        if let Some(file) = self.group_files.get_mut(&file) {
            file.references += 1;
        }
        let id = self.fresh();
        self.device_files.insert(id, DeviceFile { address, via: Via::Group { file } });
        if let Some(vfio) = self.dev_mut(address)?.vfio.as_mut() {
            vfio.open_count += 1;
            vfio.files += 1;
        }
        Ok(id)
    }

    /// The last reference of a group file is gone.
    pub(crate) fn release_group_file(&mut self, id: FileId) {
        if let Ok((number, vfio)) = self.vfio_of(id) {
            if vfio.opened_file == Some(id) {
                vfio.opened_file = None;
            }
            if vfio.container.is_some() && self.follows(Rule::LastCloseReleases) {
                self.detach_container(number);
            }
        }
        self.group_files.remove(&id);
    }

    /// Takes a group out of its container and gives the group's DMA back.
    pub(crate) fn detach_container(&mut self, number: u32) {
        let Some(group) = self.groups.get_mut(&number) else { return };
        let Some(vfio) = group.vfio.as_mut() else { return };
        let Some(container) = vfio.container.take() else { return };
        group.ownership.detach();
        group.ownership.release_group();
        self.leave_container(container, number);
    }
}
