//! Hand-over to a holder that attaches by itself: it is let in, and then the kernel's hold goes.
//!
//! The holder's own `BIND`, or its opening of the group's node, would be refused while the hold
//! stands. From the drop until the holder has bound nothing but the nodes' permissions and the
//! record keep others out. So it is what comes last: whatever fails before leaves the hold.

use berth_ownership::{Command, Delivery, Reason, Refusal, Reservation, ReservationId};

use super::{access, adopt_holder, attach, job::Job, runtime::lock, tools::Tools, vf_token};
use crate::model::Outcome;

/// Does it, or leaves the groups held as they were.
pub(crate) fn run(tools: &Tools, intent: u64, job: &Job) -> Outcome {
    let reservation = job.reservation.clone();
    match attempt(tools, intent, job) {
        Ok(()) => Outcome::done(Command::HandOverDone { reservation }),
        Err(refusal) => failed(tools, intent, job, refusal),
    }
}

/// Undoes what was done, and says why.
pub(crate) fn failed(tools: &Tools, intent: u64, job: &Job, refusal: Box<Refusal>) -> Outcome {
    match adopt_holder::adopting(&tools.records.snapshot(), &job.reservation) {
        // Its groups are with somebody else: there is no hold to take again.
        Some(_) => adopt_holder::undo(tools, job),
        None => undo(tools, intent, job),
    }
    let (reservation, why) = (job.reservation.clone(), refusal.message.clone());
    Outcome::failed(Command::HandOverFailed { reservation, why }, refusal)
}

fn attempt(tools: &Tools, intent: u64, job: &Job) -> Result<(), Box<Refusal>> {
    match job.delivery {
        Delivery::Unbound => open_context(tools, intent, job)?,
        Delivery::Node => {
            adopt_holder::check(tools, intent, job)?;
            let nodes: Vec<String> =
                access::nodes_of(job).iter().map(ToString::to_string).collect();
            tools.note(intent, "access", format!("{} {}", job.identity, nodes.join(", ")))?;
            access::grant(tools, job)?;
        }
        Delivery::Held | Delivery::Bound => {
            let text = format!("delivery {} has nothing to let go of", job.delivery);
            return Err(Refusal::new(Reason::Internal, &job.reservation, text));
        }
    }
    for group in &job.groups {
        tools.note(intent, "hold dropped", &group.id)?;
    }
    drop_holds(tools, job);
    match adopt_holder::adopting(&tools.records.snapshot(), &job.reservation) {
        Some(_) => Ok(()),
        None => vf_token::prove(tools, job),
    }
}

/// While a holder attaches by itself no hold of ours is on its groups, whoever else reserved them.
pub(crate) fn drop_holds(tools: &Tools, job: &Job) {
    job.groups.iter().for_each(|group| tools.drop_hold(group.number));
}

/// Opens an iommufd for the holder, or takes that which others of its context have: the kernel lets
/// one own a group.
fn open_context(tools: &Tools, intent: u64, job: &Job) -> Result<(), Box<Refusal>> {
    let open = tools.runtime.context(&job.context);
    match (siblings(tools, job).first(), open) {
        (Some(sibling), None) => return Err(with_holder_alone(tools, job, sibling)),
        (Some(_), Some(_)) => return Ok(()),
        // One that was handed out before may be open elsewhere, and have mappings in it.
        (None, open) => {
            drop(open);
            let last = tools.runtime.tables().contexts.remove(&job.context);
            drop(last);
        }
    }
    tools.note(intent, "context", &job.context)?;
    let group = job.groups.first();
    let context = tools.context(&job.context, job.backend).map_err(|error| match group {
        Some(group) => tools.explain(group, &error),
        None => Refusal::new(Reason::KernelRefused, &job.reservation, error.to_string()),
    })?;
    *lock(&context.given_to) = Some(job.identity.clone());
    tools.keep(job);
    Ok(())
}

/// Other reservations in the context whose holders attach by themselves, and can.
pub(crate) fn siblings(tools: &Tools, job: &Job) -> Vec<ReservationId> {
    let snapshot = tools.records.snapshot();
    let state = &snapshot.state;
    let there = state.context(&job.context).into_iter().flat_map(|context| &context.reservations);
    there
        .filter(|id| **id != job.reservation)
        .filter(|id| state.reservation(id).is_some_and(Reservation::is_handed_out))
        .cloned()
        .collect()
}

/// The iommufd that owns the groups of a sibling, and so has to own these, isn't here.
fn with_holder_alone(tools: &Tools, job: &Job, sibling: &ReservationId) -> Box<Refusal> {
    let snapshot = tools.records.snapshot();
    let record = snapshot.state.reservation(sibling);
    if record.is_some_and(|record| record.delivery == Delivery::Node) {
        let text = format!(
            "hand {} over: the holder of {sibling} opens an iommufd by itself, and the kernel lets \
             one own both",
            job.reservation
        );
        return Refusal::new(Reason::HolderOwnsDomain, &job.reservation, text).with_resolve(vec![
            format!("berth release {}, then reserve with --delivery node", job.reservation),
            format!("end the holder of {sibling}"),
        ]);
    }
    Refusal::new(
        Reason::DaemonRestarted,
        &job.reservation,
        format!(
            "berthd restarted after {sibling} was handed over, so the iommufd that both need is \
             with its holder alone"
        ),
    )
    .with_resolve(vec![format!("end the holder of {sibling}, then fetch both again")])
}

/// The holder is let in no more, and the holds are taken again.
pub(crate) fn undo(tools: &Tools, intent: u64, job: &Job) {
    if let Err(refusal) = access::revoke(tools, job) {
        tracing::error!(reservation = %job.reservation, why = refusal.message, "access stays");
    }
    close_context(tools, job);
    attach::hold_again(tools, intent, job);
}

/// Closes the iommufd that was kept of a hand-over, unless others of the context have it. The
/// memory of a holder that is dead would stay pinned by it.
pub(crate) fn close_context(tools: &Tools, job: &Job) {
    if job.delivery == Delivery::Unbound && siblings(tools, job).is_empty() {
        let context = tools.runtime.tables().contexts.remove(&job.context);
        drop(context);
    }
}
