//! Drivers: what a device had is recorded first, then it is moved to VFIO; at the end it is put back.

use berth_host::{Act, DeviceFacts, DmaKind, PciAddress, PrivateDomain};
use berth_ownership::{Blocker, DriverDma, Reason, Refusal};
use rustix::io::Errno;

use super::{
    explain_errno,
    job::{GroupJob, Job, device_id},
    tools::Tools,
};
use crate::model::Baseline;

/// Puts a device on its VFIO driver.
///
/// # Errors
/// `KERNEL_DMA` when it is on a host driver that wasn't given up, and the act's own.
pub(crate) fn to_vfio(
    tools: &Tools,
    intent: u64,
    job: &Job,
    address: PciAddress,
) -> Result<(), Box<Refusal>> {
    let facts = facts(tools, address)?;
    remember(tools, intent, &facts)?;
    if on_vfio(&facts) {
        return Ok(());
    }
    if facts.driver.is_some() {
        if uses_kernel_dma(&facts) && !job.taken.contains(&address) {
            return Err(not_given_up(&facts));
        }
        unbind_host(tools, intent, &facts)?;
    }
    tools.note(intent, "bind", format!("{address} {}", facts.vfio_driver))?;
    let act = Act::Bind { device: address, driver: facts.vfio_driver };
    tools.perform(&act, address)?;
    Ok(())
}

/// Takes a device from its host driver without giving it another.
///
/// # Errors
/// The act's own.
pub(crate) fn take(tools: &Tools, intent: u64, address: PciAddress) -> Result<(), Box<Refusal>> {
    let facts = facts(tools, address)?;
    if facts.driver.is_none() || !uses_kernel_dma(&facts) {
        return Ok(());
    }
    unbind_host(tools, intent, &facts)
}

/// Remembers a host driver and unbinds it, unless that would wait for processes that keep its own
/// domain. The record says so before; they may have come since.
///
/// # Errors
/// `KERNEL_DMA` with the processes, and the act's own.
pub(crate) fn unbind_host(
    tools: &Tools,
    intent: u64,
    facts: &DeviceFacts,
) -> Result<(), Box<Refusal>> {
    let keepers = facts.private_domain.as_ref().map(PrivateDomain::keepers).unwrap_or_default();
    if !keepers.is_empty() {
        return Err(kept(facts, keepers));
    }
    remember(tools, intent, facts)?;
    unbind(tools, intent, facts.address)
}

/// Unbinds whatever driver a device has.
///
/// # Errors
/// The act's own.
pub(crate) fn unbind(tools: &Tools, intent: u64, address: PciAddress) -> Result<(), Box<Refusal>> {
    tools.note(intent, "unbind", address)?;
    tools.perform(&Act::Unbind { device: address }, address)?;
    Ok(())
}

/// Records what a device has, unless that is recorded already.
///
/// # Errors
/// The ledger's: then the device must not be touched.
pub(crate) fn remember(
    tools: &Tools,
    intent: u64,
    facts: &DeviceFacts,
) -> Result<(), Box<Refusal>> {
    let device = device_id(facts.address);
    if tools.records.snapshot().baseline(&device).is_some() {
        return Ok(());
    }
    let baseline = Baseline {
        device,
        driver: facts.driver.clone(),
        driver_override: facts.driver_override.clone(),
    };
    tools.records.remember(intent, baseline).map_err(|error| error.into_refusal())
}

/// How putting back went, device by device.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// Back as they were.
    pub(crate) done: Vec<PciAddress>,
    /// Not: and why.
    pub(crate) failed: Vec<(PciAddress, Box<Refusal>)>,
}

impl Restored {
    /// Why a device isn't back.
    pub(crate) fn failure(&self, address: PciAddress) -> Option<&Refusal> {
        self.failed.iter().find(|(at, _)| *at == address).map(|(_, refusal)| refusal.as_ref())
    }
}

/// Members of a group that Berth has touched.
pub(crate) fn touched(tools: &Tools, group: &GroupJob) -> Vec<PciAddress> {
    let snapshot = tools.records.snapshot();
    let known = |address: &&PciAddress| snapshot.baseline(&device_id(**address)).is_some();
    group.members.iter().filter(known).copied().collect()
}

/// Which devices leave VFIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Those whose baseline isn't VFIO.
    WhereItWasNot,
    /// All, to come back where it was. The kernel removes a device only once every file of it is
    /// closed: of a cdev that was handed over unbound nothing else tells that, as long as it is on
    /// its way over a socket, and whoever receives it could bind it to a group that is free.
    All,
}

/// Takes devices off VFIO while the hold still keeps everyone else out: then nothing is left to
/// open when it goes.
pub(crate) fn leave_vfio(
    tools: &Tools,
    intent: u64,
    devices: &[PciAddress],
    leaving: Leaving,
) -> Restored {
    let snapshot = tools.records.snapshot();
    let mut restored = Restored::default();
    for &address in devices {
        let baseline = snapshot.baseline(&device_id(address));
        let Ok(facts) = tools.host.device(address) else { continue };
        let stays = leaving == Leaving::WhereItWasNot
            && baseline.is_some_and(|had| had.driver == facts.driver);
        if facts.driver.is_none() || stays || !on_vfio(&facts) {
            continue;
        }
        if let Err(refusal) = unbind(tools, intent, address) {
            restored.failed.push((address, refusal));
        }
    }
    restored
}

