//! A usable VFIO device, however it was opened: through its group or as a bound cdev.
#![expect(unsafe_code, reason = "passes structures to ioctl")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio as v;

use crate::bytes::{len_u32, len_u64, read_u32, read_u64};
use crate::caps::CapIter;
use crate::{IoctlError, IovaRange, MappedRegion, RegionIndex, VfToken, ioctl};

const REGION_INFO_BYTES: usize = size_of::<v::vfio_region_info>();
const FEATURE_HEADER_BYTES: usize = size_of::<v::vfio_device_feature>();
/// Region info larger than this is not believed.
const MAX_REGION_INFO_BYTES: u32 = 64 * 1024;
/// Offset and bit of bus mastering in PCI configuration space.
const PCI_COMMAND: u64 = 4;
const PCI_COMMAND_MASTER: u16 = 4;

/// An open VFIO device.
///
/// Whoever holds a duplicate of the file has the same rights; the last close resets the device
/// and gives up its claim.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
    name: Box<str>,
}

/// What a device says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// `VFIO_DEVICE_RESET` works.
    pub can_reset: bool,
    /// It is a PCI device.
    pub is_pci: bool,
    /// How many region indexes it has.
    pub num_regions: u32,
    /// How many interrupt indexes it has.
    pub num_irqs: u32,
}

/// A region of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Its size; 0: not implemented.
    pub size_bytes: u64,
    /// Where it lies in the device's file.
    pub file_offset: u64,
    /// It can be read.
    pub readable: bool,
    /// It can be written.
    pub writable: bool,
    /// It, or the areas of `sparse`, can be memory mapped.
    pub mappable: bool,
    /// Only these parts can be mapped, as offsets in the region; empty: all of it.
    pub sparse: Vec<IovaRange>,
    /// Type and subtype of a device specific region.
    pub kind: Option<(u32, u32)>,
    /// The MSI-X table lies in it and may be mapped all the same.
    pub msix_mappable: bool,
}

/// Opens a device node for reading and writing, close-on-exec.
pub(crate) fn open_node(path: &Path) -> Result<OwnedFd, IoctlError> {
    loop {
        match rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => return Ok(fd),
            Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(IoctlError::new("open", path.display().to_string(), errno));
            }
        }
    }
}

impl Device {
    /// Takes over an open device; `name` (its address) is what errors call it.
    pub fn from_fd(fd: OwnedFd, name: &str) -> Self {
        Self { fd, name: name.into() }
    }

    /// Gives up the wrapper and keeps the file open.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// What errors call the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks what the device is.
    ///
    /// # Errors
    ///
    /// `EINVAL`: an unbound cdev.
    pub fn get_info(&self) -> Result<DeviceInfo, IoctlError> {
        let op = ioctl::DEVICE_GET_INFO;
        let argsz = len_u32(size_of::<v::vfio_device_info>());
        let mut info = v::vfio_device_info { argsz, ..Default::default() };
        // SAFETY: the structure of this ioctl, argsz its size, no addresses in it.
        unsafe { ioctl::with_struct(self.as_fd(), op, &mut info) }
            .map_err(|errno| self.error(op, errno))?;
        Ok(DeviceInfo {
            can_reset: info.flags & v::VFIO_DEVICE_FLAGS_RESET != 0,
            is_pci: info.flags & v::VFIO_DEVICE_FLAGS_PCI != 0,
            num_regions: info.num_regions,
            num_irqs: info.num_irqs,
        })
    }

