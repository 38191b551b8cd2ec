//! What discovery needs from a function's configuration space.
//!
//! Pure: it reads through a callback, because on hardware every dword is a bus access and the
//! whole 4 KiB would cost a thousand of them. Nothing in here trusts the device: capability
//! chains are bounded and offsets checked.

use crate::{Acs, Isolation, PortType};

/// The header and the standard capabilities: what is read in one piece.
pub(super) const STANDARD_BYTES: usize = 256;
/// What an unprivileged reader gets.
const HEADER_BYTES: usize = 64;
/// Bytes read at each extended capability: its header and the first two registers.
pub(super) const STEP_BYTES: usize = 12;

const EXTENDED_START: u16 = 0x100;
/// A chain can't be longer than the space has room for.
const MAX_STANDARD_CAPS: usize = 48;
const MAX_EXTENDED_CAPS: usize = (4096 - 256) / 8;

const CAP_EXPRESS: u8 = 0x10;
const EXT_SERIAL: u16 = 0x0003;
const EXT_ACS: u16 = 0x000d;
const EXT_SRIOV: u16 = 0x0010;

/// The ids, class and capabilities of one function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ConfigSpace {
    pub vendor: u16,
    pub device: u16,
    pub subsystem_vendor: u16,
    pub subsystem_device: u16,
    /// 24 bits.
    pub class: u32,
    pub revision: u8,
    /// Header type 1: a bridge or port.
    pub bridge: bool,
    /// The function says that its device has several.
    pub multifunction: bool,
    pub capabilities: Capabilities,
}

/// The capabilities that grouping and identity rest on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Whether the chains could be read at all.
    pub known: bool,
    /// `None`: conventional PCI.
    pub port: Option<PortType>,
    pub acs: Option<Acs>,
    pub serial: Option<u64>,
    pub sriov: bool,
}

impl ConfigSpace {
    /// What it says of isolation; `None` where the capabilities couldn't be read.
    pub(super) fn isolation(&self) -> Option<Isolation> {
        let Capabilities { known, port, acs, .. } = self.capabilities;
        known.then_some(Isolation { port, acs, multifunction: self.multifunction })
    }
}

/// Parses the beginning of a configuration space and, by `read`, the extended capabilities.
///
/// `start` is as much of the first 256 bytes as could be read. `read` fills a step at an offset
/// of at least 256 and answers whether it could. `None` when even the ids are missing.
pub(super) fn parse(
    start: &[u8],
    read: impl FnMut(u16, &mut [u8; STEP_BYTES]) -> bool,
) -> Option<ConfigSpace> {
    if start.len() < HEADER_BYTES {
        return None;
    }
    let header_type = start[0x0e];
    let bridge = header_type & 0x7f == 1;
    let (subsystem_vendor, subsystem_device) = match header_type & 0x7f {
        0 => (word(start, 0x2c)?, word(start, 0x2e)?),
        _ => (0, 0),
    };
    Some(ConfigSpace {
        vendor: word(start, 0)?,
        device: word(start, 2)?,
        subsystem_vendor,
        subsystem_device,
        class: u32::from_le_bytes([start[9], start[10], start[11], 0]),
        revision: start[8],
        bridge,
        multifunction: header_type & 0x80 != 0,
        capabilities: capabilities(start, read),
    })
}

fn capabilities(
    start: &[u8],
    read: impl FnMut(u16, &mut [u8; STEP_BYTES]) -> bool,
) -> Capabilities {
    const STATUS_CAPABILITIES: u16 = 1 << 4;
    let mut found = Capabilities { known: start.len() >= STANDARD_BYTES, ..Default::default() };
    if !found.known || word(start, 6).is_none_or(|status| status & STATUS_CAPABILITIES == 0) {
        return found;
    }
    found.port = express_port(start);
    if found.port.is_some() {
        extended(&mut found, read);
    }
    found
}

fn express_port(start: &[u8]) -> Option<PortType> {
    let mut at = usize::from(start[0x34] & !3);
    for _ in 0..MAX_STANDARD_CAPS {
        if at < HEADER_BYTES || at + 4 > start.len() {
            return None;
        }
        if start[at] == CAP_EXPRESS {
            return Some(PortType::from_flags(word(start, at + 2)?));
        }
        at = usize::from(start[at + 1] & !3);
    }
    None
}

fn extended(found: &mut Capabilities, mut read: impl FnMut(u16, &mut [u8; STEP_BYTES]) -> bool) {
    let mut at = EXTENDED_START;
    let mut step = [0; STEP_BYTES];
    for _ in 0..MAX_EXTENDED_CAPS {
        if !read(at, &mut step) {
            return;
        }
        let header = u32::from_le_bytes([step[0], step[1], step[2], step[3]]);
        if header == 0 || header == u32::MAX {
            return;
        }
        match u16::from_le_bytes([step[0], step[1]]) {
            EXT_SERIAL => {
                let number = u64::from_le_bytes([
                    step[4], step[5], step[6], step[7], step[8], step[9], step[10], step[11],
                ]);
                found.serial = (number != 0 && number != u64::MAX).then_some(number);
            }
            EXT_ACS => {
                found.acs = Some(Acs {
                    capable: u16::from_le_bytes([step[4], step[5]]),
                    enabled: u16::from_le_bytes([step[6], step[7]]),
                });
            }
            EXT_SRIOV => found.sriov = true,
            _ => {}
        }
        let next = u16::from_le_bytes([step[2], step[3]]) >> 4 & !3;
        if next <= EXTENDED_START {
            return;
        }
        at = next;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
#[path = "config_space_tests.rs"]
mod tests;
