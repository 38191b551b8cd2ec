//! Release: DMA is cut, devices are reset and put back, and only then is the group let go.
//!
//! The order keeps rivals out: the reset happens while the device is still bound to our context or
//! held, the VFIO driver goes while the hold stands, and the hold goes last before the host
//! driver's bind, which it would refuse.

use berth_host::{Act, ActOutcome, BackendKind, PciAddress, ResetOutcome};
use berth_ownership::{Command, DeviceReturn, Policy, Refusal, Reservation};

use super::{
    access, attach, drivers, hand_over,
    job::{GroupJob, Job, device_id},
    memory, proof, revoke,
    tools::Tools,
};
use crate::model::{GivenBack, Outcome};

/// Gives a reservation back.
pub(crate) fn run(tools: &Tools, intent: u64, job: &Job, force: bool) -> Outcome {
    let reservation = job.reservation.clone();
    match attempt(tools, intent, job, force) {
        Ok(back) => Outcome {
            given_back: back.iter().map(|device| device.shown.clone()).collect(),
            restored: back.iter().filter(|d| d.forget).map(|d| d.shown.device.clone()).collect(),
            ..Outcome::done(Command::ReleaseDone {
                reservation,
                returned: back.iter().map(Back::record).collect(),
            })
        },
        Err(refusal) => {
            let why = refusal.message.clone();
            Outcome::failed(Command::ReleaseFailed { reservation, why }, refusal)
        }
    }
}

/// One device, given back.
struct Back {
    shown: GivenBack,
    /// Its baseline is there again, so the record of it can go.
    forget: bool,
}

impl Back {
    fn record(&self) -> DeviceReturn {
        DeviceReturn {
            device: self.shown.device.clone(),
            reset: self.shown.reset,
            baseline_restored: self.shown.baseline_restored,
            note: self.shown.note.clone(),
        }
    }
}

fn attempt(tools: &Tools, intent: u64, job: &Job, force: bool) -> Result<Vec<Back>, Box<Refusal>> {
    if force {
        // First, or the next process of the user would open the nodes again.
        access::revoke(tools, job)?;
        revoke::run(tools, intent, job)?;
    }
    attach::not_in_use(tools, job)?;
    if !job.delivery.holder_owns_domain() || !job.ever_claimed {
        return give_back(tools, intent, job);
    }
    let back = shut_out(tools, intent, job).and_then(|()| give_back(tools, intent, job));
    if back.is_err() {
        open_again(tools, job);
    }
    back
}

/// Cuts, resets and puts back, once nobody else has the devices.
fn give_back(tools: &Tools, intent: u64, job: &Job) -> Result<Vec<Back>, Box<Refusal>> {
    tools.note(intent, "cut", &job.reservation)?;
    memory::end_registrations(tools, &job.reservation);
    cut(tools, job);
    let mut resets = Vec::new();
    for address in job.devices() {
        resets.push((address, reset(tools, intent, job, address)?));
    }
    tools.note(intent, "close", &job.reservation)?;
    attach::close(tools, job);
    for group in &job.groups {
        proof::unused(tools, job, group)?;
    }
    // A host driver that comes back makes its device a bus master again: asked before.
    for (address, outcome) in &mut resets {
        silent_or_failed(tools, job, *address, outcome);
    }
    let back =
        job.groups.iter().flat_map(|group| let_go(tools, intent, job, group, &resets)).collect();
    close_context(tools, job);
    Ok(back)
}

/// Who attaches by itself is let in no more, and the hold is there again before the reset.
fn shut_out(tools: &Tools, intent: u64, job: &Job) -> Result<(), Box<Refusal>> {
    access::revoke(tools, job)?;
    // It may have opened something while it still could.
    attach::not_in_use(tools, job)?;
    tools.note(intent, "hold", &job.reservation)?;
    job.groups.iter().try_for_each(|group| proof::unused(tools, job, group))
}