    /// Asks about one region, with the capabilities behind the answer.
    ///
    /// # Errors
    ///
    /// `EINVAL`: no such region index. `EPROTO`: the kernel's answer doesn't hold together.
    pub fn region_info(&self, index: RegionIndex) -> Result<RegionInfo, IoctlError> {
        let op = ioctl::DEVICE_GET_REGION_INFO;
        let failed = |errno| IoctlError::new(op.name, format!("{index} of {}", self.name), errno);
        let mut bytes = vec![0u8; REGION_INFO_BYTES];
        for _ in 0..2 {
            let size = len_u32(bytes.len());
            bytes[..4].copy_from_slice(&size.to_ne_bytes());
            bytes[8..12].copy_from_slice(&index.0.to_ne_bytes());
            // SAFETY: begins with the header of this ioctl, argsz is the buffer's length, and it
            // holds no addresses.
            unsafe { ioctl::with_bytes(self.as_fd(), op, &mut bytes) }.map_err(failed)?;
            let needed = read_u32(&bytes, 0).unwrap_or_default();
            if needed <= size {
                return parse_region(&bytes).ok_or_else(|| failed(Errno::PROTO));
            }
            if needed > MAX_REGION_INFO_BYTES {
                break;
            }
            bytes = vec![0u8; usize::try_from(needed).unwrap_or(REGION_INFO_BYTES)];
        }
        Err(failed(Errno::PROTO))
    }

    /// Resets the function.
    ///
    /// # Errors
    ///
    /// `EINVAL`: it has no reset. `EAGAIN`: lock contention. `ENOTTY`: the reset that it has does
    /// not work here.
    pub fn reset(&self) -> Result<(), IoctlError> {
        let op = ioctl::DEVICE_RESET;
        ioctl::with_value(self.as_fd(), op, 0).map_err(|errno| self.error(op, errno))?;
        Ok(())
    }

    /// Sets the secret that whoever opens a virtual function of this physical one has to show. It
    /// stays until the physical function leaves its driver, also once this file is closed.
    ///
    /// # Errors
    ///
    /// `ENOTTY`: the device is no physical function, or its driver isn't vfio-pci's.
    ///
    /// # Kernel
    ///
    /// `VFIO_DEVICE_FEATURE_PCI_VF_TOKEN`, 5.7.
    pub fn set_vf_token(&self, token: &VfToken) -> Result<(), IoctlError> {
        let op = ioctl::DEVICE_FEATURE;
        let flags = v::VFIO_DEVICE_FEATURE_SET | v::VFIO_DEVICE_FEATURE_PCI_VF_TOKEN;
        let mut bytes = [0u8; FEATURE_HEADER_BYTES + 16];
        let size = len_u32(bytes.len());
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[FEATURE_HEADER_BYTES..].copy_from_slice(&token.0);
        // SAFETY: begins with the header of this ioctl, argsz is the buffer's length, and it holds
        // no addresses.
        unsafe { ioctl::with_bytes(self.as_fd(), op, &mut bytes) }
            .map_err(|errno| self.error(op, errno))?;
        Ok(())
    }

    /// Maps a whole region, or the first mappable part of a sparse one.
    ///
    /// # Errors
    ///
    /// `EINVAL`: it cannot be mapped.
    pub fn map_region(&self, index: RegionIndex) -> Result<MappedRegion, IoctlError> {
        let info = self.region_info(index)?;
        let name = || format!("{index} of {}", self.name);
        let area = match info.sparse.first() {
            Some(area) => *area,
            None if info.size_bytes != 0 => IovaRange { start: 0, last: info.size_bytes - 1 },
            None => return Err(IoctlError::new("mmap", name(), Errno::INVAL)),
        };
        if !info.mappable {
            return Err(IoctlError::new("mmap", name(), Errno::INVAL));
        }
        MappedRegion::new(self.as_fd(), &info, area, name())
    }

    /// Reads from a region, all of `buffer`.
    ///
    /// # Errors
    ///
    /// `EINVAL`: outside the region. `EIO`: the device does not answer.
    pub fn read_region(
        &self,
        index: RegionIndex,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), IoctlError> {
        let mut at = self.file_range(index, offset, buffer.len(), "pread")?;
        let mut rest = buffer;
        while !rest.is_empty() {
            let done = match rustix::io::pread(self.as_fd(), &mut *rest, at) {
                Ok(0) => return Err(self.io_error("pread", index, offset, Errno::IO)),
                Ok(done) => done,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(self.io_error("pread", index, offset, errno)),
            };
            rest = rest.get_mut(done..).unwrap_or_default();
            at = at.saturating_add(len_u64(done));
        }
        Ok(())
    }

