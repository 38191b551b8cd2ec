//! `/dev/vfio/devices/vfioN`: open claims nothing, `BIND` makes a context the owner.
//!
//! # Source
//! `drivers/vfio/device_cdev.c`, `drivers/iommu/iommufd/device.c`.

use berth_uapi::VfToken;
use rustix::io::Errno;

use super::{
    Kernel,
    files::{Bound, DeviceFile, FileId, Via},
    iommufd::Object,
    owner::Token,
};
use crate::{PciAddress, sim::rule::Rule};

impl Kernel {
    /// Opens the cdev of a device: any number of times, beside anything.
    pub(crate) fn open_cdev(&mut self, address: PciAddress) -> Result<FileId, Errno> {
        let id = self.fresh();
        let device = self.devices.get_mut(&address).ok_or(Errno::NOENT)?;
        let vfio = device.vfio.as_mut().ok_or(Errno::NOENT)?;
        if vfio.cdev.is_none() {
            return Err(Errno::NOENT);
        }
        vfio.files += 1;
        self.device_files.insert(id, DeviceFile { address, via: Via::Cdev { bound: None } });
        Ok(id)
    }

    /// `BIND_IOMMUFD` without a token: answers the device's id in the context.
    pub(crate) fn bind_iommufd(&mut self, file: FileId, ctx: FileId) -> Result<u32, Errno> {
        self.bind_iommufd_by(file, ctx, None)
    }

    /// `BIND_IOMMUFD`, with a VF token too.
    pub(crate) fn bind_iommufd_by(
        &mut self,
        file: FileId,
        ctx: FileId,
        token: Option<VfToken>,
    ) -> Result<u32, Errno> {
        let (address, via) = {
            let file = self.device_file(file)?;
            (file.address, file.via)
        };
        let Via::Cdev { bound } = via else { return Err(Errno::INVAL) };
        let number = self.group_of(address)?;
        if self.follows(Rule::HoldBlocksBind)
            && self.group(number)?.vfio.as_ref().is_some_and(|vfio| vfio.opened_file.is_some())
        {
            return Err(Errno::BUSY);
        }
        if bound.is_some() {
            return Err(Errno::INVAL);
        }
        self.check_token(address, token)?;
        if !self.iommufds.contains_key(&ctx) {
            return Err(Errno::BADFD);
        }
        let device = self.dev(address)?;
        if device.vfio.as_ref().is_none_or(|vfio| vfio.open_count != 0) {
            return Err(Errno::INVAL);
        }
        if !device.model.coherent {
            return Err(Errno::INVAL);
        }
        if !self.msi_safe() {
            return Err(Errno::PERM);
        }
        self.group_mut(number)?.ownership.claim_device(Token::Iommufd(ctx))?;
        let device_id = self.enter_context(file, ctx);
        self.set_bound(file, Bound { iommufd: ctx, device_id, group: number, attached: false });
        if let Some(vfio) = self.dev_mut(address)?.vfio.as_mut() {
            vfio.open_count += 1;
        }
        if let Some(vfio) = self.group_mut(number)?.vfio.as_mut() {
            vfio.cdev_open_cnt += 1;
        }
        Ok(device_id)
    }

    fn enter_context(&mut self, file: FileId, ctx: FileId) -> u32 {
        let Some(iommufd) = self.iommufds.get_mut(&ctx) else { return 0 };
        iommufd.bound.insert(file);
        iommufd.insert(Object::Device)
    }

    fn set_bound(&mut self, file: FileId, bound: Bound) {
        if let Some(file) = self.device_files.get_mut(&file) {
            file.via = Via::Cdev { bound: Some(bound) };
        }
    }

    pub(crate) fn set_attached(&mut self, file: FileId, attached: bool) {
        if let Some(file) = self.device_files.get_mut(&file)
            && let Via::Cdev { bound: Some(bound) } = &mut file.via
        {
            bound.attached = attached;
        }
    }

    /// The last close of a bound cdev: detach, then give the claim back.
    pub(crate) fn unbind_iommufd(&mut self, file: FileId) {
        let Ok(open) = self.device_file(file) else { return };
        let (address, Some(bound)) = (open.address, open.bound()) else { return };
        // The file is bound, so detaching it answers no error.
        let _detached = self.detach_ioas(file);
        if let Some(iommufd) = self.iommufds.get_mut(&bound.iommufd) {
            iommufd.bound.remove(&file);
            iommufd.objects.remove(&bound.device_id);
        }
        let releases = self.follows(Rule::LastCloseReleases);
        if let Ok(group) = self.group_mut(bound.group) {
            if releases {
                group.ownership.release_device();
            }
            if let Some(vfio) = group.vfio.as_mut() {
                vfio.cdev_open_cnt = vfio.cdev_open_cnt.saturating_sub(1);
            }
        }
        if let Some(vfio) = self.devices.get_mut(&address).and_then(|d| d.vfio.as_mut()) {
            vfio.open_count = vfio.open_count.saturating_sub(1);
        }
        if let Some(open) = self.device_files.get_mut(&file) {
            open.via = Via::Cdev { bound: None };
        }
        self.reap_iommufd(bound.iommufd);
    }

    /// `GET_HW_INFO` on the context: ENOENT once the device isn't bound any more.
    pub(crate) fn hw_info(&self, ctx: FileId, device_id: u32) -> Result<(), Errno> {
        let iommufd = self.iommufds.get(&ctx).ok_or(Errno::BADF)?;
        match iommufd.objects.get(&device_id) {
            Some(Object::Device) => Ok(()),
            _ => Err(Errno::NOENT),
        }
    }
}
