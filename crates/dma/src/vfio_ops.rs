//! The fast path under rust-vmm's device code.
#![expect(unsafe_code, reason = "maps memory by address")]

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use berth_uapi::{DmaPerms, Errno, IovaChoice};
use vfio_ioctls::{VfioError, VfioOps};
use vmm_sys_util::errno::Error as SysError;

use crate::AddressSpace;
use crate::error::DmaError;
use crate::memory::as_u64;

/// An [`AddressSpace`] as rust-vmm's `VfioOps`: a VMM that uses `vfio-ioctls` goes on opening devices
/// with its own container or iommufd, and maps through this one.
///
/// `vfio-ioctls` finds out what a `VfioOps` is by its `as_any`; that of the container or iommufd
/// which was given is the answer. The errors of its `Result` carry the errno, the numbers are in
/// [`VfioSpace::space`]'s own calls.
#[derive(Clone)]
pub struct VfioSpace {
    space: Arc<AddressSpace>,
    devices: Arc<dyn VfioOps>,
}

impl std::fmt::Debug for VfioSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VfioSpace").field("space", &self.space).finish_non_exhaustive()
    }
}

impl VfioSpace {
    /// Maps in `space`, and opens devices with `devices`: both must be of the same container, or of
    /// the same IOAS.
    pub fn new(space: Arc<AddressSpace>, devices: Arc<dyn VfioOps>) -> Self {
        Self { space, devices }
    }

    /// What it maps in.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }
}

impl VfioOps for VfioSpace {
    unsafe fn vfio_dma_map(
        &self,
        iova: u64,
        size: usize,
        user_addr: *mut u8,
    ) -> Result<(), VfioError> {
        let failed = |errno: Errno| VfioError::IommuDmaMap(SysError::new(errno.raw_os_error()));
        let memory = NonNull::new(user_addr).ok_or_else(|| failed(Errno::FAULT))?;
        let place = IovaChoice::Fixed(iova);
        // SAFETY: the contract of this trait's method is that of `AddressSpace::map`.
        let mapped = unsafe { self.space.map(place, memory, as_u64(size), DmaPerms::READ_WRITE) };
        mapped.map(drop).map_err(|error| failed(error.errno()))
    }

    fn vfio_dma_unmap(&self, iova: u64, size: usize) -> Result<(), VfioError> {
        let failed =
            |error: DmaError| VfioError::IommuDmaUnmap(SysError::new(error.errno().raw_os_error()));
        self.space.unmap(iova, as_u64(size)).map_err(failed)
    }

    fn as_any(&self) -> &dyn Any {
        self.devices.as_any()
    }
}
