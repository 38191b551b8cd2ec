//! The address space of a simulated IOAS or container: what is mapped, and what may be.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_dma::{AddressSpace, DmaPerms, Errno, IovaChoice, SimFlavour, SimIoas, SimLimits};

use crate::IovaRange;

/// Last address of a 48-bit IOMMU.
const APERTURE_LAST: u64 = (1 << 48) - 1;

/// An address space, shared by all handles on it.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    ioas: SimIoas,
    reserved: Arc<Mutex<BTreeMap<u32, Vec<IovaRange>>>>,
}

impl Space {
    /// An IOAS: anything may be mapped until a device is attached.
    pub(crate) fn iommufd() -> Self {
        Self::new(SimFlavour::Iommufd, u64::MAX)
    }

    /// A container: nothing may be mapped until a group is attached.
    pub(crate) fn type1() -> Self {
        let space = Self::new(SimFlavour::Type1, 0);
        space.permit(Vec::new());
        space
    }

    fn new(flavour: SimFlavour, last: u64) -> Self {
        let permitted = vec![berth_dma::IovaRange { start: 0, last }];
        let ioas = SimIoas::new(flavour, SimLimits { permitted, ..SimLimits::default() });
        Self { ioas, reserved: Arc::default() }
    }

    /// Whether something is mapped where a group can't have it.
    pub(crate) fn overlaps(&self, reserved: &[IovaRange]) -> bool {
        let areas = self.ioas.areas();
        areas.iter().any(|area| {
            let last = area.iova.saturating_add(area.length - 1);
            last > APERTURE_LAST
                || reserved.iter().any(|r| counts(r) && r.first <= last && area.iova <= r.last)
        })
    }

    /// A group is attached: its reserved ranges are out of bounds, and what its IOMMU can't reach.
    pub(crate) fn reserve(&self, group: u32, reserved: &[IovaRange]) {
        self.lock().insert(group, reserved.iter().filter(|r| counts(r)).cloned().collect());
        self.update();
    }

    /// A group left.
    pub(crate) fn release(&self, group: u32) {
        self.lock().remove(&group);
        self.update();
    }

    /// Maps a page of a file.
    pub(crate) fn map_page(&self, iova: u64) -> Result<(), Errno> {
        let perms = DmaPerms { read: true, write: true };
        let source = berth_dma::Source::File { offset: 0 };
        self.ioas.map(IovaChoice::Fixed(iova), 4096, perms, source).map(drop)
    }

    /// Everything is unmapped; scripted faults don't count.
    pub(crate) fn clear(&self) -> u64 {
        self.ioas.unmap_all().or_else(|_| self.ioas.unmap_all()).unwrap_or(0)
    }

    /// The fast path's view.
    pub(crate) fn address_space(&self) -> AddressSpace {
        AddressSpace::simulated(self.ioas.clone())
    }

    /// The next map or unmap fails.
    pub(crate) fn fail_next(&self, errno: Errno) {
        self.ioas.fail_next(errno);
    }

    /// What may be mapped now.
    pub(crate) fn ranges(&self) -> Vec<IovaRange> {
        let range = |r: berth_dma::IovaRange| IovaRange {
            first: r.start,
            last: r.last,
            kind: String::new(),
        };
        self.ioas.permitted().into_iter().map(range).collect()
    }

    /// What is mapped where a device reads or writes.
    pub(crate) fn lookup(&self, iova: u64) -> Option<berth_dma::SimArea> {
        self.ioas.lookup(iova)
    }

    fn update(&self) {
        let reserved: Vec<IovaRange> = self.lock().values().flatten().cloned().collect();
        let attached = !self.lock().is_empty();
        let permitted = match (self.ioas.flavour(), attached) {
            (SimFlavour::Iommufd, false) => holes(&[], u64::MAX),
            (SimFlavour::Type1, false) => Vec::new(),
            (_, true) => holes(&reserved, APERTURE_LAST),
        };
        self.permit(permitted);
    }

    fn permit(&self, permitted: Vec<berth_dma::IovaRange>) {
        // Refused only when something is mapped outside, which the attach has excluded and a
        // detach can't cause; a type1 space is cleared when its last group leaves.
        let _refused = self.ioas.set_permitted(permitted);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Vec<IovaRange>>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Relaxable ranges bind the kernel's own mappings only.
fn counts(range: &IovaRange) -> bool {
    range.kind != "direct-relaxable"
}

/// What is left of `0..=last` without the reserved ranges.
fn holes(reserved: &[IovaRange], last: u64) -> Vec<berth_dma::IovaRange> {
    let mut sorted: Vec<&IovaRange> = reserved.iter().collect();
    sorted.sort_by_key(|range| range.first);
    let mut free = Vec::new();
    let mut start = 0_u64;
    for range in sorted {
        if range.first > start {
            free.push(berth_dma::IovaRange { start, last: (range.first - 1).min(last) });
        }
        match range.last.checked_add(1) {
            Some(next) => start = start.max(next),
            None => return free,
        }
        if start > last {
            return free;
        }
    }
    free.push(berth_dma::IovaRange { start, last });
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange { first, last, kind: "msi".to_owned() }
    }

    #[test]
    fn holes_are_what_reserved_ranges_leave() {
        let shown = |reserved: &[IovaRange], last| {
            holes(reserved, last).iter().map(|r| (r.start, r.last)).collect::<Vec<_>>()
        };
        assert_eq!(shown(&[], 99), [(0, 99)]);
        assert_eq!(shown(&[range(0, 9), range(5, 19), range(40, 49)], 99), [(20, 39), (50, 99)]);
        assert_eq!(shown(&[range(90, u64::MAX)], 99), [(0, 89)]);
        assert_eq!(shown(&[range(0, 99)], 99), []);
    }
}
