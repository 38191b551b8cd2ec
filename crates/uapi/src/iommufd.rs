//! `/dev/iommu`: a context of I/O address spaces, page tables and bound devices.
//!
//! Ids are opaque and mean nothing in another context. Calls that take memory by address are
//! `unsafe`; calls that take it by file are not.
#![expect(unsafe_code, reason = "passes structures to ioctl; maps memory by address")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use iommufd_bindings as i;
use rustix::io::Errno;

use crate::bytes::{len_u32, len_u64};
use crate::{DevId, DmaPerms, HwptId, IoasId, IoctlError, IovaRange, PtId, ioctl};

/// More ranges than this are not believed.
const MAX_RANGES: usize = 65_536;

/// An open iommufd.
#[derive(Debug)]
pub struct Iommufd {
    fd: OwnedFd,
}

/// Where a mapping goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IovaChoice {
    /// Exactly here.
    Fixed(u64),
    /// Where the kernel finds room.
    Any,
}

/// Addresses an IOAS permits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoasRanges {
    /// The permitted ranges, ascending; they change with each attached device.
    pub ranges: Vec<IovaRange>,
    /// What addresses and lengths of mappings must be multiples of.
    pub alignment: u64,
}

/// A range for [`Iommufd::allow_iovas`].
pub type AllowedIova = IovaRange;

/// Against what pinned memory is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RlimitMode {
    /// Summed over all processes of the user.
    User,
    /// Of the mapping process alone, as type1 counts.
    Process,
}

/// What kind of page table to allocate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HwptFlags {
    /// It can carry a guest's page tables.
    pub nest_parent: bool,
    /// It can track writes.
    pub dirty_tracking: bool,
    /// Devices with PASIDs can be attached to it.
    pub pasid: bool,
}

/// What the IOMMU before a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HwInfo {
    /// The kernel's number for the kind of IOMMU: 0 unknown, 1 Intel VT-d, 2 Arm SMMUv3, 4 AMD.
    pub data_type: u32,
    /// Writes can be tracked.
    pub dirty_tracking: bool,
    /// Bits of PASIDs the device and the IOMMU support; 0: none.
    pub max_pasid_log2: u8,
    /// Every capability bit the kernel reported.
    pub capabilities: u64,
}

/// A call that newer kernels have and older ones don't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IommufdOp {
    /// `IOMMU_HWPT_ALLOC` (6.6).
    HwptAlloc,
    /// `IOMMU_GET_HW_INFO` (6.6).
    GetHwInfo,
    /// `IOMMU_IOAS_MAP_FILE` (6.13).
    MapFile,
    /// `IOMMU_IOAS_CHANGE_PROCESS` (6.13).
    ChangeProcess,
}

impl Iommufd {
    /// Opens `/dev/iommu`: a new, empty context.
    ///
    /// # Errors
    ///
    /// `ENOENT`, `ENODEV`: the kernel has no iommufd.
    pub fn open() -> Result<Self, IoctlError> {
        Self::open_path(Path::new("/dev/iommu"))
    }

    /// Opens a new context by the path of its node.
    ///
    /// # Errors
    ///
    /// As [`Iommufd::open`]; the path is the error's object.
    pub fn open_path(path: &Path) -> Result<Self, IoctlError> {
        Ok(Self { fd: crate::device::open_node(path)? })
    }

