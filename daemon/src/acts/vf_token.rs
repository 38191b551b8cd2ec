//! VF tokens. Where a physical function is on a VFIO driver, the kernel lets nobody open a virtual
//! one without the secret that was set on the physical one, nor that one while virtual ones are open.
//!
//! The daemon makes it, keeps it over restarts, sets it on what it opens, and shows it. Who opens a
//! device by itself gets it with the hand-over.
//!
//! # Kernel
//! `vfio_pci_validate_vf_token`. A token stays until the physical function leaves its driver, and the
//! virtual functions that the driver made go then. So the kernel's word for a wrong one (EACCES, before
//! anything is reset) is all that has to be asked; what was set isn't to be read.

use berth_host::{AttachedDevice, BackendKind, Context, DeviceFacts, Host, PciAddress, VfioError};
use berth_ownership::Refusal;
use berth_uapi::VfToken;
use rustix::io::Errno;

use super::{
    drivers::on_vfio,
    job::{GroupJob, Job},
    tools::{Tools, patiently},
};
use crate::model::ApiError;

/// The physical function whose token a device is opened by: of a virtual function its own, of a
/// physical one itself. `None` where it is on no VFIO driver: then nobody is asked for one.
pub(crate) fn keeper(host: &dyn Host, address: PciAddress) -> Option<DeviceFacts> {
    let facts = host.device(address).ok()?;
    let physical = match facts.physical_function {
        Some(physical) => host.device(physical).ok()?,
        None if facts.sriov_total > 0 => facts,
        None => return None,
    };
    on_vfio(&physical).then_some(physical)
}

/// The same, without a look at the machine for the many devices that are no function of such a kind.
fn keeper_of(tools: &Tools, address: PciAddress) -> Option<DeviceFacts> {
    let snapshot = tools.records.snapshot();
    let plain = snapshot
        .device(address)
        .is_some_and(|facts| facts.sriov_total == 0 && facts.physical_function.is_none());
    if plain { None } else { keeper(&*tools.host, address) }
}

/// Opens a device in a context, by its token where the kernel asks for it. On a physical function the
/// token is set then, too.
///
/// # Errors
/// The kernel's, explained; the ledger's, where there is no token to show.
pub(crate) fn open(
    tools: &Tools,
    group: &GroupJob,
    context: &dyn Context,
    address: PciAddress,
) -> Result<Box<dyn AttachedDevice>, Box<Refusal>> {
    let keeper = keeper_of(tools, address);
    let opened = match (patiently(|| context.open_device(address)), &keeper) {
        (Err(error), Some(keeper)) if asks_for_token(&error) => {
            let token = token(tools, keeper.address)?;
            show(tools, group, context, (address, keeper.address), &token)
        }
        (opened, _) => opened.map_err(|error| tools.explain(group, &error)),
    };
    let mut device = opened?;
    if keeper.is_some_and(|keeper| keeper.address == address) {
        set(tools, &mut *device);
    }
    Ok(device)
}

/// The kernel's refusal of an open, and not that of a node which isn't the daemon's to open.
fn asks_for_token(error: &VfioError) -> bool {
    error.errno == Errno::ACCESS.raw_os_error() && error.op != "open"
}

fn token(tools: &Tools, physical: PciAddress) -> Result<VfToken, Box<Refusal>> {
    tools.records.vf_token(physical).map_err(ApiError::into_refusal)
}

/// Opens by the token; where the kernel has another one, that is replaced, if nobody has the physical
/// function.
fn show(
    tools: &Tools,
    group: &GroupJob,
    context: &dyn Context,
    (address, physical): (PciAddress, PciAddress),
    token: &VfToken,
) -> Result<Box<dyn AttachedDevice>, Box<Refusal>> {
    let shown = || patiently(|| context.open_by_token(address, token));
    let refused = match shown() {
        Err(error) if asks_for_token(&error) => error,
        opened => return opened.map_err(|error| tools.explain(group, &error)),
    };
    if physical == address {
        return Err(tools.explain(group, &refused));
    }
    if let Err(error) = set_on(tools, context.backend(), physical, token) {
        let mut refusal = tools.explain(group, &refused);
        refusal.message = format!("{}; to set it: {error}", refusal.message);
        return Err(refusal);
    }
    shown().map_err(|error| tools.explain(group, &error))
}

