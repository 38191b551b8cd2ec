//! A domain that the daemon has open: its address space, what clients registered, what is seen of it.

use std::{
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
};

use berth_dma::{AddressSpace, DmaError, DmaPerms, IovaChoice};
use berth_host::{BackendKind, DomainHandle, IovaRange};
use berth_ownership::{ContextId, DomainId, HolderProcess, ReservationId};

use super::{
    engine::Engine,
    entries::Entry,
    latency::{Latencies, mapping, unmapping},
    runtime::{Runtime, lock},
};
use crate::model::DomainNow;

/// Memory of a client that a domain maps.
#[derive(Debug)]
pub(crate) struct Registration {
    /// Whose it is.
    pub(crate) reservation: ReservationId,
    /// The process that registered it; it ends with that.
    pub(crate) process: HolderProcess,
    /// Where it is mapped.
    pub(crate) iova: u64,
    /// How much.
    pub(crate) length_bytes: u64,
    /// Its place among the mappings that are counted.
    #[expect(dead_code, reason = "it is counted as long as it lives")]
    pub(crate) entry: Entry,
}

/// A domain of an open context.
#[derive(Debug)]
pub(crate) struct LiveDomain {
    /// The kernel's name for it.
    pub(crate) handle: DomainHandle,
    /// The fast path's view, in this process.
    pub(crate) space: AddressSpace,
    /// What is mapped, and for whom.
    pub(crate) registrations: Mutex<Vec<Registration>>,
    /// Held from the check of a budget until what it allowed is on the list.
    pub(crate) registering: Mutex<()>,
    /// What the kernel permitted when it was last asked.
    ranges: Mutex<Vec<IovaRange>>,
    latencies: Latencies,
    /// Of all domains.
    total: Arc<Latencies>,
}

impl LiveDomain {
    pub(crate) fn new(
        handle: DomainHandle,
        space: AddressSpace,
        registrations: Vec<Registration>,
        total: &Arc<Latencies>,
    ) -> Self {
        Self {
            handle,
            space,
            registrations: Mutex::new(registrations),
            registering: Mutex::default(),
            ranges: Mutex::default(),
            latencies: Latencies::default(),
            total: Arc::clone(total),
        }
    }

    /// [`AddressSpace::map_file`], timed.
    pub(crate) fn map_file(
        &self,
        iova: IovaChoice,
        memory: BorrowedFd<'_>,
        offset: u64,
        length: u64,
        perms: DmaPerms,
    ) -> Result<u64, DmaError> {
        let map = || self.space.map_file(iova, memory, offset, length, perms);
        mapping([&self.latencies, &self.total], map)
    }

    /// [`AddressSpace::unmap`], timed.
    pub(crate) fn unmap(&self, iova: u64, length: u64) -> Result<(), DmaError> {
        unmapping([&self.latencies, &self.total], || self.space.unmap(iova, length))
    }

    /// Asks the kernel what is permitted, which changes with each device. Whoever looks at the domain
    /// isn't to wait for the kernel, which may be pinning memory.
    fn learn_ranges(&self) {
        match self.space.ranges() {
            Ok(ranges) => *lock(&self.ranges) = ranges.into_iter().map(permitted).collect(),
            // A container that no device has made an IOMMU for permits nothing yet.
            Err(error) => {
                tracing::debug!(%error, "asking for a domain's ranges");
                lock(&self.ranges).clear();
            }
        }
    }

    fn now(&self, pins: bool) -> DomainNow {
        let stats = self.space.stats();
        DomainNow {
            ranges: lock(&self.ranges).clone(),
            mapped_bytes: stats.bytes,
            mappings: u64::try_from(stats.mappings).unwrap_or(u64::MAX),
            pinned_bytes: if pins { stats.bytes } else { 0 },
            latencies: self.latencies.now(),
        }
    }
}

fn permitted(range: berth_dma::IovaRange) -> IovaRange {
    IovaRange { first: range.start, last: range.last, kind: String::new() }
}

impl Runtime {
    /// Asks the kernel what the domains of a context permit now.
    pub(crate) fn learn_ranges(&self, context: &ContextId) {
        let domains = self.context(context).map(|live| live.domains());
        domains.into_iter().flatten().for_each(|domain| domain.learn_ranges());
    }

    /// What is seen of a domain now, without asking the kernel.
    pub(crate) fn domain_now(&self, id: &DomainId) -> Option<DomainNow> {
        let (live, attached) = {
            let tables = self.tables();
            let found = tables.contexts.values().find_map(|context| {
                // A container pins when it maps; an iommufd once a device is to reach the pages.
                Some((context.domain(id)?, context.backend == BackendKind::Type1))
            });
            let (live, always) = found?;
            let mut devices = tables.devices.values();
            (live, always || devices.any(|device| device.domain.as_ref() == Some(id)))
        };
        Some(live.now(attached))
    }
}

impl Engine {
    /// What is seen of a domain now, without asking the kernel.
    pub(super) fn domain_now(&self, id: &DomainId) -> Option<DomainNow> {
        self.tools().runtime.domain_now(id)
    }
}
