//! The kernel's log: DMA faults, and anything it said while a scenario ran.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::fs::{OFlags, SeekFrom};

use super::wait_for;

/// Reads the kernel's messages from a chosen moment on.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
    seen: Vec<String>,
}

impl Kmsg {
    /// Everything that the kernel says from now on.
    ///
    /// # Errors
    /// `/dev/kmsg` can't be opened.
    pub fn from_now() -> Result<Self> {
        let nonblocking = i32::try_from(OFlags::NONBLOCK.bits())?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nonblocking)
            .open("/dev/kmsg")
            .context("open /dev/kmsg")?;
        rustix::fs::seek(&file, SeekFrom::End(0)).context("seek /dev/kmsg to its end")?;
        Ok(Self { file, seen: Vec::new() })
    }

    /// The messages so far, without their prefixes.
    pub fn lines(&mut self) -> &[String] {
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(length) if length > 0 => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    // "priority,sequence,time,flags;message", then lines of key=value.
                    if let Some((_, message)) = text.split_once(';') {
                        let line = message.lines().next().unwrap_or_default();
                        self.seen.push(line.to_owned());
                    }
                }
                // EPIPE: records were overwritten before they were read; the next read goes on.
                Err(error) if error.raw_os_error() == Some(32) => {}
                _ => return &self.seen,
            }
        }
    }

    /// Lines about blocked DMA so far: `DMAR: [DMA Write NO_PASID] ... fault addr 0x...`.
    pub fn dma_faults(&mut self) -> Vec<DmaFault> {
        self.lines().iter().filter_map(|line| DmaFault::parse(line)).collect()
    }

    /// Waits for a blocked DMA at an I/O address, by whatever source the IOMMU names.
    ///
    /// # Errors
    /// The kernel reports none within `patience`.
    pub fn wait_for_fault(&mut self, address: u64, patience: Duration) -> Result<DmaFault> {
        let page = address & !0xfff;
        wait_for(&format!("the kernel's fault line for {page:#x}"), patience, || {
            self.dma_faults().into_iter().find(|fault| fault.address & !0xfff == page)
        })
    }

    /// Lets a device try a blocked DMA until the kernel reports it.
    ///
    /// # Errors
    /// The DMA can't be tried, or no fault is reported within `patience`.
    ///
    /// # Kernel
    /// Of faults in quick succession only about three in five seconds are printed.
    pub fn provoke_fault(
        &mut self,
        address: u64,
        patience: Duration,
        mut dma: impl FnMut() -> Result<()>,
    ) -> Result<DmaFault> {
        let deadline = Instant::now() + patience;
        loop {
            dma()?;
            match self.wait_for_fault(address, Duration::from_secs(1)) {
                Ok(fault) => return Ok(fault),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
        }
    }
}

/// What the kernel says about one blocked DMA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmaFault {
    /// Whether the device tried to write to memory.
    pub write: bool,
    /// The requester as the IOMMU saw it, as printed: 6.12 leaves the PCI domain out. Behind a PCIe
    /// to PCI bridge it is the bridge's alias.
    pub source: String,
    /// The I/O address.
    pub address: u64,
}

impl DmaFault {
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("[DMA ")?;
        let write = rest.starts_with("Write");
        let (_, rest) = rest.split_once("device [")?;
        let (source, rest) = rest.split_once(']')?;
        let (_, rest) = rest.split_once("fault addr ")?;
        let digits = rest.split_whitespace().next()?.trim_start_matches("0x");
        let address = u64::from_str_radix(digits, 16).ok()?;
        Some(Self { write, source: source.to_owned(), address })
    }
}

#[cfg(test)]
mod tests {
    use super::DmaFault;

    #[test]
    fn both_kernels_fault_lines_are_read() {
        let old = "DMAR: [DMA Write NO_PASID] Request device [00:05.0] fault addr 0x100000 \
                   [fault reason 0x05] PTE Write access is not set";
        let new = "DMAR: [DMA Read NO_PASID] Request device [0000:02:00.0] fault addr 0xfee00 \
                   [fault reason 0x06] PTE Read access is not set";
        let fault = DmaFault::parse(old).expect("a fault line");
        assert_eq!((fault.write, fault.address), (true, 0x10_0000));
        assert_eq!(fault.source, "00:05.0");
        let fault = DmaFault::parse(new).expect("a fault line");
        assert_eq!((fault.write, fault.address), (false, 0xfee00));
        assert_eq!(fault.source, "0000:02:00.0");
        assert_eq!(DmaFault::parse("DMAR: DRHD: handling fault status reg 2"), None);
    }
}
