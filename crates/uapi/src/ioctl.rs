//! The one place that enters ioctl(2), and the table of what may be asked there.
#![expect(unsafe_code, reason = "ioctl(2) takes a raw pointer the kernel reads and writes")]

use std::ffi::{c_int, c_void};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

/// An ioctl: its name in the kernel's headers and its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) name: &'static str,
    opcode: Opcode,
}

impl Op {
    /// VFIO and iommufd both declare every ioctl as `_IO(';', nr)`: the size of the argument is a
    /// field of the argument, not of the number.
    const fn new(name: &'static str, nr: u8) -> Self {
        Self { name, opcode: opcode::none(b';', nr) }
    }

    #[cfg(test)]
    pub(crate) const fn number(self) -> Opcode {
        self.opcode
    }
}

macro_rules! ops {
    ($($ident:ident = $prefix:literal $nr:literal;)*) => {
        $(pub(crate) const $ident: Op = Op::new(concat!($prefix, stringify!($ident)), $nr);)*
    };
}

ops! {
    GET_API_VERSION = "VFIO_" 0x64;
    CHECK_EXTENSION = "VFIO_" 0x65;
    SET_IOMMU = "VFIO_" 0x66;
    GROUP_GET_STATUS = "VFIO_" 0x67;
    GROUP_SET_CONTAINER = "VFIO_" 0x68;
    GROUP_UNSET_CONTAINER = "VFIO_" 0x69;
    GROUP_GET_DEVICE_FD = "VFIO_" 0x6a;
    DEVICE_GET_INFO = "VFIO_" 0x6b;
    DEVICE_GET_REGION_INFO = "VFIO_" 0x6c;
    DEVICE_GET_IRQ_INFO = "VFIO_" 0x6d;
    DEVICE_SET_IRQS = "VFIO_" 0x6e;
    DEVICE_RESET = "VFIO_" 0x6f;
    DEVICE_GET_PCI_HOT_RESET_INFO = "VFIO_" 0x70;
    IOMMU_GET_INFO = "VFIO_" 0x70;
    DEVICE_PCI_HOT_RESET = "VFIO_" 0x71;
    IOMMU_MAP_DMA = "VFIO_" 0x71;
    IOMMU_UNMAP_DMA = "VFIO_" 0x72;
    DEVICE_FEATURE = "VFIO_" 0x75;
    DEVICE_BIND_IOMMUFD = "VFIO_" 0x76;
    DEVICE_ATTACH_IOMMUFD_PT = "VFIO_" 0x77;
    DEVICE_DETACH_IOMMUFD_PT = "VFIO_" 0x78;
    DESTROY = "IOMMU_" 0x80;
    IOAS_ALLOC = "IOMMU_" 0x81;
    IOAS_ALLOW_IOVAS = "IOMMU_" 0x82;
    IOAS_COPY = "IOMMU_" 0x83;
    IOAS_IOVA_RANGES = "IOMMU_" 0x84;
    IOAS_MAP = "IOMMU_" 0x85;
    IOAS_UNMAP = "IOMMU_" 0x86;
    OPTION = "IOMMU_" 0x87;
    VFIO_IOAS = "IOMMU_" 0x88;
    HWPT_ALLOC = "IOMMU_" 0x89;
    GET_HW_INFO = "IOMMU_" 0x8a;
    IOAS_MAP_FILE = "IOMMU_" 0x8f;
    IOAS_CHANGE_PROCESS = "IOMMU_" 0x92;
}

struct Call {
    opcode: Opcode,
    arg: *mut c_void,
}

// SAFETY: the opcode and pointer are passed through unchanged; `call`'s caller vouches for both.
// The call counts as mutating, and only the integer result is taken from the kernel.
unsafe impl Ioctl for Call {
    type Output = c_int;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.arg
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _arg: *mut c_void) -> rustix::io::Result<c_int> {
        Ok(out)
    }
}

/// Enters the kernel, again after `EINTR`, and keeps its errno.
///
/// # Safety
///
/// `arg` must be what the kernel expects for `op` on this kind of file: an integer, or a pointer
/// to a structure whose size field does not claim more than is there, and whose own pointers are
/// valid for what the kernel does with them.
#[inline]
unsafe fn call(fd: BorrowedFd<'_>, op: Op, arg: *mut c_void) -> Result<c_int, Errno> {
    loop {
        // SAFETY: guaranteed by the caller.
        match unsafe { rustix::ioctl::ioctl(fd, Call { opcode: op.opcode, arg }) } {
            Err(Errno::INTR) => {}
            answer => return answer,
        }
    }
}

/// Calls an ioctl whose argument is a plain integer (or nothing).
pub(crate) fn with_value(fd: BorrowedFd<'_>, op: Op, value: usize) -> Result<c_int, Errno> {
    let arg = std::ptr::without_provenance_mut(value);
    // SAFETY: no memory stands behind `arg`. If the kernel took it for a pointer after all, the
    // small integers used here lie in the unmapped first page and would answer EFAULT.
    unsafe { call(fd, op, arg) }
}

/// Calls an ioctl whose argument is a structure of fixed layout.
///
/// # Safety
///
/// `T` must be the kernel's structure for `op`, its size field at most `size_of::<T>()`, and every
/// address in it valid for what the kernel does with it.
#[inline]
pub(crate) unsafe fn with_struct<T>(
    fd: BorrowedFd<'_>,
    op: Op,
    arg: &mut T,
) -> Result<c_int, Errno> {
    // SAFETY: `arg` is a live exclusive reference; the rest is the caller's promise.
    unsafe { call(fd, op, std::ptr::from_mut(arg).cast()) }
}

/// Calls an ioctl whose argument is a header followed by variable-size data.
///
/// # Safety
///
/// `arg` must begin with the kernel's header for `op`, the size it states must be at most
/// `arg.len()`, and it must hold no addresses. The kernel copies bytewise, so alignment is free.
pub(crate) unsafe fn with_bytes(
    fd: BorrowedFd<'_>,
    op: Op,
    arg: &mut [u8],
) -> Result<c_int, Errno> {
    // SAFETY: `arg` is a live exclusive slice; the rest is the caller's promise.
    unsafe { call(fd, op, arg.as_mut_ptr().cast()) }
}

#[cfg(test)]
#[path = "ioctl_tests.rs"]
mod tests;