/// Opens a physical function that nobody has, sets its token, and closes it again. As that resets the
/// device, nothing is done while virtual ones are used; the kernel refuses it while they are open by
/// another token, but not while host drivers use them.
///
/// # Errors
/// EBUSY: a virtual one is used, or the physical one is open. Others are the kernel's.
fn set_on(
    tools: &Tools,
    backend: BackendKind,
    physical: PciAddress,
    token: &VfToken,
) -> Result<(), VfioError> {
    if functions_are_used(&*tools.host, physical) {
        return Err(VfioError::new("reset", format!("{physical} under its VFs"), Errno::BUSY));
    }
    let context = tools.host.open_context(backend)?;
    let mut device = patiently(|| context.open_device(physical))?;
    device.set_vf_token(token)?;
    tracing::info!(device = %physical, "VF token set");
    Ok(())
}

/// Whether a virtual function is open, or on a host driver. What can't be told counts.
fn functions_are_used(host: &dyn Host, physical: PciAddress) -> bool {
    let used = |function: &PciAddress| {
        let by_host = |facts: DeviceFacts| facts.driver.is_some() && !on_vfio(&facts);
        host.device(*function).map_or(true, by_host) || host.in_use(*function).unwrap_or(true)
    };
    host.device(physical).map_or(true, |facts| facts.virtual_functions.iter().any(used))
}

/// Sets the token of a physical function that is open. Where that fails its virtual ones stay closed
/// to all, which is told to whoever wants one.
fn set(tools: &Tools, device: &mut dyn AttachedDevice) {
    let physical = device.address();
    let set = token(tools, physical)
        .map_err(|refusal| refusal.message.clone())
        .and_then(|token| device.set_vf_token(&token).map_err(|error| error.to_string()));
    if let Err(why) = set {
        tracing::warn!(device = %physical, why, "no VF token could be set");
    }
}

/// A physical function that is about to be held, and then handed over, has the token before: of who
/// opens it by itself nobody is there to set it. Done only where there are virtual functions or can
/// be, as it resets the device, and where none of them is in use.
pub(crate) fn set_before_hold(
    tools: &Tools,
    group: &GroupJob,
    backend: BackendKind,
    address: PciAddress,
) {
    let held = tools.runtime.tables().holds.contains_key(&group.number);
    let Some(facts) = keeper_of(tools, address).filter(|facts| facts.address == address) else {
        return;
    };
    let may_have = !facts.virtual_functions.is_empty() || tools.host.settings().vfio_sriov;
    let used = || functions_are_used(&*tools.host, address);
    if held || !may_have || !group.others.is_empty() || used() {
        return;
    }
    let set = token(tools, address).map_err(|refusal| refusal.message.clone()).and_then(|token| {
        set_on(tools, backend, address, &token).map_err(|error| error.to_string())
    });
    if let Err(why) = set {
        tracing::warn!(device = %address, why, "no VF token could be set");
    }
}

/// What has to be shown for the devices of a reservation by who opens them by itself.
///
/// # Errors
/// The ledger's.
pub(crate) fn to_show(
    tools: &Tools,
    job: &Job,
) -> Result<Vec<(PciAddress, VfToken)>, Box<Refusal>> {
    let mut shown = Vec::new();
    for address in job.devices() {
        if let Some(keeper) = asked_by(tools, job.backend, address) {
            shown.push((address, token(tools, keeper.address)?));
        }
    }
    Ok(shown)
}

/// The physical function whose token the kernel asks for, through this back end.
fn asked_by(tools: &Tools, backend: BackendKind, address: PciAddress) -> Option<DeviceFacts> {
    let keeper = keeper_of(tools, address)?;
    if keeper.address == address && keeper.virtual_functions.is_empty() {
        return None;
    }
    let asks = match backend {
        BackendKind::Type1 => true,
        BackendKind::Iommufd => tools.host.bind_takes_vf_token(address).unwrap_or_else(|error| {
            tracing::debug!(device = %address, %error, "whether a bind takes a token");
            true
        }),
    };
    asks.then_some(keeper)
}

/// Before virtual functions are handed over to who opens them by itself, with the hold gone: opens
/// each by its token once, so that the holder isn't refused with what it was given.
///
/// # Errors
/// The kernel has another token, and it can't be set. What else stands against an open is not said
/// here: the holder's own will find it.
pub(crate) fn prove(tools: &Tools, job: &Job) -> Result<(), Box<Refusal>> {
    for group in job.groups.iter().filter(|group| group.others.is_empty()) {
        for &address in &group.devices {
            let Some(keeper) = asked_by(tools, job.backend, address) else { continue };
            if keeper.address == address {
                continue;
            }
            let token = token(tools, keeper.address)?;
            let Ok(context) = tools.host.open_context(job.backend) else { continue };
            let opened = show(tools, group, &*context, (address, keeper.address), &token);
            if let Err(refusal) = opened {
                if refusal.errno == Errno::ACCESS.raw_os_error() {
                    return Err(refusal);
                }
                tracing::debug!(device = %address, why = refusal.message, "not opened by its token");
            }
        }
    }
    Ok(())
}
