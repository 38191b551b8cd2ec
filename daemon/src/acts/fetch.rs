//! What a holder fetches and registers, and who may.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_host::{BackendKind, Node, PciAddress};
use berth_ownership::{
    Command, Delivery, HolderProcess, Order, Reason, Refusal, Reservation, ReservationId,
    ReservationState,
};

use berth_uapi::VfToken;

use super::{
    engine::Engine,
    job::Job,
    memlock, memory,
    runtime::{LiveContext, Sending},
};
use crate::model::{ApiError, Payer, Snapshot};

/// One thing to hand over.
#[derive(Debug)]
pub(crate) enum Handed {
    /// A device that is bound and attached.
    Device { address: PciAddress, device_id: u32, ioas: u32, fd: OwnedFd },
    /// A device's cdev, opened and not bound.
    Cdev { address: PciAddress, fd: OwnedFd },
    /// The iommufd or container, and the domain in it that devices are attached to.
    Context { backend: BackendKind, ioas: Option<u32>, fd: OwnedFd },
    /// What is to be shown to open a device.
    VfToken { address: PciAddress, token: VfToken },
    /// A node that the holder opens by itself, and which devices are in it where it is a group's.
    Node { node: Node, path: String, devices: Vec<PciAddress> },
}

/// What goes to a holder.
#[derive(Debug)]
pub(crate) struct HandOver {
    pub(crate) items: Vec<Handed>,
    /// Lives until they are sent.
    pub(crate) sending: Sending,
    /// The claims began with it: they end again if nothing reaches the holder.
    pub(crate) began: bool,
}

impl HandOver {
    /// Whether there is anything that has to be passed on to the holder.
    pub(crate) fn has_descriptors(&self) -> bool {
        let passed = |item: &Handed| !matches!(item, Handed::Node { .. } | Handed::VfToken { .. });
        self.items.iter().any(passed)
    }
}

impl Engine {
    /// The reservation, if this identity may fetch from it.
    ///
    /// # Errors
    /// `NOT_FOUND`, `NOT_FOR_YOU`.
    pub(crate) fn reservation_for(
        &self,
        id: &ReservationId,
        uid: u32,
    ) -> Result<std::sync::Arc<Snapshot>, ApiError> {
        let snapshot = self.tools().records.snapshot();
        let Some(record) = snapshot.state.reservation(id) else {
            return Err(ApiError::not_found(id, format!("there is no reservation {id}")));
        };
        if record.for_identity == format!("uid:{uid}") {
            return Ok(snapshot);
        }
        Err(ApiError::Refused(Refusal::new(
            Reason::NotForYou,
            id,
            format!("reservation {id} is for {}, not for uid:{uid}", record.for_identity),
        )))
    }

    /// What a reservation's holder gets, recorded as handed to `process` beforehand; at most `most`
    /// descriptors or nodes. Blocks.
    ///
    /// # Errors
    /// `NOT_ATTACHED`, `RESERVATION_BUSY`, `STALE_EPOCH`; `UNSUPPORTED` when there are too many;
    /// `MEMLOCK_LIMIT` where the process may not lock what the reservation says, and it can't be raised.
    /// Nothing is recorded then. What else opening the groups to the holder came to.
    pub(crate) fn hand_over(
        &self,
        snapshot: &Snapshot,
        order: Order,
        process: &HolderProcess,
        pidfd: OwnedFd,
        most: usize,
    ) -> Result<HandOver, ApiError> {
        let id = order.reservation.clone();
        let Some(record) = snapshot.state.reservation(&id) else {
            return Err(ApiError::not_found(&id, format!("there is no reservation {id}")));
        };
        // First of all: who asks again and again would else keep a release waiting for what is sent.
        not_busy(record)?;
        let memlock = || memlock::raise(self.tools(), record, &order, process);
        let command = Command::HandOver { order: order.clone(), process: process.clone() };
        if record.delivery.holder_owns_domain() {
            // The devices, and the context; of nodes there are as many or fewer.
            let count = record.devices().count() + 1;
            if count > most {
                return Err(too_many(record, count, most));
            }
            memlock()?;
            return self.hand_out(snapshot, record, command, process, pidfd);
        }
        let sending = self.tools().runtime.send(&id);
        deliverable(record)?;
        let items = match record.delivery {
            Delivery::Bound => self.duplicates(snapshot, record)?,
            Delivery::Held | Delivery::Unbound | Delivery::Node => Vec::new(),
        };
        if items.len() > most {
            return Err(too_many(record, items.len(), most));
        }
        memlock()?;
        // Watched first: a holder that dies right after the record must be noticed.
        self.tools().records.command(command, "fetch")?;
        self.watch(&id, process.clone(), pidfd);
        Ok(HandOver { items, sending, began: false })
    }

