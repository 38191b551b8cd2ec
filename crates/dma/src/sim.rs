//! A simulated I/O address space with the kernel's rules and errnos.
//!
//! Answers are those of [`berth_uapi`]'s calls: unmapping what isn't mapped is `ENOENT` on type1
//! too, where the kernel itself answers with success and zero bytes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_uapi::{DmaPerms, Errno, IovaChoice, IovaRange};

use crate::alloc::{Wanted, place};
use crate::mirror::Source;

/// Which kernel interface is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimFlavour {
    /// An IOAS of an iommufd.
    Iommufd,
    /// A type1 v2 container.
    Type1,
}

/// What the simulated IOMMU permits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimLimits {
    /// Addresses that may be mapped, ascending.
    pub permitted: Vec<IovaRange>,
    /// What addresses and lengths must be multiples of.
    pub alignment: u64,
    /// How many mappings there can be.
    pub entries: usize,
    /// How much memory can be mapped.
    pub locked_bytes: u64,
    /// What type1 answers to a range that wraps: `EOVERFLOW` on 7.3, `EINVAL` on 6.12.
    pub type1_wrap: Errno,
}

impl Default for SimLimits {
    /// 48 bits of addresses around the x86 MSI window, 4 KiB pages, the kernel's default of
    /// entries, no limit on memory.
    fn default() -> Self {
        let below = IovaRange { start: 0, last: 0xfedf_ffff };
        let above = IovaRange { start: 0xfef0_0000, last: (1 << 48) - 1 };
        Self {
            permitted: vec![below, above],
            alignment: 4096,
            entries: 65_535,
            locked_bytes: u64::MAX,
            type1_wrap: Errno::OVERFLOW,
        }
    }
}

/// One mapping of a simulated address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimArea {
    /// Where it is.
    pub iova: u64,
    /// How long it is.
    pub length: u64,
    /// What devices may do with it.
    pub perms: DmaPerms,
    /// What it shows.
    pub source: Source,
}

impl SimArea {
    fn last(&self) -> u64 {
        self.iova.saturating_add(self.length - 1)
    }
}

#[derive(Debug)]
struct State {
    flavour: SimFlavour,
    limits: SimLimits,
    /// What its user restricted it to, if it did.
    allowed: Vec<IovaRange>,
    areas: BTreeMap<u64, SimArea>,
    locked: u64,
    calls: u64,
    faults: VecDeque<Errno>,
    #[cfg(test)]
    pause: Option<Arc<std::sync::Barrier>>,
}

/// A simulated I/O address space; clones are handles on the same one.
#[derive(Clone, Debug)]
pub struct SimIoas {
    state: Arc<Mutex<State>>,
}

impl Default for SimIoas {
    fn default() -> Self {
        Self::new(SimFlavour::Iommufd, SimLimits::default())
    }
}

