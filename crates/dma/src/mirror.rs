//! What an address space has mapped, kept beside the kernel's own table, which can't be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_uapi::{DmaPerms, IovaRange};

use crate::alloc::{Wanted, place};
use crate::error::DmaError;
use crate::memory::Mapping;

/// Where the memory of a mapping comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Memory of this process, by its address.
    Memory {
        /// The address.
        address: u64,
    },
    /// Part of a file.
    File {
        /// Where in the file.
        offset: u64,
    },
}

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where devices see it.
    pub iova: u64,
    /// How long it is.
    pub length: u64,
    /// What devices may do with it.
    pub perms: DmaPerms,
    /// What it shows.
    pub source: Source,
}

impl Region {
    /// The addresses it takes.
    pub fn range(&self) -> IovaRange {
        IovaRange { start: self.iova, last: self.iova.saturating_add(self.length - 1) }
    }
}

/// How far a mapping has come; the lock is not held over the ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Mapping,
    Mapped,
    Unmapping,
}

#[derive(Debug)]
struct Entry {
    region: Region,
    stage: Stage,
    generation: u64,
    /// Memory that must stay where it is until the kernel has let go of it.
    keep: Option<Arc<Mapping>>,
}

/// Names one entry for good: addresses are used again, generations aren't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) iova: u64,
    generation: u64,
}

/// A mapping on its way out. Holds its memory itself, since the entry can be displaced meanwhile.
#[derive(Debug)]
pub(crate) struct Leaving {
    ticket: Ticket,
    keep: Option<Arc<Mapping>>,
}

/// All mappings, by IOVA.
///
/// The lock around it is not held over ioctls, so entries can be displaced between two calls: the
/// kernel hands out an address that an unmap in another thread has just freed. Every change
/// therefore names its entry by [`Ticket`], and memory is dropped only where the kernel is known
/// to have let go of it; where that isn't known it is leaked.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    entries: BTreeMap<u64, Entry>,
    generations: u64,
}

impl Mirror {
    /// The mapping that has any address of `range`, if there is one.
    fn overlapping(&self, range: IovaRange) -> Option<Region> {
        let (_, entry) = self.entries.range(..=range.last).next_back()?;
        (entry.region.range().last >= range.start).then_some(entry.region)
    }

    fn put(&mut self, region: Region, stage: Stage, keep: Option<Arc<Mapping>>) -> Ticket {
        self.generations += 1;
        let generation = self.generations;
        self.entries.insert(region.iova, Entry { region, stage, generation, keep });
        Ticket { iova: region.iova, generation }
    }

    fn get(&mut self, ticket: Ticket) -> Option<&mut Entry> {
        self.entries.get_mut(&ticket.iova).filter(|entry| entry.generation == ticket.generation)
    }

    /// Takes the region's addresses before the kernel is asked.
    ///
    /// # Errors
    ///
    /// Overlap.
    pub(crate) fn reserve(
        &mut self,
        region: Region,
        keep: Option<Arc<Mapping>>,
    ) -> Result<Ticket, DmaError> {
        if let Some(with) = self.overlapping(region.range()) {
            let (iova, length) = (region.iova, region.length);
            return Err(DmaError::Overlap { iova, length, with: Some(with) });
        }
        Ok(self.put(region, Stage::Mapping, keep))
    }

    /// Finds free addresses inside `permitted`, and takes them.
    ///
    /// # Errors
    ///
    /// No space.
    pub(crate) fn reserve_any(
        &mut self,
        wanted: Wanted,
        permitted: &[IovaRange],
        mut region: Region,
        keep: Option<Arc<Mapping>>,
    ) -> Result<Ticket, DmaError> {
        let taken = self.entries.values().map(|entry| entry.region.range());
        region.iova = place(wanted, permitted, taken)
            .map_err(|largest| DmaError::NoSpace { length: wanted.length, largest })?;
        Ok(self.put(region, Stage::Mapping, keep))
    }

    /// The kernel mapped what was reserved.
    pub(crate) fn publish(&mut self, ticket: Ticket, region: Region, keep: Option<Arc<Mapping>>) {
        match self.get(ticket) {
            Some(entry) => entry.stage = Stage::Mapped,
            None => self.insert(region, keep),
        }
    }

    /// The kernel mapped at an address of its own choice, or where an entry was displaced.
    ///
    /// The address was free for the kernel then. What the mirror still has there is either on its
    /// way (and its thread holds its memory), or was unmapped by another user of the address
    /// space, or is a newer mapping that overtook this one: that can't be told apart here.
    pub(crate) fn insert(&mut self, region: Region, keep: Option<Arc<Mapping>>) {
        while let Some(displaced) = self.overlapping(region.range()) {
            if let Some(entry) = self.entries.remove(&displaced.iova)
                && entry.stage == Stage::Mapped
            {
                std::mem::forget(entry.keep);
            }
        }
        self.put(region, Stage::Mapped, keep);
    }

    /// Gives up a reservation that the kernel refused.
    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        if self.get(ticket).is_some() {
            self.entries.remove(&ticket.iova);
        }
    }

    /// Marks exactly one mapping as going away.
    ///
    /// # Errors
    ///
    /// Nothing is there, or not exactly this, or it is busy.
    pub(crate) fn begin_unmap(&mut self, iova: u64, length: u64) -> Result<Leaving, DmaError> {
        let Some(entry) = self.entries.get_mut(&iova) else {
            let last = iova.saturating_add(length.saturating_sub(1));
            return Err(match self.overlapping(IovaRange { start: iova, last }) {
                Some(mapping) => DmaError::Bisects { iova, length, mapping },
                None => DmaError::NotMapped { iova, length },
            });
        };
        if entry.region.length != length {
            return Err(DmaError::Bisects { iova, length, mapping: entry.region });
        }
        if entry.stage != Stage::Mapped {
            return Err(DmaError::Busy { iova });
        }
        entry.stage = Stage::Unmapping;
        let ticket = Ticket { iova, generation: entry.generation };
        Ok(Leaving { ticket, keep: entry.keep.clone() })
    }

    /// The kernel unmapped it.
    pub(crate) fn end_unmap(&mut self, leaving: Leaving) {
        self.cancel(leaving.ticket);
    }

    /// The kernel refused to unmap: the mapping is still there.
    pub(crate) fn abort_unmap(&mut self, leaving: Leaving) {
        match self.get(leaving.ticket) {
            Some(entry) => entry.stage = Stage::Mapped,
            None => std::mem::forget(leaving.keep),
        }
    }

    /// Names every mapping that is complete now.
    pub(crate) fn mapped(&self) -> Vec<Ticket> {
        let mapped = self.entries.iter().filter(|(_, entry)| entry.stage == Stage::Mapped);
        mapped.map(|(iova, entry)| Ticket { iova: *iova, generation: entry.generation }).collect()
    }

    /// Forgets mappings that were complete before the kernel unmapped everything.
    pub(crate) fn forget(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            // One that another thread is unmapping is that thread's to remove.
            if self.get(*ticket).is_some_and(|entry| entry.stage == Stage::Mapped) {
                self.entries.remove(&ticket.iova);
            }
        }
    }

    /// The complete mappings, ascending.
    pub(crate) fn regions(&self) -> Vec<Region> {
        let mapped = self.entries.values().filter(|entry| entry.stage == Stage::Mapped);
        mapped.map(|entry| entry.region).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Forgets everything but leaks memory that the kernel may still hand to a device.
    pub(crate) fn leak(&mut self) {
        for (_, entry) in std::mem::take(&mut self.entries) {
            std::mem::forget(entry.keep);
        }
    }
}
