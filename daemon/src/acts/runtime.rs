//! What the daemon has open now. Every descriptor here belongs to a live record.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use berth_host::{AttachedDevice, BackendKind, Context, GroupHold, PciAddress};
use berth_ownership::{ContextId, DomainId, ReservationId};

use super::{access::Access, domain::LiveDomain, entries::Entries, latency::Latencies};
use crate::fdstore::{Kept, NoteFile};

/// How long descriptors may be on their way: somewhat longer than a peer may leave them unread.
const SENDING: Duration = Duration::from_secs(12);

/// The kernel's hold on one group.
#[derive(Debug)]
pub(crate) struct LiveHold {
    /// The context whose container the group is in; `None` for an empty container of its own.
    pub(crate) context: Option<ContextId>,
    /// What is stored of it; it leaves the store first.
    pub(crate) kept: Option<Kept>,
    /// Dropping it gives the hold back.
    pub(crate) hold: Box<dyn GroupHold>,
}

/// A device that is open.
#[derive(Debug)]
pub(crate) struct LiveDevice {
    /// Whose it is.
    pub(crate) reservation: ReservationId,
    /// What it is bound to.
    pub(crate) context: ContextId,
    /// What it is attached to.
    pub(crate) domain: Option<DomainId>,
    /// What is stored of it; it leaves the store first.
    pub(crate) kept: Option<Kept>,
    /// Dropping it closes it.
    pub(crate) device: Box<dyn AttachedDevice>,
}

/// An open iommufd or container.
#[derive(Debug)]
pub(crate) struct LiveContext {
    /// Its id.
    pub(crate) id: ContextId,
    /// Which interface.
    pub(crate) backend: BackendKind,
    /// Its domains.
    pub(crate) domains: Mutex<HashMap<DomainId, Arc<LiveDomain>>>,
    /// The identity that has the context's descriptor. It can't be taken back, and it could move
    /// every device that is bound to the context: no other identity's device gets in any more.
    pub(crate) given_to: Mutex<Option<String>>,
    /// What is stored of it; it leaves the store first.
    pub(crate) kept: Mutex<Option<Kept>>,
    /// What is in it, where it is stored.
    pub(crate) note: Mutex<Option<NoteFile>>,
    /// Dropping it closes it.
    pub(crate) context: Box<dyn Context>,
}

impl LiveContext {
    /// The domain, where it was made already.
    pub(crate) fn domain(&self, id: &DomainId) -> Option<Arc<LiveDomain>> {
        lock(&self.domains).get(id).cloned()
    }

    /// All that were made.
    pub(crate) fn domains(&self) -> Vec<Arc<LiveDomain>> {
        lock(&self.domains).values().cloned().collect()
    }
}

/// The tables. Dropped in this order: devices before the holds and contexts they live in.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// By address.
    pub(crate) devices: HashMap<PciAddress, LiveDevice>,
    /// By the group's number.
    pub(crate) holds: HashMap<u32, LiveHold>,
    /// By id.
    pub(crate) contexts: HashMap<ContextId, Arc<LiveContext>>,
}

/// The tables behind a lock that is never held over work in the kernel that can hang.
#[derive(Debug, Default)]
pub(crate) struct Runtime {
    tables: Mutex<Tables>,
    /// Who was let into which nodes.
    pub(crate) access: Access,
    /// Of all domains, since the start.
    pub(crate) latencies: Arc<Latencies>,
    /// The mappings of client memory.
    pub(crate) entries: Arc<Entries>,
    sending: Mutex<Vec<Weak<ReservationId>>>,
}

/// While it lives, descriptors of a reservation are on their way to a holder: they are in no other
/// process's table yet, and all the same not ours alone any more.
#[derive(Debug, Clone)]
pub(crate) struct Sending(
    #[expect(dead_code, reason = "what it is about lives with it")] Arc<ReservationId>,
);

impl Runtime {
    /// The tables.
    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables> {
        lock(&self.tables)
    }

    /// Descriptors of a reservation are about to be sent.
    pub(crate) fn send(&self, reservation: &ReservationId) -> Sending {
        let reservation = Arc::new(reservation.clone());
        let mut sending = lock(&self.sending);
        sending.retain(|known| known.strong_count() > 0);
        sending.push(Arc::downgrade(&reservation));
        Sending(reservation)
    }

    /// Whether any are.
    pub(crate) fn is_sending(&self, reservation: &ReservationId) -> bool {
        lock(&self.sending).iter().any(|known| known.upgrade().as_deref() == Some(reservation))
    }

    /// Waits until none are, or for as long as they may take; false when some still are.
    pub(crate) fn sent(&self, reservation: &ReservationId) -> bool {
        let deadline = Instant::now() + SENDING;
        while self.is_sending(reservation) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// An open context.
    pub(crate) fn context(&self, id: &ContextId) -> Option<Arc<LiveContext>> {
        self.tables().contexts.get(id).cloned()
    }

    /// Takes a device out, to work on it without the lock.
    pub(crate) fn take_device(&self, address: PciAddress) -> Option<LiveDevice> {
        self.tables().devices.remove(&address)
    }

    /// Puts a device in.
    pub(crate) fn put_device(&self, address: PciAddress, device: LiveDevice) {
        self.tables().devices.insert(address, device);
    }

    /// Takes a hold out. Dropping what comes back may take its time, so it isn't done here.
    pub(crate) fn take_hold(&self, group: u32) -> Option<LiveHold> {
        self.tables().holds.remove(&group)
    }
}

/// Locks, also after a panic elsewhere: the tables are changed by single inserts and removes.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
