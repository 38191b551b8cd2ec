//! `/dev/vfio/devices/vfioN`: a device by itself, bound to an iommufd before it can be used.
//!
//! The life cycle is the types': a [`Cdev`] is open and can only be bound, a [`BoundDevice`] is
//! owned by a context and can be attached and detached. There is no unbinding but the last close.
#![expect(unsafe_code, reason = "passes structures to ioctl")]

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio as v;

use crate::bytes::{len_u32, len_u64};
use crate::device::open_node;
use crate::{DevId, Device, HwptId, IoctlError, Iommufd, PtId, ioctl};

/// What the kernel reads of `vfio_device_bind_iommufd` when no token is given: the structure as it
/// was before tokens, so that kernels of that time see nothing new.
const BIND_BYTES_WITHOUT_TOKEN: u32 = 16;
/// `vfio_device_attach_iommufd_pt` without its PASID field.
const ATTACH_BYTES: u32 = 12;
/// `vfio_device_detach_iommufd_pt` without its PASID field.
const DETACH_BYTES: u32 = 8;

/// The secret a PF's driver set for its VFs: a UUID's 16 bytes. It isn't printed by `{:?}`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VfToken(pub [u8; 16]);

impl fmt::Debug for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken(secret)")
    }
}

impl VfToken {
    /// As [`VfioGroup::get_device_fd`](crate::VfioGroup::get_device_fd) and VMMs take it:
    /// `01234567-89ab-cdef-0123-456789abcdef`.
    pub fn text(&self) -> String {
        let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hex[part]);
        parts.join("-")
    }

    /// Reads what [`VfToken::text`] writes; `None` where it is anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex: String = text.split('-').collect();
        let digits = hex.len() == 32 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
        let mut token = Self([0; 16]);
        for (at, byte) in token.0.iter_mut().enumerate().filter(|_| digits) {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
        }
        (digits && token.text() == text.to_ascii_lowercase()).then_some(token)
    }
}

/// A device that is open and not bound: it claims nothing, but its driver can't be unbound.
#[derive(Debug)]
pub struct Cdev {
    fd: OwnedFd,
    name: Box<str>,
}

/// A failed bind, with the cdev back for another try.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct BindError {
    /// The device, still unbound.
    pub cdev: Cdev,
    /// What the kernel answered.
    pub error: IoctlError,
}

impl From<BindError> for IoctlError {
    fn from(failed: BindError) -> Self {
        failed.error
    }
}

impl Cdev {
    /// Opens a device by the path of its cdev; `name` (its address) is what errors call it.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the device is going away. The path is the error's object.
    pub fn open(path: &Path, name: &str) -> Result<Self, IoctlError> {
        Ok(Self::from_fd(open_node(path)?, name))
    }

    /// Takes over an open, unbound cdev that came from elsewhere.
    pub fn from_fd(fd: OwnedFd, name: &str) -> Self {
        Self { fd, name: name.into() }
    }

    /// Gives up the wrapper and keeps the file open.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Makes the context of `iommufd` the owner of the device's group, or joins where it is.
    ///
    /// The device is reset on the way. A device bound stays bound until the last reference to this
    /// open file is closed.
    ///
    /// # Errors
    ///
    /// `EPERM`: a sibling is on a host driver, another context or container owns the group, or
    /// interrupts are not isolated; the kernel doesn't say which. `EBUSY`: the group node is open,
    /// or a reset is going on. `EINVAL`: bound already (here or through another file), DMA isn't
    /// cache coherent, firmware demands a 1:1 mapping, or a token was given that isn't used.
    /// `EACCES`: the VF token is missing or wrong. `EAGAIN`: reset lock contention.
    ///
    /// # Kernel
    ///
    /// `VFIO_DEVICE_BIND_IOMMUFD`, 6.6; with a token 6.17.
    pub fn bind_iommufd(
        self,
        iommufd: &Iommufd,
        token: Option<&VfToken>,
    ) -> Result<BoundDevice, BindError> {
        let op = ioctl::DEVICE_BIND_IOMMUFD;
        let mut bind = v::vfio_device_bind_iommufd {
            argsz: BIND_BYTES_WITHOUT_TOKEN,
            iommufd: iommufd.as_fd().as_raw_fd(),
            ..Default::default()
        };
        if let Some(VfToken(uuid)) = token {
            bind.argsz = len_u32(size_of::<v::vfio_device_bind_iommufd>());
            bind.flags = v::VFIO_DEVICE_BIND_FLAG_TOKEN;
            bind.token_uuid_ptr = len_u64(uuid.as_ptr().expose_provenance());
        }
        // SAFETY: the structure of this ioctl, argsz at most its size; the token's 16 bytes are
        // borrowed for the call, and the kernel only reads them.
        match unsafe { ioctl::with_struct(self.fd.as_fd(), op, &mut bind) } {
            Ok(_) => Ok(BoundDevice {
                dev_id: DevId(bind.out_devid),
                device: Device::from_fd(self.fd, &self.name),
            }),
            Err(errno) => {
                let error = IoctlError::new(op.name, &*self.name, errno);
                Err(BindError { cdev: self, error })
            }
        }
    }
}

