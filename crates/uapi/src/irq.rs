//! Interrupts of a device, delivered to eventfds.
#![expect(unsafe_code, reason = "passes structures to ioctl")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use vfio_bindings::bindings::vfio as v;

use crate::bytes::{len_u32, push_u32s};
use crate::{Device, IoctlError, IrqIndex, ioctl};

const IRQ_SET_BYTES: usize = 20;

/// What a kind of interrupt of a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// How many vectors there are; 0: not implemented.
    pub count: u32,
    /// They can be delivered to eventfds.
    pub eventfd: bool,
    /// They can be masked.
    pub maskable: bool,
    /// They mask themselves when they fire.
    pub automasked: bool,
    /// All vectors must be set up in one call.
    pub noresize: bool,
}

impl Device {
    /// Asks about one kind of interrupt.
    ///
    /// # Errors
    ///
    /// `EINVAL`: no such index.
    pub fn irq_info(&self, index: IrqIndex) -> Result<IrqInfo, IoctlError> {
        let op = ioctl::DEVICE_GET_IRQ_INFO;
        let argsz = len_u32(size_of::<v::vfio_irq_info>());
        let mut info = v::vfio_irq_info { argsz, index: index.0, ..Default::default() };
        // SAFETY: the structure of this ioctl, argsz its size, no addresses in it.
        unsafe { ioctl::with_struct(self.as_fd(), op, &mut info) }
            .map_err(|errno| self.irq_error(op, index, errno))?;
        let has = |flag| info.flags & flag != 0;
        Ok(IrqInfo {
            count: info.count,
            eventfd: has(v::VFIO_IRQ_INFO_EVENTFD),
            maskable: has(v::VFIO_IRQ_INFO_MASKABLE),
            automasked: has(v::VFIO_IRQ_INFO_AUTOMASKED),
            noresize: has(v::VFIO_IRQ_INFO_NORESIZE),
        })
    }

    /// Delivers vectors `first..` of one kind to these eventfds.
    ///
    /// # Errors
    ///
    /// `EINVAL`: no such vectors, or another kind is in use. `ENOSPC`: fewer vectors are free.
    pub fn set_irq_eventfds(
        &self,
        index: IrqIndex,
        first: u32,
        eventfds: &[BorrowedFd<'_>],
    ) -> Result<(), IoctlError> {
        let flags = v::VFIO_IRQ_SET_DATA_EVENTFD | v::VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(index, flags, first, len_u32(eventfds.len()), eventfds)
    }

    /// Stops delivering one kind of interrupt.
    ///
    /// # Errors
    ///
    /// `EINVAL`: no such index.
    pub fn disable_irqs(&self, index: IrqIndex) -> Result<(), IoctlError> {
        let flags = v::VFIO_IRQ_SET_DATA_NONE | v::VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(index, flags, 0, 0, &[])
    }

    /// Unmasks one vector, such as an INTx that masked itself when it fired.
    ///
    /// # Errors
    ///
    /// `EINVAL`: no such vector, or not maskable.
    pub fn unmask_irq(&self, index: IrqIndex, vector: u32) -> Result<(), IoctlError> {
        let flags = v::VFIO_IRQ_SET_DATA_NONE | v::VFIO_IRQ_SET_ACTION_UNMASK;
        self.set_irqs(index, flags, vector, 1, &[])
    }

    fn set_irqs(
        &self,
        index: IrqIndex,
        flags: u32,
        start: u32,
        count: u32,
        eventfds: &[BorrowedFd<'_>],
    ) -> Result<(), IoctlError> {
        let op = ioctl::DEVICE_SET_IRQS;
        let argsz = len_u32(IRQ_SET_BYTES + 4 * eventfds.len());
        let mut bytes = Vec::with_capacity(IRQ_SET_BYTES + 4 * eventfds.len());
        push_u32s(&mut bytes, &[argsz, flags, index.0, start, count]);
        for fd in eventfds {
            bytes.extend_from_slice(&fd.as_raw_fd().to_ne_bytes());
        }
        // SAFETY: begins with the header of this ioctl, argsz is the buffer's length, and it holds
        // file descriptor numbers (borrowed for the call) but no addresses.
        unsafe { ioctl::with_bytes(self.as_fd(), op, &mut bytes) }
            .map_err(|errno| self.irq_error(op, index, errno))?;
        Ok(())
    }

    fn irq_error(&self, op: ioctl::Op, index: IrqIndex, errno: Errno) -> IoctlError {
        IoctlError::new(op.name, format!("{index} of {}", self.name()), errno)
    }
}