    /// Maps a client's memory; it ends with the client's process. Blocks.
    ///
    /// # Errors
    /// `NOT_ATTACHED`, `INVALID_ARGUMENT`, `MEMLOCK_LIMIT`, `QUOTA_EXCEEDED`.
    pub(crate) fn register(
        &self,
        id: &ReservationId,
        (process, pidfd, payer): (&HolderProcess, OwnedFd, &Payer),
        memory: BorrowedFd<'_>,
        wanted: memory::Wanted,
    ) -> Result<u64, ApiError> {
        let iova = memory::register(self.tools(), id, (process, payer), memory, wanted)?;
        self.watch(id, process.clone(), pidfd);
        Ok(iova)
    }

    /// Removes one registration. Blocks.
    ///
    /// # Errors
    /// `NOT_ATTACHED`, `NOT_FOUND`.
    pub(crate) fn unregister(
        &self,
        id: &ReservationId,
        iova: u64,
        length_bytes: u64,
    ) -> Result<u64, ApiError> {
        Ok(memory::unregister(self.tools(), id, iova, length_bytes)?)
    }

    pub(super) fn duplicates(
        &self,
        snapshot: &Snapshot,
        record: &Reservation,
    ) -> Result<Vec<Handed>, ApiError> {
        let job = Job::of(snapshot, &record.id)?;
        let failed = |error: berth_host::VfioError| {
            ApiError::Refused(
                Refusal::new(Reason::KernelRefused, &record.id, error.to_string())
                    .with_errno(error.errno),
            )
        };
        let context = self.tools().runtime.context(&job.context);
        let Some(context) = context else { return Err(not_with_us(record)) };
        let mut handed = Vec::new();
        for address in job.devices() {
            let tables = self.tools().runtime.tables();
            let Some(live) = tables.devices.get(&address) else { return Err(not_with_us(record)) };
            let ioas = ioas_of(&context, live.domain.as_ref());
            let device_id = live.device.device_id();
            let fd = live.device.fd().map_err(failed)?;
            handed.push(Handed::Device { address, device_id, ioas, fd });
        }
        if self.may_have_context(&context, record) {
            let ioas = ioas_of(&context, Some(&record.domain));
            let fd = context.context.fd().map_err(failed)?;
            handed.push(Handed::Context { backend: context.backend, ioas: Some(ioas), fd });
        }
        Ok(handed)
    }

    /// Whether the context's descriptor may go to the reservation's identity. Noted before it is
    /// looked who else is there: a reservation that comes later finds the note at its attach.
    fn may_have_context(&self, context: &LiveContext, record: &Reservation) -> bool {
        let mut given = super::runtime::lock(&context.given_to);
        let before = given.replace(record.for_identity.clone());
        let alone = before.as_ref().is_none_or(|identity| *identity == record.for_identity)
            && alone_in_context(&self.snapshot(), record);
        let as_before = *given == before;
        if !alone {
            *given = before;
        }
        drop(given);
        if !as_before {
            self.tools().write_note(context);
        }
        alone
    }

