//! Attach, detach, replace: devices get into a domain of their context, out of it, into another.

use std::sync::Arc;

use berth_host::{BackendKind, PciAddress, VfioError};
use berth_ownership::{Command, DomainId, Policy, Reason, Refusal};

use super::{
    domain::LiveDomain,
    explain_errno,
    job::{GroupJob, Job},
    proof,
    runtime::{LiveContext, LiveDevice},
    tools::{Tools, patiently},
    vf_token,
};
use crate::model::Outcome;

/// Attaches all devices of a reservation, or leaves everything as it was.
pub(crate) fn attach(tools: &Tools, intent: u64, job: &Job, domain: Option<DomainId>) -> Outcome {
    let domain = domain.unwrap_or_else(|| job.domain.clone());
    let reservation = job.reservation.clone();
    match attach_all(tools, intent, job, &domain) {
        Ok(()) => {
            tools.keep(job);
            Outcome::done(Command::AttachDone { reservation })
        }
        Err(refusal) => {
            let why = refusal.message.clone();
            Outcome::failed(Command::AttachFailed { reservation, why }, refusal)
        }
    }
}

fn attach_all(
    tools: &Tools,
    intent: u64,
    job: &Job,
    domain: &DomainId,
) -> Result<(), Box<Refusal>> {
    check_context_given(tools, job)?;
    let mut fresh = Vec::new();
    let mut moved = Vec::new();
    let attached = job.groups.iter().try_for_each(|group| {
        attach_group(tools, intent, job, group, domain, (&mut fresh, &mut moved))
    });
    if attached.is_err() {
        undo(tools, intent, job, &fresh, &moved);
    }
    attached
}

/// # Errors
/// `HOLDER_OWNS_DOMAIN` when another identity has the context's descriptor: it could move these
/// devices to a domain of its own.
fn check_context_given(tools: &Tools, job: &Job) -> Result<(), Box<Refusal>> {
    let Some(context) = tools.runtime.context(&job.context) else { return Ok(()) };
    let given = super::runtime::lock(&context.given_to).clone();
    match given.filter(|identity| *identity != job.identity) {
        None => Ok(()),
        Some(identity) => Err(Refusal::new(
            Reason::HolderOwnsDomain,
            &job.reservation,
            format!(
                "attach {}: {identity} fetched the descriptor of {} while it was alone there, and \
                 could move every device in it",
                job.reservation, job.context
            ),
        )
        .with_resolve(vec![
            format!("release the reservations of {identity} in {}", job.context),
            format!("reserve --for {identity}, or in a domain of its own"),
        ])),
    }
}

type Progress<'a> = (&'a mut Vec<PciAddress>, &'a mut Vec<PciAddress>);

fn attach_group(
    tools: &Tools,
    intent: u64,
    job: &Job,
    group: &GroupJob,
    domain: &DomainId,
    (fresh, moved): Progress<'_>,
) -> Result<(), Box<Refusal>> {
    let explained = |error: VfioError| tools.explain(group, &error);
    let context = tools.context(&job.context, job.backend).map_err(explained)?;
    if job.backend == BackendKind::Iommufd {
        tools.domain(&context, domain).map_err(explained)?;
        // The group's node and a bound cdev exclude each other, so the hold has to go first.
        tools.note(intent, "hold dropped", &group.id)?;
        tools.drop_hold(group.number);
    } else {
        tools.note(intent, "open", &group.id)?;
        tools.settle_hold(job, group).map_err(explained)?;
    }
    for &address in &group.devices {
        if !tools.runtime.tables().devices.contains_key(&address) {
            let device = vf_token::open(tools, group, &*context.context, address)?;
            let live = LiveDevice {
                reservation: job.reservation.clone(),
                context: job.context.clone(),
                domain: None,
                kept: None,
                device,
            };
            tools.runtime.put_device(address, live);
            fresh.push(address);
        }
        let live_domain = tools.domain(&context, domain).map_err(explained)?;
        move_device(tools, address, &live_domain, domain).map_err(explained)?;
        moved.push(address);
    }
    attach_siblings(tools, group, &context, domain, moved).map_err(explained)
}