    /// Writes to a region, all of `data`.
    ///
    /// # Errors
    ///
    /// `EINVAL`: outside the region. `EIO`: the device does not answer.
    pub fn write_region(
        &self,
        index: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<(), IoctlError> {
        let mut at = self.file_range(index, offset, data.len(), "pwrite")?;
        let mut rest = data;
        while !rest.is_empty() {
            let done = match rustix::io::pwrite(self.as_fd(), rest, at) {
                Ok(0) => return Err(self.io_error("pwrite", index, offset, Errno::IO)),
                Ok(done) => done,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(self.io_error("pwrite", index, offset, errno)),
            };
            rest = rest.get(done..).unwrap_or_default();
            at = at.saturating_add(len_u64(done));
        }
        Ok(())
    }

    /// Lets the device start DMA of its own, or stops it, through its PCI command register.
    ///
    /// # Errors
    ///
    /// As [`Device::read_region`] and [`Device::write_region`].
    pub fn set_bus_master(&self, on: bool) -> Result<(), IoctlError> {
        let mut word = [0u8; 2];
        self.read_region(RegionIndex::CONFIG, PCI_COMMAND, &mut word)?;
        // PCI configuration space is little-endian on every machine.
        let command = u16::from_le_bytes(word);
        let wanted = if on { command | PCI_COMMAND_MASTER } else { command & !PCI_COMMAND_MASTER };
        self.write_region(RegionIndex::CONFIG, PCI_COMMAND, &wanted.to_le_bytes())
    }

    /// Whether the device may start DMA of its own.
    ///
    /// # Errors
    ///
    /// As [`Device::read_region`].
    pub fn bus_master(&self) -> Result<bool, IoctlError> {
        let mut word = [0u8; 2];
        self.read_region(RegionIndex::CONFIG, PCI_COMMAND, &mut word)?;
        Ok(u16::from_le_bytes(word) & PCI_COMMAND_MASTER != 0)
    }

    /// Where in the file `length` bytes at `offset` of the region are; checked against its size,
    /// since the next region's bytes follow in the same file.
    fn file_range(
        &self,
        index: RegionIndex,
        offset: u64,
        length: usize,
        op: &'static str,
    ) -> Result<u64, IoctlError> {
        let info = self.region_info(index)?;
        offset
            .checked_add(len_u64(length))
            .filter(|end| *end <= info.size_bytes)
            .and_then(|_| info.file_offset.checked_add(offset))
            .ok_or_else(|| self.io_error(op, index, offset, Errno::INVAL))
    }

    fn io_error(
        &self,
        op: &'static str,
        index: RegionIndex,
        offset: u64,
        errno: Errno,
    ) -> IoctlError {
        IoctlError::new(op, format!("{index} at {offset:#x} of {}", self.name), errno)
    }

    pub(crate) fn error(&self, op: ioctl::Op, errno: Errno) -> IoctlError {
        IoctlError::new(op.name, &*self.name, errno)
    }
}

/// Reads `struct vfio_region_info` and the capabilities behind it.
fn parse_region(bytes: &[u8]) -> Option<RegionInfo> {
    let flags = read_u32(bytes, 4)?;
    let mut info = RegionInfo {
        size_bytes: read_u64(bytes, 16)?,
        file_offset: read_u64(bytes, 24)?,
        readable: flags & v::VFIO_REGION_INFO_FLAG_READ != 0,
        writable: flags & v::VFIO_REGION_INFO_FLAG_WRITE != 0,
        mappable: flags & v::VFIO_REGION_INFO_FLAG_MMAP != 0,
        ..RegionInfo::default()
    };
    if flags & v::VFIO_REGION_INFO_FLAG_CAPS == 0 {
        return Some(info);
    }
    for cap in CapIter::new(bytes, REGION_INFO_BYTES, read_u32(bytes, 12)?) {
        let cap = cap.ok()?;
        match u32::from(cap.id) {
            v::VFIO_REGION_INFO_CAP_SPARSE_MMAP => {
                info.sparse = parse_sparse(cap.body, info.size_bytes)?;
            }
            v::VFIO_REGION_INFO_CAP_TYPE => {
                info.kind = Some((read_u32(cap.body, 0)?, read_u32(cap.body, 4)?));
            }
            v::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => info.msix_mappable = true,
            _ => {}
        }
    }
    Some(info)
}

/// Reads the areas of a sparse region; empty areas are left out, areas beyond its end refused.
fn parse_sparse(body: &[u8], region_bytes: u64) -> Option<Vec<IovaRange>> {
    let count = usize::try_from(read_u32(body, 0)?).ok()?;
    let areas = body.get(8..)?;
    let mut sparse = Vec::new();
    for index in 0..count {
        let at = index.checked_mul(16)?;
        let (start, size) = (read_u64(areas, at)?, read_u64(areas, at + 8)?);
        if start.checked_add(size)? > region_bytes {
            return None;
        }
        if size != 0 {
            sparse.push(IovaRange { start, last: start + size - 1 });
        }
    }
    Some(sparse)
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Device {
    fn from(fd: OwnedFd) -> Self {
        Self::from_fd(fd, "vfio device")
    }
}

impl From<Device> for OwnedFd {
    fn from(device: Device) -> Self {
        device.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::push_u32s;

    fn region(flags: u32, size: u64, chain: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_u32s(&mut bytes, &[0, flags, 2, 32]);
        bytes.extend(size.to_ne_bytes());
        bytes.extend(0x200_0000_0000u64.to_ne_bytes());
        bytes.extend_from_slice(chain);
        bytes
    }

    fn sparse(next: u32, count: u32, areas: &[u64]) -> Vec<u8> {
        let mut bytes = vec![1, 0, 1, 0];
        push_u32s(&mut bytes, &[next, count, 0]);
        bytes.extend(areas.iter().flat_map(|n| n.to_ne_bytes()));
        bytes
    }

    #[test]
    fn reads_sparse_areas_and_type() {
        let mut chain = sparse(32 + 48, 2, &[0, 0x1000, 0x3000, 0x1000]);
        chain.extend([2, 0, 1, 0]);
        push_u32s(&mut chain, &[0, 7, 9]);
        let info = parse_region(&region(0xf, 0x4000, &chain)).expect("a valid chain");
        assert_eq!(info.file_offset, 0x200_0000_0000);
        assert_eq!(info.kind, Some((7, 9)));
        assert_eq!(
            info.sparse,
            [IovaRange { start: 0, last: 0xfff }, IovaRange { start: 0x3000, last: 0x3fff }]
        );
    }

    #[test]
    fn refuses_areas_beyond_the_region() {
        assert_eq!(parse_region(&region(0xf, 0x4000, &sparse(0, 1, &[0x3000, 0x2000]))), None);
        assert_eq!(parse_region(&region(0xf, 0x4000, &sparse(0, 1, &[8, u64::MAX]))), None);
        assert_eq!(parse_region(&region(0xf, 0x4000, &sparse(0, 9, &[0, 8]))), None);
    }

    #[test]
    fn a_plain_region_has_no_capabilities() {
        let info = parse_region(&region(7, 0x10_0000, &[])).expect("no chain");
        assert!(info.readable && info.writable && info.mappable);
        assert_eq!((info.size_bytes, info.sparse.len()), (0x10_0000, 0));
    }
}
