//! Adopting a foreign owner: the kernel is asked whether the process still has the groups, and has
//! them alone. Nothing of what it has is touched, and no driver: what it has open stays on the VFIO
//! driver, with the override, that it was found with.

use berth_host::ProcessUse;
use berth_ownership::{HolderProcess, Order, Reason, Refusal, Reservation, ReservationId};

use super::{
    access, drivers,
    explain_errno::{self, foreign_of},
    job::Job,
    memlock,
    tools::Tools,
};
use crate::{acts::Engine, model::Snapshot};

/// The process that a reservation is about to adopt; none of one that adopts nobody, or did.
pub(crate) fn adopting<'s>(
    snapshot: &'s Snapshot,
    id: &ReservationId,
) -> Option<(&'s Reservation, &'s HolderProcess)> {
    let record = snapshot.state.reservation(id)?;
    let process = record.pending.as_ref()?.process.as_ref()?;
    (record.adopted && !record.ever_claimed).then_some((record, process))
}

/// Proves it of a reservation that adopts, and lets its process lock what it will map.
///
/// # Errors
/// `NOT_THE_OWNER`, `FOREIGN_OWNER`, `MEMLOCK_LIMIT`; the host's.
pub(crate) fn check(tools: &Tools, intent: u64, job: &Job) -> Result<(), Box<Refusal>> {
    let snapshot = tools.records.snapshot();
    let Some((record, process)) = adopting(&snapshot, &job.reservation) else { return Ok(()) };
    tools.note(intent, "adopt", process)?;
    for group in &job.groups {
        let vfio: Vec<_> = group
            .members
            .iter()
            .copied()
            .filter(|at| tools.host.device(*at).is_ok_and(|facts| drivers::on_vfio(&facts)))
            .collect();
        let users = tools.users(vfio)?;
        let others: Vec<ProcessUse> =
            users.iter().filter(|user| !is(process, user)).cloned().collect();
        if !others.is_empty() {
            return Err(explain_errno::foreign(group, &others));
        }
        for device in &group.devices {
            if !tools.users([*device])?.iter().any(|user| is(process, user)) {
                let text = format!("adopt {process}: it has not {device} of {} open", group.id);
                return Err(Refusal::new(Reason::NotTheOwner, &group.id, text));
            }
        }
    }
    memlock::raise(tools, record, &Order::new(record.id.clone()), process)
}

fn is(process: &HolderProcess, user: &ProcessUse) -> bool {
    foreign_of(user).pid == process.pid && user.start_time == process.start_ticks
}

/// Its user is let in no more, where it was.
pub(crate) fn undo(tools: &Tools, job: &Job) {
    if let Err(refusal) = access::revoke(tools, job) {
        tracing::error!(reservation = %job.reservation, why = refusal.message, "access stays");
    }
}

impl Engine {
    /// Watches a process that has just been adopted.
    pub(crate) fn watch_adopted(&self, id: &ReservationId) {
        let snapshot = self.snapshot();
        let record = snapshot.state.reservation(id).filter(|record| record.adopted);
        if let Some(process) = record.and_then(|record| record.process.as_ref()) {
            self.look_at(id, process);
        }
    }
}
