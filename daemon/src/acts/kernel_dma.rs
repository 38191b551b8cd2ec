//! Kernel DMA: host drivers are bound and unbound on purpose.

use berth_host::{Act, PciAddress};
use berth_ownership::{Command, Reason, Refusal};

use super::{
    drivers::{self, driver_dma, facts},
    job::device_id,
    tools::Tools,
};
use crate::model::Outcome;

/// Unbinds the host driver, and remembers it.
pub(crate) fn release(tools: &Tools, intent: u64, device: PciAddress) -> Outcome {
    let done = (|| {
        let before = facts(tools, device)?;
        if before.driver.is_some() {
            drivers::unbind_host(tools, intent, &before)?;
        }
        facts(tools, device)
    })();
    finish(device, done.map(|facts| (facts, false)))
}

/// Binds a host driver: the one named, else the one that was there.
pub(crate) fn set(
    tools: &Tools,
    intent: u64,
    device: PciAddress,
    driver: Option<String>,
) -> Outcome {
    let snapshot = tools.records.snapshot();
    let baseline = snapshot.baseline(&device_id(device));
    let had = baseline.and_then(|had| had.driver.clone());
    let done = (|| {
        let Some(driver) = driver.or_else(|| had.clone()) else {
            return Err(Refusal::new(
                Reason::InvalidArgument,
                device,
                format!("{device} had no host driver before, so one has to be named"),
            )
            .with_resolve(vec![format!("berth kernel-dma set {device} --driver NAME")]));
        };
        tools.note(intent, "restore", format!("{device} {driver}"))?;
        let act = Act::Restore {
            device,
            driver: Some(driver),
            driver_override: baseline.and_then(|had| had.driver_override.clone()),
        };
        tools.perform(&act, device)?;
        let now = facts(tools, device)?;
        let back = baseline.is_some_and(|had| had.driver == now.driver);
        Ok((now, back))
    })();
    finish(device, done)
}

fn finish(
    address: PciAddress,
    done: Result<(berth_host::DeviceFacts, bool), Box<Refusal>>,
) -> Outcome {
    let device = device_id(address);
    match done {
        Ok((facts, back)) => {
            let dma = driver_dma(&facts);
            let restored = if back { vec![device.clone()] } else { Vec::new() };
            Outcome { restored, ..Outcome::done(Command::KernelDmaDone { device, dma }) }
        }
        Err(refusal) => {
            let why = refusal.message.clone();
            Outcome::failed(Command::KernelDmaFailed { device, why }, refusal)
        }
    }
}