    /// Whether an iommufd is the very file that owns the reservation's groups.
    ///
    /// # Errors
    /// `NOT_ATTACHED` while no context is open; the kernel's word when the files can't be compared.
    pub(crate) fn same_context(
        &self,
        snapshot: &Snapshot,
        id: &ReservationId,
        shown: impl AsFd,
    ) -> Result<bool, ApiError> {
        let job = Job::of(snapshot, id)?;
        let Some(context) = self.tools().runtime.context(&job.context) else {
            return Err(ApiError::new(
                Reason::NotAttached,
                id,
                format!("{id} has no open context whose file could be compared"),
            ));
        };
        let own = context
            .context
            .fd()
            .map_err(|error| ApiError::new(Reason::KernelRefused, id, error.to_string()))?;
        berth_uapi::same_file(&own, &shown)
            .map_err(|error| ApiError::new(Reason::KernelRefused, id, format!("kcmp: {error}")))
    }
}

/// # Errors
/// `RESERVATION_BUSY`.
pub(super) fn not_busy(record: &Reservation) -> Result<(), ApiError> {
    let Some(pending) = &record.pending else { return Ok(()) };
    let text = format!("{} of {} is under way", pending.kind, record.id);
    Err(ApiError::new(Reason::ReservationBusy, &record.id, text))
}

/// What the daemon attaches is handed over while it is attached; else the answer is that of the
/// table of decisions.
fn deliverable(record: &Reservation) -> Result<(), ApiError> {
    let id = &record.id;
    let (reason, resolve) = match record.state {
        ReservationState::Held => return Ok(()),
        ReservationState::Preparing | ReservationState::Reserved | ReservationState::Handed => {
            (Reason::NotAttached, format!("berth attach {id}"))
        }
        ReservationState::Expired => {
            (Reason::LeaseExpired, format!("berth reservation renew {id}"))
        }
        ReservationState::Draining => (Reason::HolderDraining, format!("berth release {id}")),
        ReservationState::Lost => (Reason::HoldLost, format!("berth release {id}")),
        ReservationState::Released => {
            return Err(ApiError::not_found(id, format!("reservation {id} is released")));
        }
    };
    let text = format!("{id} is {}, so there is nothing to hand over", record.state);
    Err(ApiError::Refused(Refusal::new(reason, id, text).with_resolve(vec![resolve])))
}

/// One message carries so many descriptors and no more.
fn too_many(record: &Reservation, wanted: usize, most: usize) -> ApiError {
    let id = &record.id;
    ApiError::Refused(
        Refusal::new(
            Reason::Unsupported,
            id,
            format!(
                "{id} has {wanted} descriptors or nodes, and one hand-over takes at most {most}, as \
                 the kernel sends no more in one message; nothing was handed over"
            ),
        )
        .with_resolve(vec![format!(
            "release {id} and reserve its devices in several reservations of at most {} each",
            most.saturating_sub(1)
        )]),
    )
}

/// The claims stand, but the descriptors are with the holder alone: the daemon restarted.
pub(super) fn not_with_us(record: &Reservation) -> ApiError {
    ApiError::Refused(
        Refusal::new(
            Reason::DaemonRestarted,
            &record.id,
            format!(
                "berthd restarted after {} was handed over, so its descriptors are with the \
                 holder alone",
                record.id
            ),
        )
        .with_resolve(vec![if record.delivery.holder_owns_domain() {
            "end the holder's process, then fetch again".to_owned()
        } else {
            format!("berth detach {0}, then berth attach {0}", record.id)
        }]),
    )
}

/// The context's descriptor could attach all devices in it elsewhere, so it goes out only where
/// one identity holds all of them.
fn alone_in_context(snapshot: &Snapshot, record: &Reservation) -> bool {
    snapshot.state.context(&record.context).is_some_and(|context| {
        context.reservations.iter().all(|id| {
            *id == record.id
                || snapshot
                    .state
                    .reservation(id)
                    .is_none_or(|other| other.for_identity == record.for_identity)
        })
    })
}

fn ioas_of(context: &LiveContext, domain: Option<&berth_ownership::DomainId>) -> u32 {
    domain.and_then(|id| context.domain(id)).map_or(0, |live| live.handle.0)
}