impl Cdev {
    /// Whether a bind of this device takes a VF token, so that one which needs it is refused without
    /// (`EACCES`). Asked with a token that can't be read, which binds nothing, resets nothing.
    ///
    /// # Errors
    ///
    /// `EBUSY`: the group node is open. The kernel's, where it took the bind for something else.
    ///
    /// # Kernel
    ///
    /// `vfio_df_check_token`, 6.17: `EFAULT`. Before, and of devices that have none: `EINVAL`.
    pub fn takes_vf_token(&self, iommufd: &Iommufd) -> Result<bool, IoctlError> {
        let op = ioctl::DEVICE_BIND_IOMMUFD;
        let mut bind = v::vfio_device_bind_iommufd {
            argsz: len_u32(size_of::<v::vfio_device_bind_iommufd>()),
            flags: v::VFIO_DEVICE_BIND_FLAG_TOKEN,
            iommufd: iommufd.as_fd().as_raw_fd(),
            token_uuid_ptr: 0,
            ..Default::default()
        };
        // SAFETY: the structure of this ioctl, argsz its size; the address in it is that of no
        // memory, which the kernel finds out.
        match unsafe { ioctl::with_struct(self.fd.as_fd(), op, &mut bind) } {
            Err(Errno::FAULT) => Ok(true),
            Err(Errno::INVAL) => Ok(false),
            Err(errno) => Err(IoctlError::new(op.name, &*self.name, errno)),
            Ok(_) => Err(IoctlError::new(op.name, &*self.name, Errno::PROTO)),
        }
    }
}

impl AsFd for Cdev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Cdev> for OwnedFd {
    fn from(cdev: Cdev) -> Self {
        cdev.fd
    }
}

/// A device bound to an iommufd.
#[derive(Debug)]
pub struct BoundDevice {
    device: Device,
    dev_id: DevId,
}

impl BoundDevice {
    /// Takes over a bound device that came from elsewhere: `dev_id` is what its bind answered.
    pub fn from_fd(fd: OwnedFd, dev_id: DevId, name: &str) -> Self {
        Self { device: Device::from_fd(fd, name), dev_id }
    }

    /// Gives up the wrapper and keeps the file open, and with it the device bound.
    pub fn into_fd(self) -> OwnedFd {
        self.device.into_fd()
    }

    /// Gives up the wrapper and keeps the id and the open file.
    pub fn into_parts(self) -> (OwnedFd, DevId) {
        (self.device.into_fd(), self.dev_id)
    }

    /// The device's id in its context.
    pub fn dev_id(&self) -> DevId {
        self.dev_id
    }

    /// The device itself: regions, interrupts, reset.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Attaches the device's group to an address space; where it is attached already, replaces
    /// that, for every member of the group and without asking them.
    ///
    /// Returns the page table the group uses now; one the kernel made for an IOAS dies with its
    /// last device.
    ///
    /// # Errors
    ///
    /// `ENOENT`: no such id in this context. `EINVAL`: a sibling is attached to another page
    /// table, or the id is of another kind. `EADDRINUSE`: a reserved region of the device is
    /// mapped. `ENOMEM`, `EFAULT`: memory mapped while nothing was attached cannot be pinned now.
    /// `EBUSY`: a reset is going on.
    ///
    /// # Kernel
    ///
    /// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`, 6.6.
    pub fn attach_pt(&self, pt: PtId) -> Result<HwptId, IoctlError> {
        if crate::ATTACH_DOES_NOTHING {
            return Ok(HwptId(pt.raw()));
        }
        let op = ioctl::DEVICE_ATTACH_IOMMUFD_PT;
        let mut attach = v::vfio_device_attach_iommufd_pt {
            argsz: ATTACH_BYTES,
            pt_id: pt.raw(),
            ..Default::default()
        };
        // SAFETY: the structure of this ioctl, argsz at most its size, no addresses in it.
        unsafe { ioctl::with_struct(self.as_fd(), op, &mut attach) }.map_err(|errno| {
            IoctlError::new(op.name, format!("{} ({pt})", self.device.name()), errno)
        })?;
        Ok(HwptId(attach.pt_id))
    }

    /// Detaches the device. When it was the group's last one attached, the group's DMA is blocked;
    /// before that, the device's own DMA goes on.
    ///
    /// # Errors
    ///
    /// None are known for a bound device; detaching twice succeeds.
    ///
    /// # Kernel
    ///
    /// `VFIO_DEVICE_DETACH_IOMMUFD_PT`, 6.6.
    pub fn detach(&self) -> Result<(), IoctlError> {
        let op = ioctl::DEVICE_DETACH_IOMMUFD_PT;
        let mut detach =
            v::vfio_device_detach_iommufd_pt { argsz: DETACH_BYTES, ..Default::default() };
        // SAFETY: the structure of this ioctl, argsz at most its size, no addresses in it.
        unsafe { ioctl::with_struct(self.as_fd(), op, &mut detach) }
            .map_err(|errno: Errno| IoctlError::new(op.name, self.device.name(), errno))?;
        Ok(())
    }
}

impl AsFd for BoundDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl From<BoundDevice> for OwnedFd {
    fn from(bound: BoundDevice) -> Self {
        bound.into_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::VfToken;

    #[test]
    fn a_token_is_written_as_a_uuid_and_not_printed() {
        let token = VfToken(std::array::from_fn(|at| u8::try_from(at * 17).unwrap_or_default()));
        assert_eq!(token.text(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(format!("{token:?}"), "VfToken(secret)");
    }

    #[test]
    fn a_token_is_read_as_it_is_written_and_no_other_way() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        assert_eq!(VfToken::parse(text).map(|token| token.text()).as_deref(), Some(text));
        assert_eq!(VfToken::parse(&text.to_uppercase()), VfToken::parse(text));
        for wrong in
            ["", "0011", "00112233445566778899aabbccddeeff", &text[1..], &format!("{text}0")]
        {
            assert_eq!(VfToken::parse(wrong), None, "{wrong}");
        }
        assert_eq!(VfToken::parse("0011223é-4455-6677-8899-aabbccddeef"), None);
    }
}