impl SimIoas {
    /// An empty address space.
    pub fn new(flavour: SimFlavour, limits: SimLimits) -> Self {
        let (areas, faults, allowed) = (BTreeMap::new(), VecDeque::new(), Vec::new());
        let state = State {
            flavour,
            limits,
            allowed,
            areas,
            locked: 0,
            calls: 0,
            faults,
            #[cfg(test)]
            pause: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Which kernel interface this simulates.
    pub fn flavour(&self) -> SimFlavour {
        self.lock().flavour
    }

    /// Maps, and returns where.
    ///
    /// # Errors
    ///
    /// As the kernel, in its order: iommufd `EOVERFLOW`, `EINVAL` (access, length, alignment),
    /// `EOVERFLOW` (wrap), `EINVAL` (reserved), `EEXIST`; type1 `EINVAL` (length 0), the errno of a
    /// wrap, `EINVAL` (access, alignment), `EEXIST`, `ENOSPC` (entries), `EINVAL` (not permitted).
    /// Then `ENOMEM`.
    pub fn map(
        &self,
        iova: IovaChoice,
        length: u64,
        perms: DmaPerms,
        source: Source,
    ) -> Result<u64, Errno> {
        #[cfg(test)]
        self.paused();
        let mut state = self.lock();
        state.fault()?;
        let iova = match state.flavour {
            SimFlavour::Iommufd => state.check_iommufd(iova, length, perms, source)?,
            SimFlavour::Type1 => state.check_type1(iova, length, perms, source)?,
        };
        let locked = state.locked.saturating_add(length);
        if locked > state.limits.locked_bytes {
            return Err(Errno::NOMEM);
        }
        state.locked = locked;
        state.areas.insert(iova, SimArea { iova, length, perms, source });
        Ok(iova)
    }

    /// Unmaps every mapping that lies wholly in the range, and returns how many bytes that were.
    ///
    /// On iommufd `(0, u64::MAX)` is everything, and mappings before one that would be cut are
    /// gone when the error comes, as in the kernel.
    ///
    /// # Errors
    ///
    /// `EINVAL`: length 0; a cut or a misalignment on type1. `EOVERFLOW`: a wrap.
    /// `ENOENT`: nothing there, or a cut.
    pub fn unmap(&self, iova: u64, length: u64) -> Result<u64, Errno> {
        let mut state = self.lock();
        state.fault()?;
        match state.flavour {
            SimFlavour::Iommufd if (iova, length) == (0, u64::MAX) => Ok(state.clear()),
            SimFlavour::Iommufd => state.unmap_iommufd(iova, length),
            SimFlavour::Type1 => state.unmap_type1(iova, length),
        }
    }

    /// Unmaps everything, and returns how many bytes that were.
    ///
    /// # Errors
    ///
    /// Scripted ones only.
    pub fn unmap_all(&self) -> Result<u64, Errno> {
        let mut state = self.lock();
        state.fault()?;
        Ok(state.clear())
    }

    /// Maps what is mapped at `iova` at a place of `target`, too, as if both were of one iommufd.
    ///
    /// # Errors
    ///
    /// `ENOENT`: not all of it is mapped. `EPERM`: writing asked for read-only memory. Else as
    /// [`SimIoas::map`].
    pub fn copy(
        &self,
        iova: u64,
        target: &Self,
        place: IovaChoice,
        length: u64,
        perms: DmaPerms,
    ) -> Result<u64, Errno> {
        let area = self.lookup(iova).ok_or(Errno::NOENT)?;
        let into = iova - area.iova;
        if area.length - into < length {
            return Err(Errno::NOENT);
        }
        if perms.write && !area.perms.write {
            return Err(Errno::PERM);
        }
        let source = match area.source {
            Source::Memory { address } => Source::Memory { address: address + into },
            Source::File { offset } => Source::File { offset: offset + into },
        };
        target.map(place, length, perms, source)
    }

    /// Says which addresses are to be used, so that they can't be reserved later; an empty list
    /// lifts it.
    ///
    /// # Errors
    ///
    /// `EINVAL`: they overlap, or one ends before it starts. `EADDRINUSE`: not all is permitted.
    pub fn allow(&self, ranges: &[IovaRange]) -> Result<(), Errno> {
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        let overlap = sorted.windows(2).any(|pair| pair[1].start <= pair[0].last);
        if overlap || sorted.iter().any(|range| range.start >= range.last) {
            return Err(Errno::INVAL);
        }
        let mut state = self.lock();
        let permitted = &state.limits.permitted;
        let inside = |range: &IovaRange| {
            permitted.iter().any(|p| p.start <= range.start && range.last <= p.last)
        };
        if !sorted.iter().all(inside) {
            return Err(Errno::ADDRINUSE);
        }
        state.allowed = sorted;
        Ok(())
    }

    /// Addresses that may be mapped.
    pub fn permitted(&self) -> Vec<IovaRange> {
        self.lock().limits.permitted.clone()
    }

    /// What addresses and lengths must be multiples of.
    pub fn alignment(&self) -> u64 {
        self.lock().limits.alignment
    }

    /// Replaces the permitted addresses, as an attached device does that reserves some.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE`: something is mapped outside them, or allowed.
    pub fn set_permitted(&self, permitted: Vec<IovaRange>) -> Result<(), Errno> {
        let mut state = self.lock();
        let inside =
            |area: &SimArea| permitted.iter().any(|range| range.contains(area.iova, area.length));
        let stays = |allowed: &IovaRange| {
            permitted.iter().any(|range| range.start <= allowed.start && allowed.last <= range.last)
        };
        if !state.areas.values().all(inside) || !state.allowed.iter().all(stays) {
            return Err(Errno::ADDRINUSE);
        }
        state.limits.permitted = permitted;
        Ok(())
    }

    /// What is mapped, ascending.
    pub fn areas(&self) -> Vec<SimArea> {
        self.lock().areas.values().copied().collect()
    }

    /// What a device that accesses this address would reach.
    pub fn lookup(&self, iova: u64) -> Option<SimArea> {
        let state = self.lock();
        let (_, area) = state.areas.range(..=iova).next_back()?;
        (area.last() >= iova).then_some(*area)
    }

    /// How many more mappings fit, where that is limited.
    pub(crate) fn entries_left(&self) -> Option<u32> {
        let state = self.lock();
        let left = state.limits.entries.saturating_sub(state.areas.len());
        (state.flavour == SimFlavour::Type1).then(|| u32::try_from(left).unwrap_or(u32::MAX))
    }

    /// How often the simulated kernel was entered to map, unmap or copy.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Makes the next map or unmap fail, before it has any effect; several queue up.
    pub fn fail_next(&self, errno: Errno) {
        self.lock().faults.push_back(errno);
    }

    /// The next map waits in the kernel: it passes the barrier when it has come there, and again when
    /// it may go on.
    #[cfg(test)]
    pub(crate) fn pause_next(&self, barrier: Arc<std::sync::Barrier>) {
        self.lock().pause = Some(barrier);
    }

    #[cfg(test)]
    fn paused(&self) {
        let pause = self.lock().pause.take();
        if let Some(barrier) = pause {
            barrier.wait();
            barrier.wait();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one insertion or removal: it is whole after any panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts the call, and answers what was scripted for it.
    fn fault(&mut self) -> Result<(), Errno> {
        self.calls += 1;
        self.faults.pop_front().map_or(Ok(()), Err)
    }

    fn clear(&mut self) -> u64 {
        self.locked = 0;
        std::mem::take(&mut self.areas).values().map(|area| area.length).sum()
    }

    /// Where the kernel looks for a place.
    fn given_out(&self) -> &[IovaRange] {
        if self.allowed.is_empty() { &self.limits.permitted } else { &self.allowed }
    }

    fn check_iommufd(
        &self,
        iova: IovaChoice,
        length: u64,
        perms: DmaPerms,
        source: Source,
    ) -> Result<u64, Errno> {
        let fixed = match iova {
            IovaChoice::Fixed(iova) => iova,
            IovaChoice::Any => 0,
        };
        if fixed == u64::MAX || length == u64::MAX {
            return Err(Errno::OVERFLOW);
        }
        if !perms.read && !perms.write {
            return Err(Errno::INVAL);
        }
        if length == 0 || !length.is_multiple_of(self.limits.alignment) {
            return Err(Errno::INVAL);
        }
        match iova {
            IovaChoice::Any => self.place(length, source).map_err(|_| Errno::NOSPC),
            IovaChoice::Fixed(iova) if !iova.is_multiple_of(self.limits.alignment) => {
                Err(Errno::INVAL)
            }
            IovaChoice::Fixed(iova) => {
                let last = iova.checked_add(length - 1).ok_or(Errno::OVERFLOW)?;
                self.check_permitted(iova, length)?;
                self.check_free(iova, last)?;
                Ok(iova)
            }
        }
    }

    fn check_type1(
        &self,
        iova: IovaChoice,
        length: u64,
        perms: DmaPerms,
        source: Source,
    ) -> Result<u64, Errno> {
        // Type1 leaves the choice to its user; the simulation chooses as that user does.
        let iova = match iova {
            IovaChoice::Fixed(iova) => iova,
            IovaChoice::Any => self.place(length, source).map_err(|_| Errno::NOSPC)?,
        };
        let span = length.checked_sub(1).ok_or(Errno::INVAL)?;
        let last = iova.checked_add(span).ok_or(self.limits.type1_wrap)?;
        let aligned = (iova | length).is_multiple_of(self.limits.alignment);
        if !(perms.read || perms.write) || !aligned {
            return Err(Errno::INVAL);
        }
        self.check_free(iova, last)?;
        if self.areas.len() >= self.limits.entries {
            return Err(Errno::NOSPC);
        }
        self.check_permitted(iova, length)?;
        Ok(iova)
    }

    fn place(&self, length: u64, source: Source) -> Result<u64, u64> {
        let memory = match source {
            Source::Memory { address } => address,
            Source::File { offset } => offset,
        };
        let taken =
            self.areas.values().map(|area| IovaRange { start: area.iova, last: area.last() });
        let wanted = Wanted { length, page: self.limits.alignment, memory };
        place(wanted, self.given_out(), taken)
    }

    fn check_permitted(&self, iova: u64, length: u64) -> Result<(), Errno> {
        let inside = self.limits.permitted.iter().any(|range| range.contains(iova, length));
        if inside { Ok(()) } else { Err(Errno::INVAL) }
    }

    fn check_free(&self, iova: u64, last: u64) -> Result<(), Errno> {
        match self.areas.range(..=last).next_back() {
            Some((_, area)) if area.last() >= iova => Err(Errno::EXIST),
            _ => Ok(()),
        }
    }

    fn unmap_iommufd(&mut self, iova: u64, length: u64) -> Result<u64, Errno> {
        if iova == u64::MAX || length == u64::MAX {
            return Err(Errno::OVERFLOW);
        }
        if length == 0 {
            return Err(Errno::INVAL);
        }
        let last = iova.checked_add(length - 1).ok_or(Errno::OVERFLOW)?;
        let mut unmapped = 0;
        while let Some(area) = self.first_in(iova, last) {
            if area.iova < iova || area.last() > last {
                return Err(Errno::NOENT);
            }
            unmapped += self.remove(area);
        }
        if unmapped == 0 { Err(Errno::NOENT) } else { Ok(unmapped) }
    }

    fn unmap_type1(&mut self, iova: u64, length: u64) -> Result<u64, Errno> {
        if length == 0 || !(iova | length).is_multiple_of(self.limits.alignment) {
            return Err(Errno::INVAL);
        }
        let last = iova.checked_add(length - 1).ok_or(self.limits.type1_wrap)?;
        // Type1 v2 looks at both ends before it removes anything.
        let low = self.first_in(iova, iova).is_some_and(|area| area.iova < iova);
        let high = self.first_in(last, last).is_some_and(|area| area.last() > last);
        if low || high {
            return Err(Errno::INVAL);
        }
        let mut unmapped = 0;
        while let Some(area) = self.first_in(iova, last) {
            unmapped += self.remove(area);
        }
        if unmapped == 0 { Err(Errno::NOENT) } else { Ok(unmapped) }
    }

    fn remove(&mut self, area: SimArea) -> u64 {
        self.areas.remove(&area.iova);
        self.locked -= area.length;
        area.length
    }

    /// The first mapping with any address from `iova` to `last`.
    fn first_in(&self, iova: u64, last: u64) -> Option<SimArea> {
        let before = self.areas.range(..iova).next_back().map(|(_, area)| *area);
        let inside = || self.areas.range(iova..=last).next().map(|(_, area)| *area);
        before.filter(|area| area.last() >= iova).or_else(inside)
    }
}

#[cfg(test)]
#[path = "sim_tests.rs"]
mod tests;
