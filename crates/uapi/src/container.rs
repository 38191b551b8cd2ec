//! `/dev/vfio/vfio`: a container, one I/O address space of the type1 back end.
#![expect(unsafe_code, reason = "passes structures to ioctl; maps memory by address")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio as v;

use crate::bytes::{len_u32, read_u32, read_u64};
use crate::caps::{Cap, CapIter};
use crate::{IoctlError, IovaRange, ioctl};

/// Info larger than this is not believed: some 4,000 IOVA ranges.
const MAX_INFO_BYTES: u32 = 64 * 1024;
const INFO_BYTES: usize = size_of::<v::vfio_iommu_type1_info>();

/// An open VFIO container.
#[derive(Debug)]
pub struct VfioContainer {
    fd: OwnedFd,
    name: Box<str>,
}

/// What a container can be asked for with `VFIO_CHECK_EXTENSION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extension {
    /// The type1 back end, version 1.
    Type1,
    /// The type1 back end, version 2: unmap never cuts a mapping.
    Type1v2,
    /// DMA is cache coherent.
    DmaCacheCoherent,
    /// Unmapping everything with one flag.
    UnmapAll,
    /// Exchanging the address behind a mapping.
    UpdateVaddr,
}

impl Extension {
    fn number(self) -> u32 {
        match self {
            Self::Type1 => v::VFIO_TYPE1_IOMMU,
            Self::Type1v2 => v::VFIO_TYPE1v2_IOMMU,
            Self::DmaCacheCoherent => v::VFIO_DMA_CC_IOMMU,
            Self::UnmapAll => v::VFIO_UNMAP_ALL,
            Self::UpdateVaddr => v::VFIO_UPDATE_VADDR,
        }
    }
}

/// What a device may do with mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DmaPerms {
    /// The device may read.
    pub read: bool,
    /// The device may write.
    pub write: bool,
}

impl DmaPerms {
    /// Reading only.
    pub const READ: Self = Self { read: true, write: false };
    /// Writing only.
    pub const WRITE: Self = Self { read: false, write: true };
    /// Reading and writing.
    pub const READ_WRITE: Self = Self { read: true, write: true };
}

/// What a container says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Page sizes of the IOMMU, one bit each; 0 when not reported.
    pub page_sizes: u64,
    /// Addresses that may be mapped; empty when not reported (before 5.4).
    pub iova_ranges: Vec<IovaRange>,
    /// How many more mappings fit; not reported before 5.10.
    pub dma_avail: Option<u32>,
}

impl VfioContainer {
    /// Opens `/dev/vfio/vfio`.
    ///
    /// # Errors
    ///
    /// `ENOENT`, `ENODEV`: the kernel has no VFIO container.
    pub fn open() -> Result<Self, IoctlError> {
        Self::open_path(Path::new("/dev/vfio/vfio"))
    }

    /// Opens a container by the path of its node.
    ///
    /// # Errors
    ///
    /// As [`VfioContainer::open`]; the path is the error's object.
    pub fn open_path(path: &Path) -> Result<Self, IoctlError> {
        Ok(Self::from_fd(crate::device::open_node(path)?, "vfio container"))
    }

    /// Takes over an open container that came from elsewhere; `name` is what errors call it.
    pub fn from_fd(fd: OwnedFd, name: &str) -> Self {
        Self { fd, name: name.into() }
    }

    /// Gives up the wrapper and keeps the file open.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The version of the API; 0 is the only one there has been.
    ///
    /// # Errors
    ///
    /// `ENOTTY`: not a container.
    pub fn api_version(&self) -> Result<i32, IoctlError> {
        self.value(ioctl::GET_API_VERSION, 0)
    }

    /// Whether the kernel has an extension.
    ///
    /// # Errors
    ///
    /// `ENOTTY`: not a container.
    pub fn check_extension(&self, extension: Extension) -> Result<bool, IoctlError> {
        Ok(self.value(ioctl::CHECK_EXTENSION, usize_of(extension.number()))? > 0)
    }

    /// Makes this a type1 v2 container; its groups are attached to a domain from here on.
    ///
    /// # Errors
    ///
    /// `EINVAL`: no group is in the container, or it was set already. `EPERM`: interrupts are not
    /// isolated and `allow_unsafe_interrupts` is off. `ENODEV`: no type1 in the kernel.
    pub fn set_iommu_type1v2(&self) -> Result<(), IoctlError> {
        if crate::ATTACH_DOES_NOTHING {
            return Ok(());
        }
        self.value(ioctl::SET_IOMMU, usize_of(v::VFIO_TYPE1v2_IOMMU))?;
        Ok(())
    }

