//! The kernel's own word that nobody has a group any more, without which it isn't given back.
//!
//! That no process has a device open says little: a descriptor that was sent over a socket and not
//! received yet is in no process's table, and keeps the device open all the same.

use std::{thread::sleep, time::Duration};

use berth_host::{HostError, ProcessUse, VfioError};
use berth_ownership::{Hold, Reason, Refusal};
use rustix::io::Errno;

use super::{
    attach, drivers,
    job::{GroupJob, Job},
    tools::{Tools, patiently},
};

/// How often it is asked whether a device is closed, before it counts as open.
const TRIES: u32 = 5;

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(100);

/// Whether the kernel has every device of the job closed. The last close of a descriptor ends
/// after the process that had it.
pub(crate) fn are_closed(tools: &Tools, job: &Job) -> bool {
    let open = |device| match tools.host.in_use(device) {
        Err(HostError::NoDevice(_)) => false,
        answer => answer.unwrap_or(true),
    };
    (0..TRIES).any(|tried| {
        if tried > 0 {
            sleep(AGAIN);
        }
        !job.devices().any(open)
    })
}

/// Proves that of the devices of a job that ours are closed of.
///
/// # Errors
/// `HOLDER_DRAINING` while something is open that no process shows.
pub(crate) fn closed(tools: &Tools, job: &Job) -> Result<(), Box<Refusal>> {
    match job.groups.first() {
        Some(group) if !are_closed(tools, job) => {
            let object = format!("group {}", group.number);
            Err(still_open(job, group, &VfioError::new("close", object, Errno::BUSY)))
        }
        _ => Ok(()),
    }
}

/// Proves it. Without a member on a VFIO driver there is no node that anybody could have open; and
/// a group that others hold isn't given back yet.
///
/// # Errors
/// `HOLDER_DRAINING` while something is open that no process shows; else whoever has the group, by
/// which it is lost.
pub(crate) fn unused(tools: &Tools, job: &Job, group: &GroupJob) -> Result<(), Box<Refusal>> {
    let mut members = group.members.iter().filter_map(|at| tools.host.device(*at).ok());
    if !members.any(|facts| drivers::on_vfio(&facts)) {
        return Ok(());
    }
    if job.lost && !has_hold(tools, group) {
        return lost_to_somebody(tools, job, group);
    }
    let proven = tools.settle_hold(job, group).and_then(|hold| held(tools, job, group, hold));
    let Err(error) = proven else { return Ok(()) };
    let busy = error.errno == Errno::BUSY.raw_os_error();
    if !busy {
        tools.drop_hold(group.number);
    }
    if matches!(tools.host.probe_free(group.number), Ok(true)) {
        tracing::warn!(group = %group.id, %error, "free, but not held while it is given back");
        return Ok(());
    }
    if busy && (has_hold(tools, group) || !somebody_seen(tools, group)) {
        return Err(still_open(job, group, &error));
    }
    let refusal = tools.explain(group, &error);
    attach::lost(tools, job, group, &refusal.message);
    Err(refusal)
}

fn has_hold(tools: &Tools, group: &GroupJob) -> bool {
    tools.runtime.tables().holds.contains_key(&group.number)
}

/// The hold is there, and nothing beside it.
fn held(tools: &Tools, job: &Job, group: &GroupJob, hold: Hold) -> Result<(), VfioError> {
    if !group.others.is_empty() || !job.ever_claimed {
        return Ok(());
    }
    if hold == Hold::Kernel {
        return patiently(|| tools.prove_hold(group.number));
    }
    // A kernel without group nodes: a bind that succeeds is the proof.
    match tools.host.probe_free(group.number)? {
        true => Ok(()),
        false => Err(VfioError::new("probe", format!("group {}", group.number), Errno::BUSY)),
    }
}

/// A lost group needn't be free: somebody else has it, and is seen to.
fn lost_to_somebody(tools: &Tools, job: &Job, group: &GroupJob) -> Result<(), Box<Refusal>> {
    match tools.host.probe_free(group.number) {
        Ok(false) if group.others.is_empty() && !somebody_seen(tools, group) => {
            let object = format!("group {}", group.number);
            Err(still_open(job, group, &VfioError::new("probe", object, Errno::BUSY)))
        }
        _ => Ok(()),
    }
}

/// Whether another process surely has something of the group open; not where nobody can be looked
/// at.
fn somebody_seen(tools: &Tools, group: &GroupJob) -> bool {
    let users = tools.users(group.members.iter().copied());
    users.is_ok_and(|users| users.iter().any(ProcessUse::is_certain))
}

fn still_open(job: &Job, group: &GroupJob, error: &VfioError) -> Box<Refusal> {
    let id = &job.reservation;
    Refusal::new(
        Reason::HolderDraining,
        id,
        format!(
            "the kernel says that a device of {} is still open, and no process shows it: a \
             descriptor is under way on a socket, or in a process that ends: {error}",
            group.id
        ),
    )
    .with_errno(error.errno)
    .with_resolve(vec![format!(
        "end what was to receive the descriptor, or let it receive and close it, then berth \
         release {id}"
    )])
}