/// The claims stand after all, so the holder may attach as before.
fn open_again(tools: &Tools, job: &Job) {
    let snapshot = tools.records.snapshot();
    let record = snapshot.state.reservation(&job.reservation);
    if !record.is_some_and(Reservation::is_handed_out) {
        return;
    }
    if record.is_some_and(access::lets_in)
        && let Err(refusal) = access::grant(tools, job)
    {
        tracing::error!(reservation = %job.reservation, why = refusal.message, "no access");
    }
    hand_over::drop_holds(tools, job);
}

/// The context goes with its last reservation, before that is told to be released; what was kept of
/// a hand-over goes with the last that was handed over.
pub(crate) fn close_context(tools: &Tools, job: &Job) {
    hand_over::close_context(tools, job);
    let snapshot = tools.records.snapshot();
    let last = snapshot.state.context(&job.context).is_none_or(|context| {
        context.automatic && context.reservations.iter().all(|id| *id == job.reservation)
    });
    if last {
        let context = tools.runtime.tables().contexts.remove(&job.context);
        drop(context);
    }
}

/// Blocks the devices' DMA before anything else. With shared, the siblings' goes on: there the
/// last close ends it.
fn cut(tools: &Tools, job: &Job) {
    if job.policy == Policy::Shared {
        return;
    }
    for group in job.groups.iter().filter(|group| group.others.is_empty()) {
        for &address in &group.devices {
            let Some(mut live) = tools.runtime.take_device(address) else { continue };
            match live.device.detach() {
                Ok(()) => live.domain = None,
                Err(error) => tracing::warn!(device = %address, %error, "detach before release"),
            }
            tools.runtime.put_device(address, live);
        }
    }
}

fn reset(
    tools: &Tools,
    intent: u64,
    job: &Job,
    address: PciAddress,
) -> Result<ResetOutcome, Box<Refusal>> {
    if !job.ever_claimed {
        return Ok(ResetOutcome::NotPossible { note: String::new() });
    }
    tools.note(intent, "reset", address)?;
    let outcome = match tools.perform(&Act::Reset { device: address }, address) {
        Ok(ActOutcome::Reset(outcome)) => outcome,
        Ok(other) => ResetOutcome::Failed { note: format!("the helper answered {other:?}") },
        Err(refusal) => ResetOutcome::Failed { note: refusal.message },
    };
    tracing::info!(device = %address, outcome = outcome.as_str(), "reset");
    Ok(outcome)
}

fn let_go(
    tools: &Tools,
    intent: u64,
    job: &Job,
    group: &GroupJob,
    resets: &[(PciAddress, ResetOutcome)],
) -> Vec<Back> {
    let last = group.others.is_empty();
    let touched = drivers::touched(tools, group);
    let restored = if last {
        let handed = job.delivery.holder_owns_domain()
            && job.backend == BackendKind::Iommufd
            && job.ever_claimed;
        let leaving = if handed { drivers::Leaving::All } else { drivers::Leaving::WhereItWasNot };
        let left = drivers::leave_vfio(tools, intent, &touched, leaving);
        tools.drop_hold(group.number);
        drivers::restore(tools, intent, &touched, left)
    } else {
        let own: Vec<PciAddress> = touched
            .iter()
            .filter(|address| group.devices.contains(address))
            .filter(|address| !job.taken.contains(address) || !waits_for_group(tools, **address))
            .copied()
            .collect();
        restore_in_owned_group(tools, intent, &own)
    };
    let mut all = group.devices.clone();
    let others = group.members.iter().filter(|address| !group.devices.contains(address));
    all.extend(others.filter(|address| {
        job.taken.contains(address)
            || restored.done.contains(address)
            || restored.failure(**address).is_some()
    }));
    all.into_iter()
        .map(|address| back(tools, job, group, address, resets, &restored, last))
        .collect()
}

/// What can be put back while others hold the group. A host driver that was released on purpose,
/// before anything was reserved, stays released; one that was taken waits, and is not in `own`.
fn restore_in_owned_group(tools: &Tools, intent: u64, own: &[PciAddress]) -> drivers::Restored {
    let (wait, now): (Vec<PciAddress>, Vec<PciAddress>) =
        own.iter().partition(|address| waits_for_group(tools, **address));
    let mut restored = drivers::restore(tools, intent, &now, drivers::Restored::default());
    for address in wait {
        match drivers::leave_without_driver(tools, intent, address) {
            Ok(()) => restored.done.push(address),
            Err(refusal) => restored.failed.push((address, refusal)),
        }
    }
    restored
}