    /// Asks for page sizes, permitted addresses and room for mappings.
    ///
    /// # Errors
    ///
    /// `EINVAL`: no IOMMU was set yet. `EPROTO`: the kernel's answer doesn't hold together.
    pub fn get_info(&self) -> Result<ContainerInfo, IoctlError> {
        let op = ioctl::IOMMU_GET_INFO;
        let mut bytes = vec![0u8; INFO_BYTES];
        // The kernel answers with the size it needs; ranges may be added between two calls.
        for _ in 0..4 {
            let size = len_u32(bytes.len());
            bytes[..4].copy_from_slice(&size.to_ne_bytes());
            // SAFETY: begins with the header of this ioctl, argsz is the buffer's length, and it
            // holds no addresses.
            unsafe { ioctl::with_bytes(self.as_fd(), op, &mut bytes) }
                .map_err(|errno| self.error(op, errno))?;
            let needed = read_u32(&bytes, 0).unwrap_or_default();
            if needed <= size {
                return parse_info(&bytes).ok_or_else(|| self.error(op, Errno::PROTO));
            }
            if needed > MAX_INFO_BYTES {
                break;
            }
            bytes = vec![0u8; usize_of(needed)];
        }
        Err(self.error(op, Errno::PROTO))
    }

    /// Maps `length_bytes` of this process's memory at `vaddr` for DMA at `iova`.
    ///
    /// # Errors
    ///
    /// `EEXIST`: overlaps a mapping. `EINVAL`: not page aligned, wraps, or outside the permitted
    /// addresses. `ENOSPC`: `dma_entry_limit` reached. `ENOMEM`: `RLIMIT_MEMLOCK`. `EFAULT`: no
    /// such memory.
    ///
    /// # Safety
    ///
    /// Until the range is unmapped, devices may read and, with `perms.write`, change the memory at
    /// any time: no Rust reference may rely on it meanwhile, and it must be memory that the caller
    /// may give away like that.
    #[inline]
    pub unsafe fn map_dma(
        &self,
        iova: u64,
        vaddr: u64,
        length_bytes: u64,
        perms: DmaPerms,
    ) -> Result<(), IoctlError> {
        let op = ioctl::IOMMU_MAP_DMA;
        let mut flags = 0;
        if perms.read {
            flags |= v::VFIO_DMA_MAP_FLAG_READ;
        }
        if perms.write {
            flags |= v::VFIO_DMA_MAP_FLAG_WRITE;
        }
        let argsz = len_u32(size_of::<v::vfio_iommu_type1_dma_map>());
        let mut map = v::vfio_iommu_type1_dma_map { argsz, flags, vaddr, iova, size: length_bytes };
        // SAFETY: the structure of this ioctl, argsz its size; the caller vouches for vaddr.
        unsafe { ioctl::with_struct(self.as_fd(), op, &mut map) }.map_err(|errno| {
            let object = format!("{:#x}+{length_bytes:#x} of {}", iova, self.name);
            IoctlError::new(op.name, object, errno)
        })?;
        Ok(())
    }

    /// Unmaps every mapping that lies wholly in the range, and returns how many bytes that were.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the range would cut a mapping. `ENOENT`: nothing was mapped there; the kernel
    /// itself answers that with success and 0 bytes.
    #[inline]
    pub fn unmap_dma(&self, iova: u64, length_bytes: u64) -> Result<u64, IoctlError> {
        let op = ioctl::IOMMU_UNMAP_DMA;
        let failed = |errno| {
            let object = format!("{:#x}+{length_bytes:#x} of {}", iova, self.name);
            IoctlError::new(op.name, object, errno)
        };
        match self.unmap(0, iova, length_bytes).map_err(failed)? {
            0 => Err(failed(Errno::NOENT)),
            unmapped => Ok(unmapped),
        }
    }

    /// Unmaps everything, and returns how many bytes that were: 0 for an empty container.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the kernel lacks [`Extension::UnmapAll`] (before 5.12).
    pub fn unmap_all(&self) -> Result<u64, IoctlError> {
        self.unmap(v::VFIO_DMA_UNMAP_FLAG_ALL, 0, 0)
            .map_err(|errno| self.error(ioctl::IOMMU_UNMAP_DMA, errno))
    }