    /// Gives up the wrapper and keeps the file open.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Another handle on the same context.
    ///
    /// # Errors
    ///
    /// `EMFILE`: too many files are open.
    pub fn try_clone(&self) -> Result<Self, IoctlError> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 3)
            .map_err(|errno| IoctlError::new("dup", "iommufd", errno))?;
        Ok(Self { fd })
    }

    /// Whether this kernel knows a call. Has no effect.
    ///
    /// # Errors
    ///
    /// Any answer but the two expected ones.
    ///
    /// # Kernel
    ///
    /// A known call refuses a structure of 4 bytes with `EINVAL`; an unknown one is `ENOTTY`.
    pub fn supports(&self, call: IommufdOp) -> Result<bool, IoctlError> {
        let op = match call {
            IommufdOp::HwptAlloc => ioctl::HWPT_ALLOC,
            IommufdOp::GetHwInfo => ioctl::GET_HW_INFO,
            IommufdOp::MapFile => ioctl::IOAS_MAP_FILE,
            IommufdOp::ChangeProcess => ioctl::IOAS_CHANGE_PROCESS,
        };
        let mut size = 4u32;
        // SAFETY: the size field states the four bytes that are there, and no more are touched.
        match unsafe { ioctl::with_struct(self.as_fd(), op, &mut size) } {
            Err(Errno::INVAL) | Ok(_) => Ok(true),
            Err(Errno::NOTTY) => Ok(false),
            Err(errno) => Err(IoctlError::new(op.name, "iommufd", errno)),
        }
    }

    /// Makes an I/O address space.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn ioas_alloc(&self) -> Result<IoasId, IoctlError> {
        let mut alloc = i::iommu_ioas_alloc::default();
        alloc.size = len_u32(size_of_val(&alloc));
        // SAFETY: the structure of this ioctl, size its size, no addresses in it.
        unsafe { self.call(ioctl::IOAS_ALLOC, &mut alloc, || "iommufd".to_owned()) }?;
        Ok(IoasId(alloc.out_ioas_id))
    }

    /// Destroys an address space or a page table.
    ///
    /// # Errors
    ///
    /// `EBUSY`: still in use, by a page table or by a device. `ENOENT`: no such id.
    pub fn destroy(&self, pt: PtId) -> Result<(), IoctlError> {
        let mut destroy = i::iommu_destroy { size: 0, id: pt.raw() };
        destroy.size = len_u32(size_of_val(&destroy));
        // SAFETY: the structure of this ioctl, size its size, no addresses in it.
        unsafe { self.call(ioctl::DESTROY, &mut destroy, || pt.to_string()) }
    }

    /// Asks which addresses may be mapped.
    ///
    /// # Errors
    ///
    /// `ENOENT`: no such IOAS. `EMSGSIZE`: the number of ranges kept growing.
    pub fn iova_ranges(&self, ioas: IoasId) -> Result<IoasRanges, IoctlError> {
        let mut room = 16;
        for _ in 0..4 {
            let mut found = vec![i::iommu_iova_range::default(); room];
            let mut ranges = i::iommu_ioas_iova_ranges {
                size: len_u32(size_of::<i::iommu_ioas_iova_ranges>()),
                ioas_id: ioas.0,
                num_iovas: len_u32(room),
                allowed_iovas: address_of(found.as_mut_ptr()),
                ..Default::default()
            };
            // SAFETY: the structure of this ioctl, size its size; the kernel writes at most
            // `num_iovas` ranges into `found`, which has that many.
            let answer =
                unsafe { self.call(ioctl::IOAS_IOVA_RANGES, &mut ranges, || ioas.to_string()) };
            let count = usize::try_from(ranges.num_iovas).unwrap_or(usize::MAX);
            match answer {
                Err(error) if error.errno == Errno::MSGSIZE && count > room => {
                    room = count.min(MAX_RANGES);
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    let ranges_found = found.iter().take(count);
                    return Ok(IoasRanges {
                        ranges: ranges_found
                            .map(|range| IovaRange { start: range.start, last: range.last })
                            .collect(),
                        alignment: ranges.out_iova_alignment,
                    });
                }
            }
        }
        let op = ioctl::IOAS_IOVA_RANGES.name;
        Err(IoctlError::new(op, ioas.to_string(), Errno::MSGSIZE))
    }

    /// Restricts an IOAS to these addresses, so that no device that reserves any of them can be
    /// attached later; an empty list lifts it.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE`: a device attached now reserves some of them. `EINVAL`: they overlap, or one
    /// ends before it starts.
    pub fn allow_iovas(&self, ioas: IoasId, allowed: &[AllowedIova]) -> Result<(), IoctlError> {
        let mut list: Vec<_> = allowed
            .iter()
            .map(|range| i::iommu_iova_range { start: range.start, last: range.last })
            .collect();
        let mut allow = i::iommu_ioas_allow_iovas {
            size: len_u32(size_of::<i::iommu_ioas_allow_iovas>()),
            ioas_id: ioas.0,
            num_iovas: len_u32(list.len()),
            allowed_iovas: address_of(list.as_mut_ptr()),
            ..Default::default()
        };
        // SAFETY: the structure of this ioctl, size its size; the kernel reads `num_iovas` ranges
        // from `list`, which has that many.
        unsafe { self.call(ioctl::IOAS_ALLOW_IOVAS, &mut allow, || ioas.to_string()) }
    }

    /// Maps `length_bytes` of this process's memory at `vaddr`, and returns at which IOVA.
    ///
    /// While no device is attached, nothing is pinned or even looked at: errors then come from the
    /// attach.
    ///
    /// # Errors
    ///
    /// `EEXIST`: overlaps a mapping. `EINVAL`: misaligned, empty, or touches a reserved range.
    /// `ENOSPC`: no room. `EOVERFLOW`: wraps. `ENOMEM`: memory or `RLIMIT_MEMLOCK`. `EFAULT`: no
    /// such memory, or a device's registers. `ENOENT`: no such IOAS.
    ///
    /// # Safety
    ///
    /// Until the range is unmapped, devices may read and, with `perms.write`, change the memory at
    /// any time, including memory that has come to lie at `vaddr` by the time a device is
    /// attached: the address range must stay mapped to this memory, and no Rust reference may
    /// rely on it meanwhile.
    #[inline]
    pub unsafe fn map(
        &self,
        ioas: IoasId,
        iova: IovaChoice,
        vaddr: u64,
        length_bytes: u64,
        perms: DmaPerms,
    ) -> Result<u64, IoctlError> {
        let (flags, address) = map_flags(iova, perms);
        let mut map = i::iommu_ioas_map {
            size: len_u32(size_of::<i::iommu_ioas_map>()),
            flags,
            ioas_id: ioas.0,
            user_va: vaddr,
            length: length_bytes,
            iova: address,
            ..Default::default()
        };
        let object = || range_of(ioas, address, length_bytes);
        // SAFETY: the structure of this ioctl, size its size; the caller vouches for vaddr.
        unsafe { self.call(ioctl::IOAS_MAP, &mut map, object) }?;
        Ok(map.iova)
    }

    /// Maps part of a memfd (or shmem or hugetlbfs file), and returns at which IOVA.
    ///
    /// # Errors
    ///
    /// As [`Iommufd::map`]; also `EINVAL`: not such a file, or past its end (which is only found
    /// when the pages are pinned), and `ENOTTY`: the kernel doesn't know the call.
    ///
    /// # Kernel
    ///
    /// `IOMMU_IOAS_MAP_FILE`, 6.13.
    pub fn map_file(
        &self,
        ioas: IoasId,
        iova: IovaChoice,
        file: impl AsFd,
        file_offset: u64,
        length_bytes: u64,
        perms: DmaPerms,
    ) -> Result<u64, IoctlError> {
        let (flags, address) = map_flags(iova, perms);
        let mut map = i::iommu_ioas_map_file {
            size: len_u32(size_of::<i::iommu_ioas_map_file>()),
            flags,
            ioas_id: ioas.0,
            fd: file.as_fd().as_raw_fd(),
            start: file_offset,
            length: length_bytes,
            iova: address,
        };
        let object = || range_of(ioas, address, length_bytes);
        // SAFETY: the structure of this ioctl, size its size. It names memory by file: whoever
        // maps that file knows that others, devices among them, can change it.
        unsafe { self.call(ioctl::IOAS_MAP_FILE, &mut map, object) }?;
        Ok(map.iova)
    }

    /// Unmaps every mapping that lies wholly in the range, and returns how many bytes that were;
    /// `(0, u64::MAX)` is everything, and succeeds with 0 where nothing is mapped.
    ///
    /// # Errors
    ///
    /// `ENOENT`: nothing is mapped there, or the range would cut a mapping. `EBUSY`: a mapping is
    /// being made or removed right now. Mappings before the one that failed are gone by then.
    #[inline]
    pub fn unmap(&self, ioas: IoasId, iova: u64, length_bytes: u64) -> Result<u64, IoctlError> {
        let mut unmap = i::iommu_ioas_unmap {
            size: len_u32(size_of::<i::iommu_ioas_unmap>()),
            ioas_id: ioas.0,
            iova,
            length: length_bytes,
        };
        let object = || range_of(ioas, iova, length_bytes);
        // SAFETY: the structure of this ioctl, size its size, no addresses of ours in it.
        unsafe { self.call(ioctl::IOAS_UNMAP, &mut unmap, object) }?;
        Ok(unmap.length)
    }

    /// Unmaps everything in an IOAS, and returns how many bytes that were.
    ///
    /// # Errors
    ///
    /// As [`Iommufd::unmap`].
    pub fn unmap_all(&self, ioas: IoasId) -> Result<u64, IoctlError> {
        self.unmap(ioas, 0, u64::MAX)
    }

    /// Maps what is mapped at `source` a second time, in the same or another IOAS of this context;
    /// its pages are pinned and counted once.
    ///
    /// # Errors
    ///
    /// `ENOENT`: the source isn't mapped throughout. `EPERM`: writing asked for read-only memory.
    /// Else as [`Iommufd::map`].
    ///
    /// # Safety
    ///
    /// The copy outlives the source's unmapping: what [`Iommufd::map`] demands of the memory holds
    /// until the copy is unmapped too.
    pub unsafe fn copy(
        &self,
        source: (IoasId, u64),
        target: (IoasId, IovaChoice),
        length_bytes: u64,
        perms: DmaPerms,
    ) -> Result<u64, IoctlError> {
        let (flags, address) = map_flags(target.1, perms);
        let mut copy = i::iommu_ioas_copy {
            size: len_u32(size_of::<i::iommu_ioas_copy>()),
            flags,
            dst_ioas_id: target.0.0,
            src_ioas_id: source.0.0,
            length: length_bytes,
            dst_iova: address,
            src_iova: source.1,
        };
        let object = || range_of(target.0, address, length_bytes);
        // SAFETY: the structure of this ioctl, size its size, no addresses of ours in it; the
        // caller vouches for the memory behind the source.
        unsafe { self.call(ioctl::IOAS_COPY, &mut copy, object) }?;
        Ok(copy.dst_iova)
    }

    /// Says against what pinned memory is counted. Only possible before the first object.
    ///
    /// # Errors
    ///
    /// `EPERM`: needs `CAP_SYS_RESOURCE`. `EBUSY`: there is an object already.
    pub fn set_rlimit_mode(&self, mode: RlimitMode) -> Result<(), IoctlError> {
        let value = match mode {
            RlimitMode::User => 0,
            RlimitMode::Process => 1,
        };
        let option = i::iommufd_option_IOMMU_OPTION_RLIMIT_MODE;
        self.option(i::iommufd_option_ops_IOMMU_OPTION_OP_SET, option, 0, value)?;
        Ok(())
    }

    /// Against what pinned memory is counted.
    ///
    /// # Errors
    ///
    /// None are known.
    pub fn rlimit_mode(&self) -> Result<RlimitMode, IoctlError> {
        let option = i::iommufd_option_IOMMU_OPTION_RLIMIT_MODE;
        let value = self.option(i::iommufd_option_ops_IOMMU_OPTION_OP_GET, option, 0, 0)?;
        Ok(if value == 0 { RlimitMode::User } else { RlimitMode::Process })
    }

    /// Lets the IOAS use large IOMMU pages (as it does at first), or not.
    ///
    /// # Errors
    ///
    /// `EINVAL`: there are page tables and mappings. `EADDRINUSE`: a mapping's alignment.
    pub fn set_huge_pages(&self, ioas: IoasId, on: bool) -> Result<(), IoctlError> {
        let option = i::iommufd_option_IOMMU_OPTION_HUGE_PAGES;
        let set = i::iommufd_option_ops_IOMMU_OPTION_OP_SET;
        self.option(set, option, ioas.0, u64::from(on))?;
        Ok(())
    }

    /// Whether the IOAS uses large IOMMU pages.
    ///
    /// # Errors
    ///
    /// `ENOENT`: no such IOAS.
    pub fn huge_pages(&self, ioas: IoasId) -> Result<bool, IoctlError> {
        let option = i::iommufd_option_IOMMU_OPTION_HUGE_PAGES;
        Ok(self.option(i::iommufd_option_ops_IOMMU_OPTION_OP_GET, option, ioas.0, 0)? != 0)
    }

    /// Which IOAS the VFIO container ioctls on this file would use.
    ///
    /// # Errors
    ///
    /// `ENODEV`: none.
    pub fn vfio_ioas(&self) -> Result<IoasId, IoctlError> {
        let op = i::iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_GET;
        Ok(IoasId(self.vfio_ioas_op(op, IoasId(0))?))
    }

    /// Sets which IOAS the VFIO container ioctls on this file use; `None`: none.
    ///
    /// # Errors
    ///
    /// `ENOENT`: no such IOAS.
    pub fn set_vfio_ioas(&self, ioas: Option<IoasId>) -> Result<(), IoctlError> {
        match ioas {
            Some(ioas) => {
                self.vfio_ioas_op(i::iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_SET, ioas)?;
            }
            None => {
                self.vfio_ioas_op(i::iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_CLEAR, IoasId(0))?;
            }
        }
        Ok(())
    }

    /// Makes a page table for a device over an IOAS (or a nested one over a page table).
    ///
    /// # Errors
    ///
    /// `ENOENT`: no such device. `EINVAL`: the parent is of the wrong kind. `EOPNOTSUPP`: the
    /// IOMMU can't do what the flags ask for. `ENOMEM`, `EFAULT`: memory of the IOAS can't be
    /// pinned.
    ///
    /// # Kernel
    ///
    /// `IOMMU_HWPT_ALLOC`, 6.6.
    pub fn hwpt_alloc(
        &self,
        device: DevId,
        parent: PtId,
        flags: HwptFlags,
    ) -> Result<HwptId, IoctlError> {
        let mut bits = 0;
        for (wanted, bit) in [
            (flags.nest_parent, i::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT),
            (flags.dirty_tracking, i::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING),
            (flags.pasid, i::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID),
        ] {
            if wanted {
                bits |= bit;
            }
        }
        let mut alloc = i::iommu_hwpt_alloc {
            size: len_u32(size_of::<i::iommu_hwpt_alloc>()),
            flags: bits,
            dev_id: device.0,
            pt_id: parent.raw(),
            ..Default::default()
        };
        let object = || format!("{device} over {parent}");
        // SAFETY: the structure of this ioctl, size its size; data_len is 0, so no address.
        unsafe { self.call(ioctl::HWPT_ALLOC, &mut alloc, object) }?;
        Ok(HwptId(alloc.out_hwpt_id))
    }

    /// Asks what the IOMMU before a device can do. Has no effect, and so tells whether the device
    /// is bound in this context at all.
    ///
    /// # Errors
    ///
    /// `ENOENT`: no such device, or not any more. `EOPNOTSUPP`: this IOMMU does not say.
    ///
    /// # Kernel
    ///
    /// `IOMMU_GET_HW_INFO`, 6.6; capabilities 6.7.
    pub fn get_hw_info(&self, device: DevId) -> Result<HwInfo, IoctlError> {
        let mut info = i::iommu_hw_info {
            size: len_u32(size_of::<i::iommu_hw_info>()),
            dev_id: device.0,
            ..Default::default()
        };
        // SAFETY: the structure of this ioctl, size its size; data_len is 0, so no address.
        unsafe { self.call(ioctl::GET_HW_INFO, &mut info, || device.to_string()) }?;
        // SAFETY: both members of the union are the same u32 at the same place.
        let data_type = unsafe { info.__bindgen_anon_1.out_data_type };
        let dirty = i::iommufd_hw_capabilities_IOMMU_HW_CAP_DIRTY_TRACKING;
        Ok(HwInfo {
            data_type,
            dirty_tracking: info.out_capabilities & u64::from(dirty) != 0,
            max_pasid_log2: info.out_max_pasid_log2,
            capabilities: info.out_capabilities,
        })
    }

    /// Counts everything mapped in this context against this process from now on.
    ///
    /// # Errors
    ///
    /// `EINVAL`: something is mapped by address instead of by file. `EBUSY`: a mapping is being
    /// made. `ENOMEM`: `RLIMIT_MEMLOCK`.
    ///
    /// # Kernel
    ///
    /// `IOMMU_IOAS_CHANGE_PROCESS`, 6.13.
    pub fn change_process(&self) -> Result<(), IoctlError> {
        let mut change = i::iommu_ioas_change_process::default();
        change.size = len_u32(size_of_val(&change));
        // SAFETY: the structure of this ioctl, size its size, no addresses in it.
        unsafe { self.call(ioctl::IOAS_CHANGE_PROCESS, &mut change, || "iommufd".to_owned()) }
    }

    fn option(&self, op: u32, id: u32, object_id: u32, value: u64) -> Result<u64, IoctlError> {
        let mut option = i::iommu_option {
            size: len_u32(size_of::<i::iommu_option>()),
            option_id: id,
            op: u16::try_from(op).unwrap_or(u16::MAX),
            object_id,
            val64: value,
            ..Default::default()
        };
        let object = || format!("option {id} of object {object_id}");
        // SAFETY: the structure of this ioctl, size its size, no addresses in it.
        unsafe { self.call(ioctl::OPTION, &mut option, object) }?;
        Ok(option.val64)
    }

    fn vfio_ioas_op(&self, op: u32, ioas: IoasId) -> Result<u32, IoctlError> {
        let mut set = i::iommu_vfio_ioas {
            size: len_u32(size_of::<i::iommu_vfio_ioas>()),
            ioas_id: ioas.0,
            op: u16::try_from(op).unwrap_or(u16::MAX),
            ..Default::default()
        };
        // SAFETY: the structure of this ioctl, size its size, no addresses in it.
        unsafe { self.call(ioctl::VFIO_IOAS, &mut set, || ioas.to_string()) }?;
        Ok(set.ioas_id)
    }

    /// One ioctl; the object's name is only made when it fails.
    ///
    /// # Safety
    ///
    /// As [`ioctl::with_struct`].
    #[inline]
    unsafe fn call<T>(
        &self,
        op: ioctl::Op,
        arg: &mut T,
        object: impl FnOnce() -> String,
    ) -> Result<(), IoctlError> {
        // SAFETY: the caller's promise.
        match unsafe { ioctl::with_struct(self.as_fd(), op, arg) } {
            Ok(_) => Ok(()),
            Err(errno) => Err(IoctlError::new(op.name, object(), errno)),
        }
    }
}

#[inline]
fn map_flags(iova: IovaChoice, perms: DmaPerms) -> (u32, u64) {
    let mut flags = 0;
    if perms.read {
        flags |= i::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
    }
    if perms.write {
        flags |= i::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
    }
    match iova {
        IovaChoice::Fixed(iova) => {
            (flags | i::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA, iova)
        }
        IovaChoice::Any => (flags, 0),
    }
}

fn range_of(ioas: IoasId, iova: u64, length_bytes: u64) -> String {
    format!("{iova:#x}+{length_bytes:#x} of {ioas}")
}

fn address_of<T>(pointer: *mut T) -> u64 {
    len_u64(pointer.expose_provenance())
}

impl AsFd for Iommufd {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Iommufd {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<Iommufd> for OwnedFd {
    fn from(iommufd: Iommufd) -> Self {
        iommufd.fd
    }
}