/// A host driver can't come back while others hold the group: the kernel refuses its bind.
fn waits_for_group(tools: &Tools, address: PciAddress) -> bool {
    let snapshot = tools.records.snapshot();
    let Some(baseline) = snapshot.baseline(&device_id(address)) else { return false };
    let vfio = tools
        .host
        .device(address)
        .is_ok_and(|facts| baseline.driver.as_deref() == Some(facts.vfio_driver.as_str()));
    baseline.driver.is_some() && !vfio && baseline.driver.as_deref() != Some("vfio-pci")
}

fn back(
    tools: &Tools,
    job: &Job,
    group: &GroupJob,
    address: PciAddress,
    resets: &[(PciAddress, ResetOutcome)],
    restored: &drivers::Restored,
    last: bool,
) -> Back {
    let claimed = group.devices.contains(&address);
    let untouched = tools.records.snapshot().baseline(&device_id(address)).is_none();
    let forget = restored.done.contains(&address);
    let later = !last && !forget && restored.failure(address).is_none();
    let outcome = resets.iter().find(|(at, _)| *at == address).map(|(_, outcome)| outcome);
    let used = claimed && job.ever_claimed;
    let mut notes = Vec::new();
    let (reset, reset_method) = match outcome.filter(|_| used) {
        None => (berth_ownership::ResetOutcome::NotNeeded, String::new()),
        Some(ResetOutcome::Verified { method }) => {
            (berth_ownership::ResetOutcome::Verified, method.clone())
        }
        Some(ResetOutcome::NotPossible { note }) => {
            notes.push(note.clone());
            (berth_ownership::ResetOutcome::NotPossible, String::new())
        }
        Some(ResetOutcome::Failed { note }) => {
            notes.push(note.clone());
            (berth_ownership::ResetOutcome::Failed, String::new())
        }
    };
    notes.extend(restored.failure(address).map(|refusal| refusal.message.clone()));
    if later && !untouched {
        notes.push("its host driver comes back with the group's last reservation".to_owned());
    }
    let driver = tools.host.device(address).ok().and_then(|facts| facts.driver);
    let shown = GivenBack {
        device: device_id(address),
        reset,
        reset_method,
        baseline_restored: forget || untouched,
        driver: driver.unwrap_or_default(),
        note: notes.join("; "),
    };
    Back { shown, forget }
}

/// A device without a reset is given back when it is silent: it answers, and its bus master is
/// off. Else the reset counts as failed.
fn silent_or_failed(tools: &Tools, job: &Job, address: PciAddress, outcome: &mut ResetOutcome) {
    let ResetOutcome::NotPossible { note } = outcome else { return };
    if !job.ever_claimed {
        return;
    }
    let words =
        |said: &str| if note.is_empty() { said.to_owned() } else { format!("{note}; {said}") };
    *outcome = match silent(tools, address) {
        Ok(said) => ResetOutcome::NotPossible { note: words(said) },
        Err(why) => ResetOutcome::Failed { note: words(&why) },
    };
}

fn silent(tools: &Tools, address: PciAddress) -> Result<&'static str, String> {
    let config = match tools.perform(&Act::ReadConfig { device: address }, address) {
        Ok(ActOutcome::Config(config)) => config,
        Ok(other) => return Err(format!("reading its configuration space gave {other:?}")),
        Err(refusal) => return Err(refusal.message),
    };
    let Some(command) = config.get(4) else {
        return Err("its configuration space is too short".to_owned());
    };
    // A virtual function's vendor reads all ones by design.
    if config.iter().take(64).all(|byte| *byte == 0xff) {
        return Err("its configuration space does not answer".to_owned());
    }
    // Whoever lost its group may meet a host driver there, which is a bus master by right.
    let host_driver = tools
        .host
        .device(address)
        .is_ok_and(|facts| facts.driver.is_some() && !drivers::on_vfio(&facts));
    if command & 4 != 0 && !host_driver {
        return Err("its bus master is still on".to_owned());
    }
    Ok("bus master is off and its configuration space answers")
}