/// Puts drivers and overrides back. The holds of the groups must be gone: a host driver's bind
/// is refused while they stand.
pub(crate) fn restore(
    tools: &Tools,
    intent: u64,
    devices: &[PciAddress],
    before: Restored,
) -> Restored {
    let snapshot = tools.records.snapshot();
    let mut restored = before;
    for &address in devices {
        if restored.failure(address).is_some() {
            continue;
        }
        let Some(baseline) = snapshot.baseline(&device_id(address)) else { continue };
        let act = Act::Restore {
            device: address,
            driver: baseline.driver.clone(),
            driver_override: baseline.driver_override.clone(),
        };
        let detail = format!("{address} {}", baseline.driver.as_deref().unwrap_or("none"));
        let done = tools
            .note(intent, "restore", detail)
            .and_then(|()| tools.perform(&act, address))
            .and_then(|_| check(tools, address, baseline));
        match done {
            Ok(()) => restored.done.push(address),
            Err(refusal) => restored.failed.push((address, refusal)),
        }
    }
    restored
}

/// Takes a device off VFIO and puts its override back, but binds no host driver.
///
/// # Errors
/// The act's own.
pub(crate) fn leave_without_driver(
    tools: &Tools,
    intent: u64,
    address: PciAddress,
) -> Result<(), Box<Refusal>> {
    let snapshot = tools.records.snapshot();
    let driver_override = snapshot
        .baseline(&device_id(address))
        .and_then(|baseline| baseline.driver_override.clone());
    tools.note(intent, "restore", format!("{address} none"))?;
    let act = Act::Restore { device: address, driver: None, driver_override };
    tools.perform(&act, address)?;
    Ok(())
}

fn check(tools: &Tools, address: PciAddress, baseline: &Baseline) -> Result<(), Box<Refusal>> {
    let facts = facts(tools, address)?;
    if facts.driver == baseline.driver && facts.driver_override == baseline.driver_override {
        return Ok(());
    }
    let word = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    Err(Refusal::new(
        Reason::KernelRefused,
        address,
        format!(
            "{address} should have driver {} and override {} again, but has {} and {}",
            word(&baseline.driver),
            word(&baseline.driver_override),
            word(&facts.driver),
            word(&facts.driver_override)
        ),
    ))
}

/// The facts of a device now.
///
/// # Errors
/// `DEVICE_GONE`.
pub(crate) fn facts(tools: &Tools, address: PciAddress) -> Result<DeviceFacts, Box<Refusal>> {
    tools.host.device(address).map_err(|error| explain_errno::host(&error, address))
}

/// Whether a VFIO driver is bound.
pub(crate) fn on_vfio(facts: &DeviceFacts) -> bool {
    facts
        .driver
        .as_deref()
        .is_some_and(|driver| driver == facts.vfio_driver || driver == "vfio-pci")
}

/// Whether the device's driver claims the default domain.
pub(crate) fn uses_kernel_dma(facts: &DeviceFacts) -> bool {
    matches!(facts.dma, DmaKind::Kernel | DmaKind::Assumed)
}

/// The record's word for a device's driver.
pub(crate) fn driver_dma(facts: &DeviceFacts) -> DriverDma {
    match (&facts.driver, facts.dma) {
        (None, _) | (_, DmaKind::None) => DriverDma::None,
        (Some(driver), DmaKind::Managed) => DriverDma::Managed(driver.clone()),
        (Some(driver), DmaKind::Kernel) => DriverDma::Kernel(driver.clone()),
        (Some(driver), DmaKind::Assumed) => DriverDma::Assumed(driver.clone()),
    }
}

fn kept(facts: &DeviceFacts, processes: Vec<String>) -> Box<Refusal> {
    let driver = facts.driver.clone().unwrap_or_default();
    let text = format!(
        "{}: to unbind {driver} would wait for {}, which keeps a domain of its own",
        facts.address,
        processes.join(", ")
    );
    let ways = processes.iter().map(|process| format!("first end {process}")).collect();
    Refusal::new(Reason::KernelDma, facts.address, text.clone())
        .with_errno(Errno::BUSY.raw_os_error())
        .with_blockers(vec![Blocker {
            device: device_id(facts.address),
            driver: Some(driver),
            processes,
            mounts: Vec::new(),
            text,
        }])
        .with_resolve(ways)
}

fn not_given_up(facts: &DeviceFacts) -> Box<Refusal> {
    let driver = facts.driver.clone().unwrap_or_default();
    let text = format!("{} is on host driver {driver}, which uses kernel DMA", facts.address);
    let way = format!("berth kernel-dma release {}", facts.address);
    Refusal::new(Reason::KernelDma, facts.address, text.clone())
        .with_blockers(vec![Blocker {
            device: device_id(facts.address),
            driver: Some(driver),
            processes: Vec::new(),
            mounts: Vec::new(),
            text,
        }])
        .with_resolve(vec![way])
}
