//! A driver for QEMU's `edu`: a device whose only talent is to copy memory by DMA.
//!
//! It has a buffer of 4 KiB inside. [`Edu::copy_in`] lets it read memory at an I/O address into the
//! buffer, [`Edu::copy_out`] lets it write the buffer to memory. The device doesn't say whether the
//! IOMMU let it through: look at the memory, or at the kernel's fault line.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_uapi::{Device, MappedRegion, RegionIndex};

use super::{bar::SysfsBar, eventually};

/// Size of the buffer inside the device.
pub const BUFFER_BYTES: u64 = 4096;

const IDENTIFICATION: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
/// Where the device's own buffer lies, as its DMA engine sees it.
const BUFFER: u64 = 0x4_0000;
const COMMAND_RUN: u32 = 1;
const COMMAND_TO_MEMORY: u32 = 2;
/// The engine takes 100 ms of the guest's time for any copy; an emulated guest's time is slow.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
enum Registers {
    Vfio(MappedRegion),
    Sysfs(SysfsBar),
}

/// An `edu` ready for DMA.
#[derive(Debug)]
pub struct Edu {
    registers: Registers,
}

impl Edu {
    /// Drives the device through VFIO: maps its registers and switches bus mastering on.
    ///
    /// # Errors
    /// The device refuses, or isn't an `edu`.
    pub fn on_vfio(device: &Device) -> Result<Self> {
        device.set_bus_master(true)?;
        let region = device.map_region(RegionIndex(0))?;
        Self::checked(Registers::Vfio(region))
    }

    /// Drives the device through sysfs, as nobody should: to see whether DMA of a device that no
    /// VFIO file is open for is blocked.
    ///
    /// # Errors
    /// The registers can't be mapped, or it isn't an `edu`.
    pub fn on_sysfs(address: &str) -> Result<Self> {
        Self::checked(Registers::Sysfs(SysfsBar::open(address)?))
    }

    fn checked(registers: Registers) -> Result<Self> {
        let edu = Self { registers };
        let id = edu.read(IDENTIFICATION)?;
        ensure!(id & 0xffff == 0x00ed, "this is no edu: it identifies itself as {id:#010x}");
        edu.write(LIVENESS, 0x1234_5678)?;
        let alive = edu.read(LIVENESS)?;
        ensure!(alive == !0x1234_5678, "the edu does not answer: {alive:#010x}");
        Ok(edu)
    }

    fn read(&self, offset: u64) -> Result<u32> {
        match &self.registers {
            Registers::Vfio(region) => Ok(region.read_u32(offset)?),
            Registers::Sysfs(bar) => bar.read(offset),
        }
    }

    fn write(&self, offset: u64, value: u32) -> Result<()> {
        match &self.registers {
            Registers::Vfio(region) => Ok(region.write_u32(offset, value)?),
            Registers::Sysfs(bar) => bar.write(offset, value),
        }
    }

    /// Lets the device read `length_bytes` at `iova` into its buffer.
    ///
    /// # Errors
    /// The engine doesn't come to an end, or the arguments would stop the whole machine.
    pub fn copy_in(&self, iova: u64, length_bytes: u64) -> Result<()> {
        self.transfer(iova, BUFFER, iova, length_bytes, COMMAND_RUN)
    }

    /// Lets the device write the first `length_bytes` of its buffer to `iova`.
    ///
    /// # Errors
    /// As [`Edu::copy_in`].
    pub fn copy_out(&self, iova: u64, length_bytes: u64) -> Result<()> {
        self.transfer(BUFFER, iova, iova, length_bytes, COMMAND_RUN | COMMAND_TO_MEMORY)
    }

    fn transfer(&self, from: u64, to: u64, iova: u64, length: u64, command: u32) -> Result<()> {
        // QEMU aborts when the engine runs past the buffer, and cuts addresses to 32 bits.
        ensure!((1..=BUFFER_BYTES).contains(&length), "the edu copies 1 to 4096 bytes");
        ensure!(iova.checked_add(length).is_some_and(|end| end <= 1 << 32), "beyond 32 bits");
        self.settle()?;
        self.write(DMA_SOURCE, u32::try_from(from)?)?;
        self.write(DMA_DESTINATION, u32::try_from(to)?)?;
        self.write(DMA_COUNT, u32::try_from(length)?)?;
        self.write(DMA_COMMAND, command)?;
        self.settle()
    }

    fn settle(&self) -> Result<()> {
        let mut failed = None;
        let idle = || match self.read(DMA_COMMAND) {
            Ok(command) => command & COMMAND_RUN == 0,
            Err(error) => {
                failed = Some(error);
                true
            }
        };
        eventually("the edu's DMA engine to finish", PATIENCE, idle)?;
        failed.map_or(Ok(()), Err)
    }
}

/// Bytes that differ from place to place and from seed to seed, never 0.
#[must_use]
pub fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| {
            let low = u8::try_from(at % 251).unwrap_or_default();
            low.wrapping_mul(31).wrapping_add(seed) | 1
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::pattern;

    #[test]
    fn patterns_tell_seeds_and_memory_that_was_never_written_apart() {
        assert_ne!(pattern(2, 64), pattern(4, 64));
        assert!(pattern(7, 4096).iter().all(|byte| *byte != 0));
    }
}
