//! Memory of clients in domains that the daemon drives.

use std::os::fd::BorrowedFd;

use berth_dma::{DmaError, DmaErrorKind, DmaPerms, IovaChoice};
use berth_ownership::{Delivery, HolderProcess, Reason, Refusal, ReservationId, ReservationState};
use rustix::fs::{OFlags, SealFlags};

use super::{
    domain::{LiveDomain, Registration},
    entries,
    job::Job,
    runtime::lock,
    tools::Tools,
};
use crate::model::{Payer, UNSTATED_BYTES};

/// Registrations of one reservation. A type1 container has 65,535 entries for all that share it
/// (`vfio_iommu_type1.dma_entry_limit`), so one client may not take them all; and what is
/// registered is noted as a whole.
const MOST_REGISTRATIONS: usize = 4096;

/// What a client wants mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Where; `None` leaves it to the daemon.
    pub(crate) iova: Option<u64>,
    /// Where in the file.
    pub(crate) offset: u64,
    /// How much.
    pub(crate) length_bytes: u64,
    /// The device may read.
    pub(crate) read: bool,
    /// The device may write.
    pub(crate) write: bool,
}

/// Maps part of a sealed memfd into the reservation's domain.
///
/// # Errors
/// `NOT_ATTACHED`; `INVALID_ARGUMENT` for a memfd that could shrink under the device or that the
/// client itself may not access so, for a range beyond its end or one that the domain doesn't
/// permit; `MEMLOCK_LIMIT`; `QUOTA_EXCEEDED`.
pub(crate) fn register(
    tools: &Tools,
    reservation: &ReservationId,
    (process, payer): (&HolderProcess, &Payer),
    memory: BorrowedFd<'_>,
    wanted: Wanted,
) -> Result<u64, Box<Refusal>> {
    check_memory(reservation, memory, wanted)?;
    let domain = attached_domain(tools, reservation)?;
    let registering = lock(&domain.registering);
    check_budget(tools, reservation, &domain, wanted)?;
    let entry = entries::take(tools, reservation, payer)?;
    let iova = wanted.iova.map_or(IovaChoice::Any, IovaChoice::Fixed);
    let perms = DmaPerms { read: wanted.read, write: wanted.write };
    let mapped = domain
        .map_file(iova, memory, wanted.offset, wanted.length_bytes, perms)
        .map_err(|error| refused(reservation, &error))?;
    lock(&domain.registrations).push(Registration {
        reservation: reservation.clone(),
        process: process.clone(),
        iova: mapped,
        length_bytes: wanted.length_bytes,
        entry,
    });
    drop(registering);
    note(tools, reservation);
    // The reservation may have been given back meanwhile; then nobody would unmap it.
    if attached_domain(tools, reservation).is_err() {
        end_in(&domain, |known| known.reservation == *reservation);
        return Err(not_attached(reservation));
    }
    Ok(mapped)
}

/// Removes one registration.
///
/// # Errors
/// `NOT_FOUND` where there is none of exactly this range.
pub(crate) fn unregister(
    tools: &Tools,
    reservation: &ReservationId,
    iova: u64,
    length_bytes: u64,
) -> Result<u64, Box<Refusal>> {
    let domain = attached_domain(tools, reservation)?;
    let wanted = |known: &Registration| {
        known.reservation == *reservation
            && (known.iova, known.length_bytes) == (iova, length_bytes)
    };
    let mut registrations = lock(&domain.registrations);
    let Some(at) = registrations.iter().position(wanted) else {
        return Err(Refusal::new(
            Reason::NotFound,
            reservation,
            format!("{reservation} has no registration of {length_bytes:#x} bytes at {iova:#x}"),
        ));
    };
    domain.unmap(iova, length_bytes).map_err(|error| refused(reservation, &error))?;
    registrations.swap_remove(at);
    drop(registrations);
    note(tools, reservation);
    Ok(length_bytes)
}

/// Ends all registrations of a reservation.
pub(crate) fn end_registrations(tools: &Tools, reservation: &ReservationId) {
    end_where(tools, reservation, |known| known.reservation == *reservation);
}

/// Ends what one process registered.
pub(crate) fn end_registrations_of(
    tools: &Tools,
    reservation: &ReservationId,
    process: &HolderProcess,
) {
    end_where(tools, reservation, |known| {
        known.reservation == *reservation && known.process == *process
    });
}

fn end_where(tools: &Tools, reservation: &ReservationId, ends: impl Fn(&Registration) -> bool) {
    let snapshot = tools.records.snapshot();
    let Some(record) = snapshot.state.reservation(reservation) else { return };
    let Some(context) = tools.runtime.context(&record.context) else { return };
    for domain in context.domains() {
        end_in(&domain, &ends);
    }
    tools.write_note(&context);
}

/// Notes for the next process what is registered now.
fn note(tools: &Tools, reservation: &ReservationId) {
    let snapshot = tools.records.snapshot();
    if let Some(record) = snapshot.state.reservation(reservation) {
        tools.note_context(&record.context);
    }
}

