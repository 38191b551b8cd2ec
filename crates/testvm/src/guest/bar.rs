//! BAR 0 of a device by sysfs, for scenarios that must drive a device nobody has opened by VFIO.
#![expect(unsafe_code, reason = "maps device memory and reads and writes it volatile")]

use std::{fs::OpenOptions, os::unix::fs::FileExt, ptr::NonNull};

use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::sysfs;

/// Offset of the command word in PCI configuration space; memory space and bus mastering in it.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 0x6;

/// A mapped BAR 0. While it lives the device may do DMA.
#[derive(Debug)]
pub struct SysfsBar {
    base: NonNull<u32>,
    length: usize,
}

impl SysfsBar {
    /// Switches the device's memory space and bus mastering on, and maps its BAR 0.
    ///
    /// # Errors
    /// The device isn't there, or the kernel keeps its memory to a driver.
    pub fn open(address: &str) -> Result<Self> {
        let dir = sysfs::device_dir(address);
        let config = OpenOptions::new().read(true).write(true).open(dir.join("config"))?;
        let mut word = [0; 2];
        config.read_exact_at(&mut word, COMMAND)?;
        let command = u16::from_le_bytes(word) | MEMORY_AND_MASTER;
        config.write_all_at(&command.to_le_bytes(), COMMAND)?;

        let path = dir.join("resource0");
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let length = usize::try_from(file.metadata()?.len())?;
        ensure!(length > 0, "{address} has no BAR 0");
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
        let base = unsafe { mmap(std::ptr::null_mut(), length, prot, MapFlags::SHARED, &file, 0) }
            .with_context(|| format!("mmap {}", path.display()))?;
        let base = NonNull::new(base.cast()).context("mmap gave a null address")?;
        Ok(Self { base, length })
    }

    fn place(&self, offset: u64) -> Result<NonNull<u32>> {
        let offset = usize::try_from(offset)?;
        ensure!(
            offset.is_multiple_of(4) && offset + 4 <= self.length,
            "no register at {offset:#x}"
        );
        // SAFETY: inside the mapping, as was just checked.
        Ok(unsafe { self.base.byte_add(offset) })
    }

    pub(super) fn read(&self, offset: u64) -> Result<u32> {
        let at = self.place(offset)?;
        // SAFETY: an aligned word of the mapping, which lives as long as self.
        Ok(u32::from_le(unsafe { at.read_volatile() }))
    }

    pub(super) fn write(&self, offset: u64, value: u32) -> Result<()> {
        let at = self.place(offset)?;
        // SAFETY: an aligned word of the mapping, which lives as long as self.
        unsafe { at.write_volatile(value.to_le()) };
        Ok(())
    }
}

impl Drop for SysfsBar {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `open` made; nothing refers to it any more.
        // It fails only for arguments that mmap would not have returned.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}
