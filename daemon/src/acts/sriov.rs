//! SR-IOV: virtual functions are made and taken away, by steps that can be repeated or undone.

use berth_host::{Act, DeviceFacts, HostError, PciAddress};
use berth_ownership::{Command, DeviceId, Reason, Refusal, Sriov, SriovOp};
use rustix::io::Errno;

use super::{drivers::facts, explain_errno, job::device_id, tools::Tools};
use crate::model::Outcome;

/// How SR-IOV of a physical function is set.
pub(crate) fn of(facts: &DeviceFacts) -> Sriov {
    let vfs = u16::try_from(facts.virtual_functions.len()).unwrap_or(u16::MAX);
    Sriov { vfs, autoprobe: facts.sriov_autoprobe }
}

/// What is written one after the other to come from one setting to another. The kernel changes a
/// number of functions by way of none only (EBUSY), and host drivers that are to have them get them
/// as they come.
pub(crate) fn steps(from: Sriov, to: Sriov) -> Vec<Sriov> {
    let mut steps = Vec::new();
    if from == to {
        return steps;
    }
    if from.vfs > 0 && to.vfs > 0 {
        steps.push(Sriov { vfs: 0, autoprobe: from.autoprobe });
    }
    steps.push(to);
    steps
}

/// Does it, whatever was done of it before, or undoes what was done of it.
pub(crate) fn run(tools: &Tools, intent: u64, address: PciAddress, op: SriovOp) -> Outcome {
    let device = device_id(address);
    let done = reach(tools, intent, address, op.to);
    let refusal = match done {
        Ok(facts) => {
            seen(tools, address);
            let (now, functions) = (of(&facts), functions(&facts));
            return Outcome::done(Command::SriovDone { device, now, functions });
        }
        Err(refusal) => refusal,
    };
    let undone = reach(tools, intent, address, op.from);
    if let Err(error) = &undone {
        tracing::warn!(device = %address, why = error.message, "SR-IOV is not as it was");
    }
    seen(tools, address);
    let functions = facts(tools, address).ok().map(|facts| functions(&facts));
    let (why, undone) = (refusal.message.clone(), undone.is_ok());
    Outcome::failed(Command::SriovFailed { device, why, undone, functions }, refusal)
}

/// The functions that came are on record before the outcome is, which says who went.
fn seen(tools: &Tools, address: PciAddress) {
    if let Err(error) = tools.records.look(&format!("SR-IOV of {address}")) {
        tracing::warn!(device = %address, %error, "virtual functions aren't on record yet");
    }
}

fn functions(facts: &DeviceFacts) -> Vec<DeviceId> {
    facts.virtual_functions.iter().copied().map(device_id).collect()
}

fn reach(
    tools: &Tools,
    intent: u64,
    address: PciAddress,
    to: Sriov,
) -> Result<DeviceFacts, Box<Refusal>> {
    let before = facts(tools, address)?;
    for Sriov { vfs, autoprobe } in steps(of(&before), to) {
        let detail = format!("{address} numvfs {vfs} autoprobe {}", u8::from(autoprobe));
        tools.note(intent, "sriov", detail)?;
        let act = Act::Sriov { device: address, count: vfs, autoprobe };
        let written = tools.host.perform(&act);
        written.map_err(|error| explain(&before, vfs, &error))?;
    }
    let now = facts(tools, address)?;
    if of(&now) == to {
        return Ok(now);
    }
    let text = format!("{address} should have {to}, but has {}", of(&now));
    Err(Refusal::new(Reason::KernelRefused, address, text))
}

/// What the errno of a write means.
///
/// # Kernel
/// `sriov_numvfs_store`: ENOENT without a driver, or with one that has no `sriov_configure`;
/// vfio-pci's answers that, too, unless `enable_sriov` is set. A driver may say EOPNOTSUPP.
fn explain(facts: &DeviceFacts, vfs: u16, error: &HostError) -> Box<Refusal> {
    let address = facts.address;
    let refusal = explain_errno::host(error, address);
    let errno = error.errno().map(Errno::from_raw_os_error);
    if !matches!(errno, Some(Errno::NOENT | Errno::OPNOTSUPP)) {
        return refusal;
    }
    let (text, way) = match facts.driver.as_deref() {
        None => (
            format!("{address} has no driver, and its driver makes virtual functions"),
            format!("berth kernel-dma set {address} --driver NAME"),
        ),
        Some("vfio-pci") => (
            format!("{address} is on vfio-pci, which makes no virtual functions by default"),
            "echo 1 > /sys/module/vfio_pci/parameters/enable_sriov, or load it so".to_owned(),
        ),
        Some(driver) => (
            format!(
                "{address}: its driver {driver} makes no virtual functions (no sriov_configure)"
            ),
            format!("bind a driver to {address} that does"),
        ),
    };
    let message = format!("{text}: {vfs} VFs were asked for: {}", refusal.message);
    Refusal::new(refusal.reason, address, message).with_errno(refusal.errno).with_resolve(vec![way])
}

#[cfg(test)]
mod tests {
    use super::{Sriov, steps};

    #[test]
    fn the_way_from_one_number_to_another_leads_over_none() {
        let set = |vfs, autoprobe| Sriov { vfs, autoprobe };
        for (from, to, by) in [
            (set(0, true), set(4, false), vec![set(4, false)]),
            (set(8, true), set(4, false), vec![set(0, true), set(4, false)]),
            (set(4, false), set(8, true), vec![set(0, false), set(8, true)]),
            (set(4, false), set(0, true), vec![set(0, true)]),
            (set(8, false), set(8, true), vec![set(0, false), set(8, true)]),
            (set(0, false), set(0, true), vec![set(0, true)]),
            (set(4, false), set(4, false), vec![]),
        ] {
            assert_eq!(steps(from, to), by, "{from:?} {to:?}");
        }
    }
}
