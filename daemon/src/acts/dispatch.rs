//! Which act does the kernel work of an intent.

use berth_ownership::{Command, DeviceId, Reason, Refusal, ReservationId};

use super::{
    attach, hand_over,
    job::{Job, address},
    kernel_dma, prepare, release, sriov,
    tools::Tools,
};
use crate::model::{Intent, IntentBody, Outcome, Snapshot};

/// Does the kernel work of an intent.
pub(super) fn act(tools: &Tools, intent: &Intent, snapshot: &Snapshot) -> Outcome {
    let job = match (&intent.reservation, intent.body.device()) {
        (Some(reservation), _) => match Job::of(snapshot, reservation) {
            Ok(job) => Some(job),
            Err(refusal) => return failure(intent, refusal),
        },
        (None, _) => None,
    };
    let context = job.as_ref().map(|job| job.context.clone());
    let outcome = act_of(tools, intent, job);
    if let Some(context) = context {
        tools.runtime.learn_ranges(&context);
    }
    outcome
}

fn act_of(tools: &Tools, intent: &Intent, job: Option<Job>) -> Outcome {
    let id = intent.id;
    match (&intent.body, job) {
        (IntentBody::Prepare, Some(job)) => prepare::run(tools, id, &job),
        (IntentBody::Attach { domain }, Some(job)) => {
            attach::attach(tools, id, &job, domain.clone())
        }
        (IntentBody::Detach, Some(job)) => attach::detach(tools, id, &job),
        (IntentBody::Replace { domain }, Some(job)) => attach::replace(tools, id, &job, domain),
        (IntentBody::HandOver, Some(job)) => hand_over::run(tools, id, &job),
        (IntentBody::Release { force, .. }, Some(job)) => release::run(tools, id, &job, *force),
        (IntentBody::KernelDmaSet { device, driver }, _) => match address(device) {
            Some(at) => kernel_dma::set(tools, id, at, driver.clone()),
            None => failure(intent, not_an_address(device)),
        },
        (IntentBody::KernelDmaRelease { device }, _) => match address(device) {
            Some(at) => kernel_dma::release(tools, id, at),
            None => failure(intent, not_an_address(device)),
        },
        (IntentBody::Sriov { device, op }, _) => match address(device) {
            Some(at) => sriov::run(tools, id, at, *op),
            None => failure(intent, not_an_address(device)),
        },
        (_, None) => failure(
            intent,
            Refusal::new(
                Reason::Internal,
                format!("intent {id}"),
                "an intent for a reservation names none",
            ),
        ),
    }
}

fn not_an_address(device: &DeviceId) -> Box<Refusal> {
    Refusal::new(Reason::InvalidArgument, device, format!("{device} is not a PCI address"))
}

/// The outcome that says that an intent came to nothing.
pub(crate) fn failure(intent: &Intent, refusal: Box<Refusal>) -> Outcome {
    let why = refusal.message.clone();
    let reservation = intent.reservation.clone().unwrap_or_else(|| ReservationId::new("r-none"));
    let command = match &intent.body {
        IntentBody::Prepare => Command::PrepareFailed { reservation, why, returned: Vec::new() },
        IntentBody::Attach { .. } => Command::AttachFailed { reservation, why },
        IntentBody::Detach => Command::DetachFailed { reservation, why },
        IntentBody::Replace { .. } => Command::ReplaceFailed { reservation, why },
        IntentBody::HandOver => Command::HandOverFailed { reservation, why },
        IntentBody::Release { .. } => Command::ReleaseFailed { reservation, why },
        IntentBody::KernelDmaSet { device, .. } | IntentBody::KernelDmaRelease { device } => {
            Command::KernelDmaFailed { device: device.clone(), why }
        }
        IntentBody::Sriov { device, .. } => {
            let (device, undone, functions) = (device.clone(), false, None);
            Command::SriovFailed { device, why, undone, functions }
        }
    };
    Outcome::failed(command, refusal)
}