/// Policy group: the token's other devices follow, as the domain is the group's.
fn attach_siblings(
    tools: &Tools,
    group: &GroupJob,
    context: &LiveContext,
    domain: &DomainId,
    moved: &mut Vec<PciAddress>,
) -> Result<(), VfioError> {
    let unattached = |address: &&PciAddress| {
        let tables = tools.runtime.tables();
        tables.devices.get(address).is_some_and(|live| live.domain.is_none())
    };
    let siblings: Vec<PciAddress> = group.members.iter().filter(unattached).copied().collect();
    for address in siblings {
        let live = tools.domain(context, domain)?;
        move_device(tools, address, &live, domain)?;
        moved.push(address);
    }
    Ok(())
}

/// Attaches one open device. On type1 opening it did that already.
fn move_device(
    tools: &Tools,
    address: PciAddress,
    domain: &LiveDomain,
    id: &DomainId,
) -> Result<(), VfioError> {
    let Some(mut live) = tools.runtime.take_device(address) else { return Ok(()) };
    let attached = match live.domain {
        Some(ref there) if there == id => Ok(()),
        _ => patiently(|| live.device.attach(domain.handle)),
    };
    if attached.is_ok() {
        live.domain = Some(id.clone());
    }
    tools.runtime.put_device(address, live);
    attached
}

fn undo(tools: &Tools, intent: u64, job: &Job, fresh: &[PciAddress], moved: &[PciAddress]) {
    for &address in moved {
        let Some(mut live) = tools.runtime.take_device(address) else { continue };
        if !fresh.contains(&address) {
            match live.device.detach() {
                Ok(()) => live.domain = None,
                Err(error) => tracing::warn!(device = %address, %error, "undoing an attach"),
            }
        }
        tools.runtime.put_device(address, live);
    }
    for &address in fresh {
        if let Some(live) = tools.runtime.take_device(address) {
            tools.close_device(live);
        }
    }
    hold_again(tools, intent, job);
}

/// Takes the holds again after a close. A rival may have been faster: then the hold is lost, which
/// is told once the work at hand has its outcome.
pub(crate) fn hold_again(tools: &Tools, intent: u64, job: &Job) {
    for group in &job.groups {
        if let Err(refusal) = tools.note(intent, "hold", &group.id) {
            tracing::warn!(group = %group.id, reason = %refusal.message, "unrecorded hold");
        }
        if let Err(error) = tools.settle_hold(job, group) {
            let why = tools.explain(group, &error).message;
            lost(tools, job, group, &why);
        }
    }
}

/// Somebody else has a group: the reservations that hold it are lost.
pub(crate) fn lost(tools: &Tools, job: &Job, group: &GroupJob, why: &str) {
    tracing::error!(group = %group.id, reservation = %job.reservation, why, "hold lost");
    for reservation in group.others.iter().chain([&job.reservation]) {
        let reservation = reservation.clone();
        tools.afterwards(Command::HoldLost { reservation, why: why.to_owned() });
    }
}

/// Detaches all devices of a reservation.
pub(crate) fn detach(tools: &Tools, intent: u64, job: &Job) -> Outcome {
    let reservation = job.reservation.clone();
    let detached = detach_all(tools, intent, job);
    tools.note_context(&job.context);
    match detached {
        Ok(()) => Outcome::done(Command::DetachDone { reservation }),
        Err(refusal) => {
            let why = refusal.message.clone();
            Outcome::failed(Command::DetachFailed { reservation, why }, refusal)
        }
    }
}

fn detach_all(tools: &Tools, intent: u64, job: &Job) -> Result<(), Box<Refusal>> {
    not_in_use(tools, job)?;
    tools.note(intent, "detach", &job.reservation)?;
    super::memory::end_registrations(tools, &job.reservation);
    if job.policy == Policy::Group {
        return block(tools, job);
    }
    close(tools, job);
    // What is open all the same is nobody's who could have taken the group.
    proof::closed(tools, job)?;
    hold_again(tools, intent, job);
    Ok(())
}

/// Policy group: the owner stays, nothing is attached any more, so all DMA is blocked.
fn block(tools: &Tools, job: &Job) -> Result<(), Box<Refusal>> {
    for group in &job.groups {
        for &address in &group.members {
            let Some(mut live) = tools.runtime.take_device(address) else { continue };
            let detached = live.device.detach();
            if detached.is_ok() {
                live.domain = None;
            }
            tools.runtime.put_device(address, live);
            detached.map_err(|error| tools.explain(group, &error))?;
        }
    }
    Ok(())
}

