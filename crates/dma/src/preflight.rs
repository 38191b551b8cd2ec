//! Whether a guest's memory can be mapped, before anything is: with the numbers.

use std::ptr::NonNull;

use berth_uapi::{IovaChoice, IovaRange};

use crate::AddressSpace;
use crate::error::DmaError;
use crate::limits::{Memlock, field};
use crate::memory::{as_u64, page_bytes};

/// Microseconds that mapping a GiB takes: 280 ms for 16 GiB of small pages and 47 ms of large ones,
/// as measured for the kernel's change "vfio/type1: optimize vfio_pin_pages_remote" on one host.
const MAP_SMALL_US: u64 = 17_500;
const MAP_LARGE_US: u64 = 2_900;
/// Microseconds that zeroing a GiB of new memory takes: 79% of 32.45 s for a guest of 120 GB, as
/// measured for the kernel's change "iommufd: batch pinning".
const ZERO_US: u64 = 228_000;

/// What is to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// Where devices are to see it.
    pub iova: IovaChoice,
    /// How long it is.
    pub length: u64,
}

/// What mapping would take, and what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preflight {
    /// The sum of what is planned.
    pub bytes: u64,
    /// Mappings that are needed: neighbours in IOVA and memory may become one.
    pub mappings: usize,
    /// Mappings that the back end still has; `None` where it has no limit or doesn't say.
    pub mappings_left: Option<u32>,
    /// The limit on locked memory.
    pub memlock: Memlock,
    /// What may be mapped.
    pub permitted: Vec<IovaRange>,
    /// The smallest pages of the IOMMU, which places and lengths must be multiples of.
    pub alignment: u64,
    /// Page sizes of the IOMMU, a bit each; 0 where the back end doesn't say.
    pub page_sizes: u64,
    /// About how long the map takes, zeroing new memory with one thread included.
    pub estimate: Estimate,
}

/// About how long it takes, from figures of one machine: an order of magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Mapping memory of small pages that is there already, in milliseconds.
    pub small_pages_ms: u64,
    /// Mapping memory of large pages that is there already, in milliseconds.
    pub large_pages_ms: u64,
    /// Zeroing memory that isn't there yet, in milliseconds of one thread.
    pub populate_ms: u64,
}

impl Estimate {
    /// For so much memory.
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        let ms = |per_gib: u64| {
            let us = (u128::from(bytes) * u128::from(per_gib)) >> 30;
            u64::try_from(us / 1000).unwrap_or(u64::MAX)
        };
        Self {
            small_pages_ms: ms(MAP_SMALL_US),
            large_pages_ms: ms(MAP_LARGE_US),
            populate_ms: ms(ZERO_US),
        }
    }
}

impl AddressSpace {
    /// Looks whether all of this can be mapped, and maps nothing.
    ///
    /// What other users of the address space have isn't known here, and other processes can lock
    /// memory in the meantime: the map itself can still be refused.
    ///
    /// # Errors
    ///
    /// The first that stands in the way: `Misaligned`, `Empty`, `Overflow`, `NotPermitted`,
    /// `Overlap`, `NoSpace`, `EntryLimit`, `Memlock`, each with its numbers; or the kernel's.
    pub fn preflight(&self, planned: &[Planned]) -> Result<Preflight, DmaError> {
        let room = self.room()?;
        let bytes = planned.iter().map(|one| one.length).fold(0, u64::saturating_add);
        let preflight = Preflight {
            bytes,
            mappings: planned.len(),
            mappings_left: room.mappings_left,
            memlock: Memlock::read(room.mode),
            permitted: room.permitted,
            alignment: room.alignment.max(page_bytes()),
            page_sizes: room.page_sizes,
            estimate: Estimate::of(bytes),
        };
        self.could_map(planned)?;
        let left = preflight.mappings_left.and_then(|left| usize::try_from(left).ok());
        if left.is_some_and(|left| left < planned.len()) {
            let mapped = self.stats().mappings;
            return Err(DmaError::EntryLimit { iova: 0, length: bytes, mapped });
        }
        preflight.memlock.refuses(bytes).map_or(Ok(preflight), Err)
    }
}

/// How much of this memory stands on large pages, of what is there: 0 to 100.
///
/// Memory that isn't there yet doesn't count. `None` where none is there, or `/proc` doesn't tell.
pub fn large_page_share(memory: NonNull<u8>, length: u64) -> Option<u8> {
    let start = as_u64(memory.as_ptr().addr());
    let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    share_of(&maps, start, start.saturating_add(length))
}

