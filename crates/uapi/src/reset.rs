//! Resetting a whole bus or slot: who is affected, and doing it.
#![expect(unsafe_code, reason = "passes structures to ioctl")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use vfio_bindings::bindings::vfio as v;

use crate::bytes::{len_u32, push_u32s, read_u32};
use crate::{DevId, Device, GroupNumber, IoctlError, ioctl};

const INFO_BYTES: usize = 12;
const DEVICE_BYTES: usize = 8;
/// A bus has at most 256 functions, a reset can affect the buses below: more is not believed.
const MAX_DEVICES: usize = 65_536;

/// A device that a hot reset would reset too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotResetDevice {
    /// PCI segment (domain).
    pub segment: u16,
    /// PCI bus.
    pub bus: u8,
    /// PCI device (5 bits) and function (3 bits).
    pub devfn: u8,
    /// Whose it is.
    pub owner: HotResetOwner,
}

/// Whose an affected device is, as far as the asking file can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotResetOwner {
    /// It is in this group; asked through a group's device.
    Group(GroupNumber),
    /// It is bound in the asker's context; asked through a cdev.
    Bound(DevId),
    /// It is not bound, but its group belongs to the asker's context.
    SameOwner,
    /// It belongs to somebody else or to nobody.
    NotOwned,
}

/// What a hot reset of a device would affect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotResetInfo {
    /// Every device that would be reset, the asking one among them.
    pub devices: Vec<HotResetDevice>,
    /// All of them belong to the asker's context; only known when asked through a cdev.
    pub all_owned: Option<bool>,
}

impl HotResetDevice {
    /// The address in full, such as `0000:65:00.0`.
    pub fn address(&self) -> String {
        let (device, function) = (self.devfn >> 3, self.devfn & 7);
        format!("{:04x}:{:02x}:{device:02x}.{function}", self.segment, self.bus)
    }
}

impl Device {
    /// Asks which devices a hot reset of this one would affect.
    ///
    /// # Errors
    ///
    /// `ENODEV`: neither its slot nor its bus can be reset. `EAGAIN`: the topology has changed
    /// meanwhile, ask again.
    pub fn hot_reset_info(&self) -> Result<HotResetInfo, IoctlError> {
        let op = ioctl::DEVICE_GET_PCI_HOT_RESET_INFO;
        let mut room = 0;
        // The first call learns the count; a device plugged in between asks for a third.
        for _ in 0..4 {
            let mut bytes = vec![0u8; INFO_BYTES + DEVICE_BYTES * room];
            let argsz = len_u32(bytes.len());
            bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
            // SAFETY: begins with the header of this ioctl, argsz is the buffer's length, and it
            // holds no addresses.
            let answer = unsafe { ioctl::with_bytes(self.as_fd(), op, &mut bytes) };
            let count = read_u32(&bytes, 8).and_then(|count| usize::try_from(count).ok());
            match (answer, count) {
                (Ok(_), _) => return parse(&bytes).ok_or_else(|| self.error(op, Errno::PROTO)),
                (Err(Errno::NOSPC), Some(count)) if count > room && count <= MAX_DEVICES => {
                    room = count;
                }
                (Err(errno), _) => return Err(self.error(op, errno)),
            }
        }
        Err(self.error(op, Errno::AGAIN))
    }

    /// Resets the device's slot or bus, with every device on it.
    ///
    /// A device opened through its group proves ownership with all affected groups' files; a cdev
    /// proves it by its context and passes none.
    ///
    /// # Errors
    ///
    /// `EINVAL`: an affected device is not on a VFIO driver, or not owned by the asker; or groups
    /// given for a cdev, or none for a group's device. `ENODEV`: no such reset. `EBUSY`: lock
    /// contention.
    pub fn pci_hot_reset(&self, groups: &[BorrowedFd<'_>]) -> Result<(), IoctlError> {
        let op = ioctl::DEVICE_PCI_HOT_RESET;
        let argsz = len_u32(INFO_BYTES + 4 * groups.len());
        let mut bytes = Vec::with_capacity(INFO_BYTES + 4 * groups.len());
        push_u32s(&mut bytes, &[argsz, 0, len_u32(groups.len())]);
        for group in groups {
            bytes.extend_from_slice(&group.as_raw_fd().to_ne_bytes());
        }
        // SAFETY: begins with the header of this ioctl, argsz is the buffer's length, and it holds
        // file descriptor numbers (borrowed for the call) but no addresses.
        unsafe { ioctl::with_bytes(self.as_fd(), op, &mut bytes) }
            .map_err(|errno| self.error(op, errno))?;
        Ok(())
    }
}

/// Reads `struct vfio_pci_hot_reset_info` and the devices behind it.
fn parse(bytes: &[u8]) -> Option<HotResetInfo> {
    let flags = read_u32(bytes, 4)?;
    let by_context = flags & v::VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0;
    let all_owned = flags & v::VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED != 0;
    let count = usize::try_from(read_u32(bytes, 8)?).ok()?;
    let devices = bytes.get(INFO_BYTES..)?.chunks_exact(DEVICE_BYTES);
    if devices.len() < count {
        return None;
    }
    let devices = devices.take(count).map(|device| {
        let id = read_u32(device, 0)?;
        let owner = match (by_context, id) {
            (false, group) => HotResetOwner::Group(GroupNumber(group)),
            (true, v::VFIO_PCI_DEVID_OWNED) => HotResetOwner::SameOwner,
            (true, u32::MAX) => HotResetOwner::NotOwned,
            (true, id) => HotResetOwner::Bound(DevId(id)),
        };
        let segment = crate::bytes::read_u16(device, 4)?;
        Some(HotResetDevice { segment, bus: *device.get(6)?, devfn: *device.get(7)?, owner })
    });
    let devices = devices.collect::<Option<Vec<_>>>()?;
    Some(HotResetInfo { devices, all_owned: by_context.then_some(all_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(flags: u32, count: u32, devices: &[(u32, [u8; 4])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_u32s(&mut bytes, &[0, flags, count]);
        for (id, place) in devices {
            push_u32s(&mut bytes, &[*id]);
            bytes.extend_from_slice(place);
        }
        bytes
    }

    #[test]
    fn reads_groups() {
        let info = parse(&answer(0, 1, &[(8, [0, 0, 0x65, 0x0b])])).expect("valid");
        assert_eq!(info.all_owned, None);
        assert_eq!(info.devices[0].address(), "0000:65:01.3");
        assert_eq!(info.devices[0].owner, HotResetOwner::Group(GroupNumber(8)));
    }

    #[test]
    fn reads_context_owners() {
        let place = [0, 0, 2, 8];
        let devices = [(0, place), (u32::MAX, place), (5, place)];
        let info = parse(&answer(1, 3, &devices)).expect("valid");
        assert_eq!(info.all_owned, Some(false));
        let owners: Vec<_> = info.devices.iter().map(|device| device.owner).collect();
        use HotResetOwner::{Bound, NotOwned, SameOwner};
        assert_eq!(owners, [SameOwner, NotOwned, Bound(DevId(5))]);
    }

    #[test]
    fn refuses_a_count_beyond_the_bytes() {
        assert_eq!(parse(&answer(0, 2, &[(8, [0; 4])])), None);
    }
}