    #[inline]
    fn unmap(&self, flags: u32, iova: u64, size: u64) -> Result<u64, Errno> {
        let argsz = len_u32(size_of::<v::vfio_iommu_type1_dma_unmap>());
        let mut unmap =
            v::vfio_iommu_type1_dma_unmap { argsz, flags, iova, size, ..Default::default() };
        // SAFETY: the structure of this ioctl, argsz its size, no addresses of ours in it.
        unsafe { ioctl::with_struct(self.as_fd(), ioctl::IOMMU_UNMAP_DMA, &mut unmap) }?;
        Ok(unmap.size)
    }

    fn value(&self, op: ioctl::Op, value: usize) -> Result<i32, IoctlError> {
        ioctl::with_value(self.as_fd(), op, value).map_err(|errno| self.error(op, errno))
    }

    fn error(&self, op: ioctl::Op, errno: Errno) -> IoctlError {
        IoctlError::new(op.name, &*self.name, errno)
    }
}

fn usize_of(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Reads `struct vfio_iommu_type1_info` and the capabilities behind it.
fn parse_info(bytes: &[u8]) -> Option<ContainerInfo> {
    let flags = read_u32(bytes, 4)?;
    let mut info = ContainerInfo::default();
    if flags & v::VFIO_IOMMU_INFO_PGSIZES != 0 {
        info.page_sizes = read_u64(bytes, 8)?;
    }
    if flags & v::VFIO_IOMMU_INFO_CAPS == 0 {
        return Some(info);
    }
    for cap in CapIter::new(bytes, INFO_BYTES, read_u32(bytes, 16)?) {
        let cap = cap.ok()?;
        match u32::from(cap.id) {
            v::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => info.iova_ranges = parse_ranges(&cap)?,
            v::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => info.dma_avail = Some(read_u32(cap.body, 0)?),
            _ => {}
        }
    }
    Some(info)
}

fn parse_ranges(cap: &Cap<'_>) -> Option<Vec<IovaRange>> {
    let count = usize_of(read_u32(cap.body, 0)?);
    let body = cap.body.get(8..)?;
    (0..count)
        .map(|index| {
            let at = index.checked_mul(16)?;
            let (start, last) = (read_u64(body, at)?, read_u64(body, at + 8)?);
            (start <= last).then_some(IovaRange { start, last })
        })
        .collect()
}

impl AsFd for VfioContainer {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for VfioContainer {
    fn from(fd: OwnedFd) -> Self {
        Self::from_fd(fd, "vfio container")
    }
}

impl From<VfioContainer> for OwnedFd {
    fn from(container: VfioContainer) -> Self {
        container.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32, cap_offset: u32, chain: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        crate::bytes::push_u32s(&mut bytes, &[0, flags]);
        bytes.extend_from_slice(&0x4020_1000u64.to_ne_bytes());
        crate::bytes::push_u32s(&mut bytes, &[cap_offset, 0]);
        bytes.extend_from_slice(chain);
        bytes
    }

    fn ranges_cap(next: u32, count: u32, ends: &[u64]) -> Vec<u8> {
        let mut bytes = vec![1, 0, 1, 0];
        crate::bytes::push_u32s(&mut bytes, &[next, count, 0]);
        bytes.extend(ends.iter().flat_map(|end| end.to_ne_bytes()));
        bytes
    }

    #[test]
    fn reads_ranges_and_room() {
        let mut chain = ranges_cap(24 + 48, 2, &[0, 0xfedf_ffff, 0xfef0_0000, u64::MAX]);
        chain.extend([3, 0, 1, 0]);
        crate::bytes::push_u32s(&mut chain, &[0, 65535]);
        let parsed = parse_info(&info(3, 24, &chain)).expect("a valid chain");
        assert_eq!(parsed.page_sizes, 0x4020_1000);
        assert_eq!(parsed.dma_avail, Some(65535));
        assert_eq!(
            parsed.iova_ranges,
            [
                IovaRange { start: 0, last: 0xfedf_ffff },
                IovaRange { start: 0xfef0_0000, last: u64::MAX }
            ]
        );
    }

    #[test]
    fn refuses_more_ranges_than_bytes() {
        assert_eq!(parse_info(&info(3, 24, &ranges_cap(0, 3, &[0, 1, 2, 3]))), None);
        assert_eq!(parse_info(&info(3, 24, &ranges_cap(0, u32::MAX, &[]))), None);
        assert_eq!(parse_info(&info(3, 24, &ranges_cap(0, 1, &[9, 1]))), None);
    }

    #[test]
    fn no_capabilities_is_no_error() {
        let parsed = parse_info(&info(1, 0, &[])).expect("just page sizes");
        assert_eq!(parsed.iova_ranges, []);
        assert_eq!(parsed.dma_avail, None);
    }
}