fn share_of(maps: &str, start: u64, end: u64) -> Option<u8> {
    let (mut there, mut large) = (0_u64, 0_u64);
    let mut counts = false;
    for line in maps.lines() {
        if let Some((low, high)) = bounds(line) {
            counts = low < end && start < high;
        } else if counts {
            let kib = |name: &str| field(line, name).and_then(|n| n.parse::<u64>().ok());
            there += kib("Rss:").unwrap_or(0);
            let hugetlb = kib("Shared_Hugetlb:").or(kib("Private_Hugetlb:")).unwrap_or(0);
            there += hugetlb;
            let large_kinds = ["AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:"];
            large += hugetlb + large_kinds.iter().filter_map(|name| kib(name)).sum::<u64>();
        }
    }
    (there > 0).then(|| u8::try_from(large.min(there) * 100 / there).unwrap_or(100))
}

/// The addresses of a mapping's first line in `smaps`.
fn bounds(line: &str) -> Option<(u64, u64)> {
    let (low, high) = line.split_whitespace().next()?.split_once('-')?;
    Some((u64::from_str_radix(low, 16).ok()?, u64::from_str_radix(high, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DmaBuffer, DmaPerms, SimFlavour, SimIoas, SimLimits};

    const PAGE: u64 = 4096;

    fn plan(iova: IovaChoice, length: u64) -> Planned {
        Planned { iova, length }
    }

    #[test]
    fn says_what_stands_in_the_way_and_maps_nothing() {
        let limits = SimLimits { entries: 3, ..SimLimits::default() };
        let sim = SimIoas::new(SimFlavour::Type1, limits);
        let space = AddressSpace::simulated(sim.clone());
        let buffer = DmaBuffer::new(4096).expect("memory");
        let (any, fixed) = (IovaChoice::Any, IovaChoice::Fixed);
        space.map_buffer(fixed(PAGE), &buffer, DmaPerms::READ).expect("free");
        let refused = |plan: &[Planned]| space.preflight(plan).expect_err("it can't be");
        assert!(matches!(refused(&[plan(any, 0)]), DmaError::Empty));
        assert!(matches!(refused(&[plan(fixed(PAGE), PAGE)]), DmaError::Overlap { .. }));
        assert!(matches!(refused(&[plan(fixed(7), PAGE)]), DmaError::Misaligned { .. }));
        let msi = plan(fixed(0xfee0_0000), PAGE);
        assert!(matches!(refused(&[plan(any, PAGE), msi]), DmaError::NotPermitted { .. }));
        assert!(matches!(refused(&[plan(any, 1 << 60)]), DmaError::NoSpace { largest: 1.., .. }));
        let three = [plan(any, PAGE); 3];
        assert!(matches!(refused(&three), DmaError::EntryLimit { mapped: 1, .. }));
        let found = space.preflight(&[plan(any, PAGE), plan(fixed(0), PAGE)]).expect("it can be");
        assert_eq!((found.bytes, found.mappings, found.mappings_left), (2 * PAGE, 2, Some(2)));
        assert_eq!((sim.areas().len(), space.regions().len()), (1, 1));
    }

    #[test]
    fn estimates_grow_with_the_guest() {
        let estimate = Estimate::of(16 << 30);
        assert_eq!((estimate.small_pages_ms, estimate.large_pages_ms), (280, 46));
        assert_eq!(Estimate::of(120 << 30).populate_ms, 27_360);
    }

    #[test]
    fn the_share_of_large_pages_is_of_what_is_there() {
        let maps = "1000-9000 rw-p 0 00:00 0\nRss: 8 kB\nAnonHugePages: 0 kB\n\
                    200000-600000 rw-p 0 00:00 0\nRss: 4096 kB\nAnonHugePages: 2048 kB\n\
                    800000-a00000 rw-p 0 00:00 0\nRss: 0 kB\nPrivate_Hugetlb: 2048 kB\n";
        assert_eq!(share_of(maps, 0x1000, 0x2000), Some(0));
        assert_eq!(share_of(maps, 0x20_0000, 0x60_0000), Some(50));
        assert_eq!(share_of(maps, 0x20_0000, 0xa0_0000), Some(66));
        assert_eq!(share_of(maps, 0x90_0000, 0x90_1000), Some(100));
        assert_eq!(share_of(maps, 0x10_0000_0000, 0x20_0000_0000), None);
        let buffer = DmaBuffer::new(4096).expect("memory");
        assert!(large_page_share(buffer.memory().base(), 4096).is_none_or(|share| share <= 100));
    }
}
