//! Set and release kernel DMA: host drivers bound and unbound on purpose.

use super::Decision;
use crate::command::Command;
use crate::event::Event;
use crate::ids::DeviceId;
use crate::model::Ownership;
use crate::policy::{self, Claimant};
use crate::reason::Reason;
use crate::record::{Device, Flags, Group, KernelDmaOp};
use crate::refusal::Refusal;
use crate::state::State;
use crate::table::{ConditionOp, Operation};

/// The answer to a query of kernel DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelDmaUse {
    /// No driver, or one that manages its DMA.
    No,
    /// A host driver claims the default domain, or a domain of its own.
    Yes,
    /// The driver is unknown and counts as one that does.
    Assumed,
}

impl Device {
    /// Whether the device's driver uses the kernel's DMA.
    pub fn kernel_dma_use(&self) -> KernelDmaUse {
        match (&self.facts.dma, self.facts.private_domain) {
            (_, true) | (crate::DriverDma::Kernel(_), false) => KernelDmaUse::Yes,
            (crate::DriverDma::Assumed(_), false) => KernelDmaUse::Assumed,
            (crate::DriverDma::None | crate::DriverDma::Managed(_), false) => KernelDmaUse::No,
        }
    }
}

impl State {
    pub(super) fn decide_kernel_dma(&self, cmd: &Command) -> Decision {
        match cmd {
            Command::KernelDmaSet { device, driver } => {
                let op = KernelDmaOp::Set { driver: driver.clone() };
                self.start_kernel_dma(device, op, Flags::default())
            }
            Command::KernelDmaRelease { device, host_uses_it_anyway } => {
                let flags =
                    Flags { take_from_host: true, host_uses_it_anyway: *host_uses_it_anyway };
                self.start_kernel_dma(device, KernelDmaOp::Release, flags)
            }
            Command::KernelDmaDone { device, dma } => {
                self.kernel_dma_pending(device)?;
                Ok(vec![Event::KernelDmaChanged { device: device.clone(), dma: dma.clone() }])
            }
            Command::KernelDmaFailed { device, why } => {
                self.kernel_dma_pending(device)?;
                Ok(vec![Event::KernelDmaFailed { device: device.clone(), why: why.clone() }])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn start_kernel_dma(&self, id: &DeviceId, op: KernelDmaOp, flags: Flags) -> Decision {
        let device = self.find_device(id)?;
        let group = self
            .group(&device.group)
            .ok_or_else(|| Refusal::new(Reason::NotFound, id, format!("{id} is in no group")))?;
        if self.is_busy(device) {
            let text = format!("{id}: {}", self.busy_text(device));
            return Err(Refusal::new(Reason::ReservationBusy, id, text));
        }
        let (column, condition) = match op {
            KernelDmaOp::Set { .. } => (Operation::KernelDmaSet, ConditionOp::KernelDmaSet),
            KernelDmaOp::Release => (Operation::KernelDmaRelease, ConditionOp::KernelDmaRelease),
        };
        self.condition_allows(group, condition)?;
        let devices = [id.clone()];
        let claimant = Claimant {
            reservation: None,
            policy: None,
            domain: None,
            token: None,
            other_label: false,
            devices: &devices,
            flags,
            adopts: None,
        };
        policy::ask(self, group, &claimant, column)
            .map_err(|denial| self.refuse_ownership(group, &claimant, column, denial))?;
        self.check_driver(group, device, &op)?;
        Ok(vec![Event::KernelDmaStarted { device: id.clone(), op }])
    }

    /// The group would take it; now the device itself.
    fn check_driver(
        &self,
        group: &Group,
        device: &Device,
        op: &KernelDmaOp,
    ) -> Result<(), Box<Refusal>> {
        let id = &device.facts.id;
        match (op, device.facts.uses_kernel_dma()) {
            (KernelDmaOp::Set { .. }, true) => {
                let driver = device.facts.dma.driver().unwrap_or("a host driver");
                let text = format!("set kernel DMA of {id}: {driver} is on it already");
                Err(Refusal::new(Reason::AlreadyAttached, id, text))
            }
            // In a free group the table has said so.
            (KernelDmaOp::Release, false) if group.ownership != Ownership::Free => {
                let text =
                    format!("release kernel DMA of {id} in {}: no host driver is on it", group.id);
                Err(Refusal::new(Reason::NotAttached, id, text).with_resolve(Vec::new()))
            }
            (KernelDmaOp::Release, true) if device.facts.is_kept() => Err(self.refuse_kept(device)),
            (KernelDmaOp::Release, true) => self.functions_are_free(id, "release kernel DMA of"),
            (KernelDmaOp::Set { .. }, false) | (KernelDmaOp::Release, false) => Ok(()),
        }
    }

    fn kernel_dma_pending(&self, id: &DeviceId) -> Result<(), Box<Refusal>> {
        if self.find_device(id)?.kernel_dma_op.is_some() {
            return Ok(());
        }
        let text = format!("outcome of kernel DMA for {id}: nothing is under way");
        Err(Refusal::new(Reason::NoOperation, id, text))
    }
}
