//! What the machine shows, read by the parsers that discovery uses: for fuzzers, and for the replay
//! of what they found.

use std::io::BufRead;

use crate::{
    Bar, IovaRange, Uevent,
    linux::{
        acts::access_list::AccessList,
        config_space, groups, memory, procs, resource, uevents,
        uses::{mounts, routes},
        variants::Variants,
    },
};

/// The base address registers of `resource`.
#[must_use]
pub fn bars(resource: &[u8]) -> Vec<Bar> {
    resource::parse(resource)
}

/// A message of the kernel about a PCI function.
#[must_use]
pub fn uevent(message: &[u8]) -> Option<Uevent> {
    uevents::parse(message)
}

/// A group's `reserved_regions`.
#[must_use]
pub fn reserved_regions(text: &str) -> Vec<IovaRange> {
    groups::parse_regions(text)
}

/// Device number, mount point and source of each line of `mountinfo`.
#[must_use]
pub fn mounts(mountinfo: &str) -> Vec<[String; 3]> {
    let lines = mounts::parse(mountinfo).into_iter();
    lines.map(|mount| [mount.device, mount.point, mount.source]).collect()
}

/// The areas of `/proc/swaps`.
#[must_use]
pub fn swaps(text: &str) -> Vec<String> {
    mounts::swaps(text)
}

/// Interface and network of each route of `/proc/net/route`.
#[must_use]
pub fn routes(text: &str) -> Vec<(String, String)> {
    routes::parse_v4(text).into_iter().map(|route| (route.interface, route.network)).collect()
}

/// The same of `/proc/net/ipv6_route`.
#[must_use]
pub fn routes_v6(text: &str) -> Vec<(String, String)> {
    routes::parse_v6(text).into_iter().map(|route| (route.interface, route.network)).collect()
}

/// Parent and start time out of `/proc/PID/stat`.
#[must_use]
pub fn parent_and_start(stat: &str) -> Option<(i32, u64)> {
    procs::parent_and_start_of(stat)
}

/// `MemTotal` of `/proc/meminfo`.
///
/// # Units
/// Bytes.
#[must_use]
pub fn total_memory(meminfo: &str) -> Option<u64> {
    memory::parse(meminfo)
}

/// What discovery makes of a configuration space, and how often it asked for more than the first 256
/// bytes.
#[must_use]
pub fn configuration_space(bytes: &[u8]) -> (Option<String>, usize) {
    let mut steps = 0;
    let start = &bytes[..bytes.len().min(config_space::STANDARD_BYTES)];
    let found = config_space::parse(start, |at, step| {
        steps += 1;
        match bytes.get(usize::from(at)..usize::from(at) + step.len()) {
            Some(found) => {
                step.copy_from_slice(found);
                true
            }
            None => false,
        }
    });
    (found.map(|found| format!("{found:?}")), steps)
}

/// The driver that `modules.alias` names for a device with this configuration space.
#[must_use]
pub fn driver_for(modules_alias: impl BufRead, space: &[u8]) -> Option<String> {
    let ids = config_space::parse(space, |_, _| false)?;
    Some(Variants::parse(modules_alias).driver_for(&ids).to_owned())
}

/// A file's access list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(AccessList);

impl Acl {
    /// Reads the extended attribute.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        AccessList::parse(bytes).map(Self)
    }

    /// The attribute's bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.0.bytes()
    }

    /// What a named user may.
    #[must_use]
    pub fn user(&self, uid: u32) -> Option<u16> {
        self.0.user(uid)
    }

    /// Lets a user read and write.
    pub fn allow(&mut self, uid: u32) {
        self.0.allow(uid);
    }

    /// Takes the user's entry out.
    pub fn forbid(&mut self, uid: u32) {
        self.0.forbid(uid);
    }
}