/// Closes the devices of a reservation. The last close ends their DMA.
pub(crate) fn close(tools: &Tools, job: &Job) {
    for address in job.devices() {
        let ours = {
            let tables = tools.runtime.tables();
            tables.devices.get(&address).is_some_and(|live| live.reservation == job.reservation)
        };
        if ours && let Some(live) = tools.runtime.take_device(address) {
            tools.close_device(live);
        }
    }
}

/// # Errors
/// `HOLDER_DRAINING` while another process has a device open: closing ours would end nothing;
/// `RESERVATION_BUSY` while descriptors are on their way to one.
pub(crate) fn not_in_use(tools: &Tools, job: &Job) -> Result<(), Box<Refusal>> {
    if !tools.runtime.sent(&job.reservation) {
        let text = format!("{} is being handed over", job.reservation);
        return Err(Refusal::new(Reason::ReservationBusy, &job.reservation, text));
    }
    let users = tools.users_of(job)?;
    let Some(group) = job.groups.first().filter(|_| !users.is_empty()) else { return Ok(()) };
    let mut refusal = explain_errno::foreign(group, &users);
    let named: Vec<String> =
        users.iter().map(|user| format!("{} ({})", user.name, user.pid)).collect();
    refusal.reason = Reason::HolderDraining;
    refusal.object = job.reservation.to_string();
    refusal.message =
        format!("{} still has a device of {} open", named.join(", "), job.reservation);
    refusal.resolve.retain(|way| !way.starts_with("berth adopt"));
    refusal.resolve.push(format!("berth release {} --force", job.reservation));
    Err(refusal.with_errno(Reason::HolderDraining.errno().number))
}

/// Attaches the groups of a reservation to another domain of its context. A failure leaves them
/// on the old one.
pub(crate) fn replace(tools: &Tools, intent: u64, job: &Job, domain: &DomainId) -> Outcome {
    let reservation = job.reservation.clone();
    let replaced = replace_all(tools, intent, job, domain);
    tools.note_context(&job.context);
    match replaced {
        Ok(()) => Outcome::done(Command::ReplaceDone { reservation }),
        Err(refusal) => {
            let why = refusal.message.clone();
            Outcome::failed(Command::ReplaceFailed { reservation, why }, refusal)
        }
    }
}

fn replace_all(
    tools: &Tools,
    intent: u64,
    job: &Job,
    domain: &DomainId,
) -> Result<(), Box<Refusal>> {
    let Some(context) = tools.runtime.context(&job.context) else {
        return Err(Refusal::new(
            Reason::NotAttached,
            &job.reservation,
            format!("{} has no open context, so there is nothing to replace", job.reservation),
        ));
    };
    tools.note(intent, "replace", domain)?;
    let mut moved = Vec::new();
    for group in &job.groups {
        let result = replace_group(tools, &context, group, domain, &mut moved);
        if let Err(error) = result {
            let refusal = tools.explain(group, &error);
            put_back(tools, &context, &moved);
            return Err(refusal);
        }
    }
    Ok(())
}

/// One attach moves the group in the kernel; the others of it follow by attaching to the same.
fn replace_group(
    tools: &Tools,
    context: &Arc<LiveContext>,
    group: &GroupJob,
    domain: &DomainId,
    moved: &mut Vec<(PciAddress, Option<DomainId>)>,
) -> Result<(), VfioError> {
    let live_domain = tools.domain(context, domain)?;
    for &address in &group.members {
        let was = tools.runtime.tables().devices.get(&address).map(|live| live.domain.clone());
        let Some(was) = was else { continue };
        move_device(tools, address, &live_domain, domain)?;
        moved.push((address, was));
    }
    Ok(())
}

fn put_back(tools: &Tools, context: &Arc<LiveContext>, moved: &[(PciAddress, Option<DomainId>)]) {
    for (address, was) in moved {
        let Some(was) = was else { continue };
        let back = tools
            .domain(context, was)
            .and_then(|domain| move_device(tools, *address, &domain, was));
        if let Err(error) = back {
            tracing::error!(device = %address, %error, "the old domain could not be put back");
        }
    }
}
