//! Prepare: the groups of a reservation are made viable and held.

use berth_host::PciAddress;
use berth_ownership::{Command, DeviceReturn, Hold, Refusal, ResetOutcome};

use super::{
    access, drivers,
    job::{Job, device_id},
    tools::Tools,
    vf_token,
};
use crate::model::Outcome;

/// Does it, or undoes what was done of it.
pub(crate) fn run(tools: &Tools, intent: u64, job: &Job) -> Outcome {
    match attempt(tools, intent, job) {
        Ok(hold) => {
            Outcome::done(Command::PrepareDone { reservation: job.reservation.clone(), hold })
        }
        Err(refusal) => failed(tools, intent, job, refusal),
    }
}

fn attempt(tools: &Tools, intent: u64, job: &Job) -> Result<Hold, Box<Refusal>> {
    // Whoever lost these groups without our doing is let in no more.
    access::sweep(tools);
    make_viable(tools, intent, job)?;
    let mut hold = Hold::Kernel;
    for group in &job.groups {
        tools.note(intent, "hold", &group.id)?;
        let took = tools.settle_hold(job, group).map_err(|error| tools.explain(group, &error))?;
        if took == Hold::Ledger {
            hold = Hold::Ledger;
        }
    }
    Ok(hold)
}

/// Brings the drivers in order: host drivers that were given up go, claimed devices get VFIO's.
pub(crate) fn make_viable(tools: &Tools, intent: u64, job: &Job) -> Result<(), Box<Refusal>> {
    for group in &job.groups {
        // A host driver on any member would refuse the hold, so those go first.
        for &address in &group.members {
            if job.taken.contains(&address) {
                drivers::take(tools, intent, address)?;
            }
        }
        for &address in &group.devices {
            drivers::to_vfio(tools, intent, job, address)?;
            vf_token::set_before_hold(tools, group, job.backend, address);
        }
    }
    Ok(())
}

/// Undoes what was done, and says why.
pub(crate) fn failed(tools: &Tools, intent: u64, job: &Job, refusal: Box<Refusal>) -> Outcome {
    let mut returned = Vec::new();
    let mut restored = Vec::new();
    for group in &job.groups {
        // Others hold the group too: their hold and what was touched for them stays.
        if !group.others.is_empty() {
            let back = drivers::restore(
                tools,
                intent,
                &own_touched(tools, group, job),
                Default::default(),
            );
            returned.extend(returns(&back));
            restored.extend(back.done.iter().map(|address| device_id(*address)));
            continue;
        }
        let touched = drivers::touched(tools, group);
        let left = drivers::leave_vfio(tools, intent, &touched, drivers::Leaving::WhereItWasNot);
        tools.drop_hold(group.number);
        let back = drivers::restore(tools, intent, &touched, left);
        returned.extend(returns(&back));
        restored.extend(back.done.iter().map(|address| device_id(*address)));
    }
    super::release::close_context(tools, job);
    let why = refusal.message.clone();
    let command = Command::PrepareFailed { reservation: job.reservation.clone(), why, returned };
    Outcome { restored, ..Outcome::failed(command, refusal) }
}

/// Of a group that others hold too, what only this reservation claims.
fn own_touched(tools: &Tools, group: &super::job::GroupJob, job: &Job) -> Vec<PciAddress> {
    drivers::touched(tools, group)
        .into_iter()
        .filter(|address| job.devices().any(|device| device == *address))
        .collect()
}

fn returns(back: &drivers::Restored) -> Vec<DeviceReturn> {
    let done = back.done.iter().map(|address| (*address, true, String::new()));
    let failed =
        back.failed.iter().map(|(address, refusal)| (*address, false, refusal.message.clone()));
    done.chain(failed)
        .map(|(address, baseline_restored, note)| DeviceReturn {
            device: device_id(address),
            reset: ResetOutcome::NotNeeded,
            baseline_restored,
            note,
        })
        .collect()
}
