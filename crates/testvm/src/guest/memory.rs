//! Memory for DMA that can be looked at safely while a device writes to it.
#![expect(unsafe_code, reason = "maps memory, and lets devices into it by its address")]

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use anyhow::{Context, Result};
use berth_uapi::{DmaPerms, IoasId, IoctlError, Iommufd, IovaChoice, VfioContainer};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap},
};

/// A memfd that is mapped for the rest of the process's life; its bytes are read and written
/// through the file, so that no reference is ever formed to memory that a device may change.
#[derive(Debug)]
pub struct Memory {
    file: File,
    address: u64,
    length_bytes: u64,
}

impl Memory {
    /// Makes `length_bytes` of zeroes.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(length_bytes: u64) -> Result<Self> {
        let file = memfd_create("dma", MemfdFlags::CLOEXEC).context("make a memfd")?;
        ftruncate(&file, length_bytes)?;
        Self::of(file, length_bytes)
    }

    /// The same that can't shrink, as `berthd` wants memory that is registered with it.
    ///
    /// # Errors
    /// There is no memory.
    pub fn sealed(length_bytes: u64) -> Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("dma", flags).context("make a memfd")?;
        ftruncate(&file, length_bytes)?;
        fcntl_add_seals(&file, SealFlags::SHRINK)?;
        Self::of(file, length_bytes)
    }

    /// The same memory through a descriptor that doesn't permit writing.
    ///
    /// # Errors
    /// It doesn't open.
    pub fn reopened_for_reading(&self) -> Result<Self> {
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        Ok(Self { file, ..*self })
    }

    /// Cuts it to nothing; false where the kernel refuses, as for what is sealed.
    #[must_use]
    pub fn truncate(&self) -> bool {
        self.file.set_len(0).is_ok()
    }

    fn of(file: OwnedFd, length_bytes: u64) -> Result<Self> {
        let length = usize::try_from(length_bytes)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing. It is
        // never unmapped, so its address stays good whatever a device does.
        let base = unsafe { mmap(std::ptr::null_mut(), length, prot, MapFlags::SHARED, &file, 0) }?;
        let address = u64::try_from(base.addr())?;
        Ok(Self { file: File::from(file), address, length_bytes })
    }

    /// Its size.
    #[must_use]
    pub const fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// The memfd, for mapping by file and for handing over.
    #[must_use]
    pub fn file(&self) -> impl AsFd + '_ {
        &self.file
    }

    /// Writes bytes at an offset.
    ///
    /// # Errors
    /// Beyond the end.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(bytes, offset)?)
    }

    /// Reads bytes at an offset.
    ///
    /// # Errors
    /// Beyond the end.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Lets the devices of a container at all of it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map_type1(&self, container: &VfioContainer, iova: u64) -> Result<(), IoctlError> {
        let perms = DmaPerms::READ_WRITE;
        // SAFETY: the range is this memory for the rest of the process's life, and nothing holds a
        // reference into it.
        unsafe { container.map_dma(iova, self.address, self.length_bytes, perms) }
    }

    /// Lets the devices of an IOAS at all of it, by address: works where MAP_FILE isn't known.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map_iommufd(
        &self,
        context: &Iommufd,
        ioas: IoasId,
        iova: IovaChoice,
    ) -> Result<u64, IoctlError> {
        let perms = DmaPerms::READ_WRITE;
        // SAFETY: the range is this memory for the rest of the process's life, and nothing holds a
        // reference into it.
        unsafe { context.map(ioas, iova, self.address, self.length_bytes, perms) }
    }
}