fn end_in(domain: &LiveDomain, ends: impl Fn(&Registration) -> bool) {
    let mut registrations = lock(&domain.registrations);
    registrations.retain(|known| {
        if !ends(known) {
            return true;
        }
        match domain.unmap(known.iova, known.length_bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == DmaErrorKind::NotMapped => {}
            Err(error) => {
                tracing::warn!(reservation = %known.reservation, %error, "ending a registration");
            }
        }
        false
    });
}

/// The domain that the reservation's devices are attached to.
fn attached_domain(
    tools: &Tools,
    reservation: &ReservationId,
) -> Result<std::sync::Arc<LiveDomain>, Box<Refusal>> {
    let snapshot = tools.records.snapshot();
    let job = Job::of(&snapshot, reservation)?;
    let record = snapshot.state.reservation(reservation);
    let live = record
        .is_some_and(|record| record.state == ReservationState::Held && record.pending.is_none());
    let registers = matches!(job.delivery, Delivery::Held | Delivery::Bound);
    let domain = {
        let tables = tools.runtime.tables();
        job.devices().find_map(|address| tables.devices.get(&address)?.domain.clone())
    };
    domain
        .filter(|_| live && registers)
        .and_then(|id| tools.runtime.context(&job.context)?.domain(&id))
        .ok_or_else(|| not_attached(reservation))
}

fn not_attached(reservation: &ReservationId) -> Box<Refusal> {
    Refusal::new(
        Reason::NotAttached,
        reservation,
        format!("{reservation} has no device in a domain, so there is nothing to map into"),
    )
    .with_resolve(vec![format!("berth attach {reservation}")])
}

/// A file that can shrink would take the pages from under the device. And a device may do no more
/// with it than the client could: iommufd asks neither the descriptor's mode nor its seals when
/// memory is mapped by file, and would write to what was passed for reading.
fn check_memory(
    reservation: &ReservationId,
    memory: BorrowedFd<'_>,
    wanted: Wanted,
) -> Result<(), Box<Refusal>> {
    let refused = |message: &str, way_out: &str| {
        let refusal = Refusal::new(Reason::InvalidArgument, reservation, message);
        Err(refusal.with_resolve(vec![way_out.to_owned()]))
    };
    let seals = rustix::fs::fcntl_get_seals(memory).unwrap_or(SealFlags::empty());
    if !seals.contains(SealFlags::SHRINK) {
        return refused(
            "memory is registered as a memfd that can't shrink",
            "memfd_create with MFD_ALLOW_SEALING, then fcntl F_ADD_SEALS F_SEAL_SHRINK",
        );
    }
    let mode = rustix::fs::fcntl_getfl(memory).unwrap_or(OFlags::empty()) & OFlags::RWMODE;
    let sealed = seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE);
    if wanted.write && (mode != OFlags::RDWR || sealed) {
        return refused(
            "the device may not write to memory that is open for reading only, or sealed",
            "register it with write false, or pass a memfd that is open for reading and writing",
        );
    }
    if mode == OFlags::WRONLY {
        return refused("memory that is open for writing only can't be mapped", "open it O_RDWR");
    }
    Ok(())
}

/// `memory_bytes` bounds what a reservation may have pinned in the daemon's name.
fn check_budget(
    tools: &Tools,
    reservation: &ReservationId,
    domain: &LiveDomain,
    wanted: Wanted,
) -> Result<(), Box<Refusal>> {
    let snapshot = tools.records.snapshot();
    let stated = snapshot.state.reservation(reservation).map_or(0, |record| record.memory_bytes);
    let limit = if stated == 0 { UNSTATED_BYTES } else { stated };
    let (mut count, mut used) = (0, 0_u64);
    for known in lock(&domain.registrations).iter() {
        if known.reservation == *reservation {
            count += 1;
            used = used.saturating_add(known.length_bytes);
        }
    }
    let refused = |message: String, way_out: String| {
        let refusal = Refusal::new(Reason::MemlockLimit, reservation, message);
        Err(refusal.with_resolve(vec![way_out]))
    };
    if count >= MOST_REGISTRATIONS {
        return refused(
            format!("{reservation} has {count} registrations, and may have {MOST_REGISTRATIONS}"),
            "register larger pieces, or unregister some first".to_owned(),
        );
    }
    let needed = used.saturating_add(wanted.length_bytes);
    if needed > limit {
        return refused(
            format!(
                "{reservation} may register {limit} bytes of memory, has {used} registered and \
                 asks for {} more",
                wanted.length_bytes
            ),
            format!("reserve with --memory of at least {needed} bytes"),
        );
    }
    Ok(())
}

fn refused(reservation: &ReservationId, error: &DmaError) -> Box<Refusal> {
    let reason = match error.kind() {
        DmaErrorKind::Memlock | DmaErrorKind::NoMemory => Reason::MemlockLimit,
        DmaErrorKind::NotMapped => Reason::NotFound,
        DmaErrorKind::Kernel | DmaErrorKind::Busy => Reason::KernelRefused,
        _ => Reason::InvalidArgument,
    };
    Refusal::new(reason, reservation, error.to_string()).with_errno(error.errno().raw_os_error())
}
