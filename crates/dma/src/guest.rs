//! The memory of a rust-vmm guest, where the guest sees it.
#![expect(unsafe_code, reason = "maps memory by address")]

use std::ptr::NonNull;

use berth_uapi::{DmaPerms, Errno, IovaChoice};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::error::DmaError;
use crate::{AddressSpace, Batch, BatchBuffer};

impl AddressSpace {
    /// Maps all of a guest's memory for reading and writing, each region at its guest address:
    /// devices that are passed through then see what the guest sees.
    ///
    /// Regions that are neighbours for the guest and in this process become one mapping. All are
    /// mapped or none is.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::map`]; `BadAddress`: a region has no memory in this process.
    ///
    /// # Safety
    ///
    /// As [`AddressSpace::map`], for every region until the batch is unmapped: the guest's memory
    /// must outlive that. (`vm-memory` itself makes no references to it.)
    pub unsafe fn map_guest<M: GuestMemoryBackend>(&self, memory: &M) -> Result<Batch, DmaError> {
        let buffers: Result<Vec<_>, _> = memory.iter().map(buffer).collect();
        // SAFETY: the caller's promise.
        unsafe { self.map_batch(&buffers?, DmaPerms::READ_WRITE) }
    }
}

fn buffer<R: GuestMemoryRegion>(region: &R) -> Result<BatchBuffer, DmaError> {
    let length = region.len();
    let address = region.get_host_address(MemoryRegionAddress(0)).ok();
    let memory = address.and_then(NonNull::new).ok_or(DmaError::Memory {
        op: "get_host_address",
        length,
        errno: Errno::FAULT,
    })?;
    Ok(BatchBuffer { iova: IovaChoice::Fixed(region.start_addr().raw_value()), memory, length })
}
