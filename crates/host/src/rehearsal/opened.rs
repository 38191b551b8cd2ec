//! What is opened in a rehearsal: nothing. VFIO and iommufd aren't asked, and write nothing to sysfs.

use std::{any::Any, os::fd::OwnedFd};

use berth_dma::AddressSpace;
use berth_uapi::VfToken;

use super::not_rehearsed;
use crate::{
    AttachedDevice, BackendKind, Context, DomainHandle, GroupHold, IovaRange, PciAddress, VfioError,
};

/// A group that would be held.
#[derive(Debug)]
pub(super) struct HeldGroup(pub(super) u32);

/// A device that would be open.
#[derive(Debug)]
struct OpenedDevice(PciAddress);

/// A context that would be open.
#[derive(Debug)]
pub(super) struct OpenedContext(pub(super) BackendKind);

impl GroupHold for HeldGroup {
    fn group(&self) -> u32 {
        self.0
    }

    fn prove_unused(&self) -> Result<(), VfioError> {
        Ok(())
    }

    fn fds(&self) -> Result<Vec<OwnedFd>, VfioError> {
        Ok(Vec::new())
    }
}

impl Context for OpenedContext {
    fn backend(&self) -> BackendKind {
        self.0
    }

    fn new_domain(&self) -> Result<DomainHandle, VfioError> {
        Ok(DomainHandle(0))
    }

    fn delete_domain(&self, _domain: DomainHandle) -> Result<(), VfioError> {
        Ok(())
    }

    fn open_device(&self, device: PciAddress) -> Result<Box<dyn AttachedDevice>, VfioError> {
        Ok(Box::new(OpenedDevice(device)))
    }

    fn open_by_token(
        &self,
        device: PciAddress,
        _token: &VfToken,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        self.open_device(device)
    }

    fn adopt_device(
        &self,
        _device: PciAddress,
        _device_id: u32,
        _domain: Option<DomainHandle>,
        _fd: OwnedFd,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        Err(not_rehearsed("adopt device"))
    }

    fn fd(&self) -> Result<OwnedFd, VfioError> {
        Err(not_rehearsed("duplicate the context"))
    }

    fn address_space(&self, _domain: DomainHandle) -> Result<AddressSpace, VfioError> {
        Err(not_rehearsed("map"))
    }

    fn ranges(&self, _domain: DomainHandle) -> Result<Vec<IovaRange>, VfioError> {
        Ok(Vec::new())
    }

    fn unmap_all(&self, _domain: DomainHandle) -> Result<u64, VfioError> {
        Ok(0)
    }

    fn bound_devices(&self, _most: usize) -> Result<usize, VfioError> {
        Ok(0)
    }

    fn unmap_everything(&self) -> Result<u64, VfioError> {
        Ok(0)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl AttachedDevice for OpenedDevice {
    fn address(&self) -> PciAddress {
        self.0
    }

    fn device_id(&self) -> u32 {
        0
    }

    fn attach(&mut self, _domain: DomainHandle) -> Result<(), VfioError> {
        Ok(())
    }

    fn detach(&mut self) -> Result<(), VfioError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), VfioError> {
        Ok(())
    }

    fn set_vf_token(&mut self, _token: &VfToken) -> Result<(), VfioError> {
        Ok(())
    }

    fn fd(&self) -> Result<OwnedFd, VfioError> {
        Err(not_rehearsed("duplicate the device"))
    }

    fn bound(&self) -> Result<bool, VfioError> {
        Ok(true)
    }
}
