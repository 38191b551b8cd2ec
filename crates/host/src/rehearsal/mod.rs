//! A machine on which acts are rehearsed: the same steps as on the real one, whose writes are noted
//! and not made.
//!
//! What is read comes from the machine itself, until it was written: from then on a device shows what
//! the kernel would make of it. What the kernel may refuse (a driver that doesn't probe, a reset that
//! fails) is not foreseen; what sysfs shows beforehand is.

mod device;
mod opened;

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use self::{
    device::Imagined,
    opened::{HeldGroup, OpenedContext},
};
use crate::{
    Act, ActOutcome, BackendKind, Context, DeviceFacts, Feature, GroupHold, Health, Host,
    HostError, HostUse, Inventory, Node, PciAddress, ProcessUse, Settings, SysfsWrite, Uevents,
    VfioError, steps,
};

/// A rehearsal of acts on a machine. Nothing that is done with it changes that one.
#[derive(Debug)]
pub struct Rehearsal {
    machine: Arc<dyn Host>,
    noted: Mutex<Noted>,
}

/// What was rehearsed so far.
#[derive(Debug, Default)]
struct Noted {
    writes: Vec<SysfsWrite>,
    /// Devices that are otherwise by now.
    devices: BTreeMap<PciAddress, DeviceFacts>,
    /// Processes that were found, by pid.
    found: BTreeMap<i32, ProcessUse>,
    /// Those that would have been killed, in order.
    killed: Vec<ProcessUse>,
}

impl Rehearsal {
    /// A rehearsal on a machine as it is.
    #[must_use]
    pub fn on(machine: Arc<dyn Host>) -> Self {
        Self { machine, noted: Mutex::default() }
    }

    /// What would have been written to sysfs so far, in order, each with what undoes it.
    #[must_use]
    pub fn writes(&self) -> Vec<SysfsWrite> {
        self.noted().writes.clone()
    }

    /// Which processes would have been killed so far, in order, as they have a device open.
    #[must_use]
    pub fn killed(&self) -> Vec<ProcessUse> {
        self.noted().killed.clone()
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn imagined(&self, device: PciAddress) -> Result<Imagined<'_>, HostError> {
        self.device(device).map(|facts| Imagined::new(self, facts))
    }
}

fn not_rehearsed(what: &str) -> VfioError {
    VfioError::new(what, "a rehearsal", Errno::OPNOTSUPP)
}

impl Host for Rehearsal {
    fn simulated(&self) -> bool {
        self.machine.simulated()
    }

    fn topology(&self) -> Option<String> {
        self.machine.topology()
    }

    fn kernel_release(&self) -> String {
        self.machine.kernel_release()
    }

    fn boot_id(&self) -> String {
        self.machine.boot_id()
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.machine.memory_bytes()
    }

    fn features(&self) -> Vec<Feature> {
        self.machine.features()
    }

    fn settings(&self) -> Settings {
        self.machine.settings()
    }

    fn kernel_hold(&self) -> bool {
        self.machine.kernel_hold()
    }

    fn backends(&self) -> Vec<BackendKind> {
        self.machine.backends()
    }

    /// The machine as it is, without what was rehearsed.
    fn scan(&self) -> Result<Inventory, HostError> {
        self.machine.scan()
    }

    fn device(&self, address: PciAddress) -> Result<DeviceFacts, HostError> {
        let imagined = self.noted().devices.get(&address).cloned();
        imagined.map_or_else(|| self.machine.device(address), Ok)
    }

    fn uevents(&self) -> Result<Box<dyn Uevents>, HostError> {
        let (op, path) = ("subscribe to uevents of", "a rehearsal".to_owned());
        Err(HostError::File { op, path, errno: Errno::OPNOTSUPP.raw_os_error() })
    }

    fn uses(&self, address: PciAddress) -> Result<Vec<HostUse>, HostError> {
        self.machine.uses(address)
    }

    fn health(&self, address: PciAddress) -> Result<Health, HostError> {
        self.machine.health(address)
    }

    fn users_of(&self, address: PciAddress) -> Result<Vec<ProcessUse>, HostError> {
        let mut users = self.machine.users_of(address)?;
        let mut noted = self.noted();
        users.retain(|user| noted.killed.iter().all(|killed| killed.pid != user.pid));
        noted.found.extend(users.iter().map(|user| (user.pid, user.clone())));
        Ok(users)
    }

    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError> {
        match act {
            Act::Bind { device, .. }
            | Act::Unbind { device }
            | Act::Override { device, .. }
            | Act::Restore { device, .. }
            | Act::Sriov { device, .. }
            | Act::Reset { device } => steps::perform(&self.imagined(*device)?, act),
            Act::ReadConfig { .. } | Act::WhoHolds { .. } => self.machine.perform(act),
            Act::Kill { pid, signal, .. } => {
                if *signal == rustix::process::Signal::KILL.as_raw() {
                    let mut noted = self.noted();
                    let killed = noted.found.remove(pid);
                    noted.killed.extend(killed);
                }
                Ok(ActOutcome::Done)
            }
            Act::Prlimit { .. } | Act::Access { .. } => Ok(ActOutcome::Done),
            Act::OpenIommu => Err(HostError::File {
                op: "open",
                path: "/dev/iommu".to_owned(),
                errno: Errno::OPNOTSUPP.raw_os_error(),
            }),
        }
    }

    fn open_context(&self, backend: BackendKind) -> Result<Box<dyn Context>, VfioError> {
        Ok(Box::new(OpenedContext(backend)))
    }

    fn hold(
        &self,
        group: u32,
        _context: Option<&dyn Context>,
    ) -> Result<Box<dyn GroupHold>, VfioError> {
        Ok(Box::new(HeldGroup(group)))
    }

    fn open_cdev(&self, _device: PciAddress) -> Result<OwnedFd, VfioError> {
        Err(not_rehearsed("open cdev"))
    }

    /// It is found out by opening a node, which has its effect while somebody else wants it.
    fn bind_takes_vf_token(&self, _device: PciAddress) -> Result<bool, VfioError> {
        Err(not_rehearsed("ask about VF tokens"))
    }

    fn registered(&self, driver: &str) -> Result<String, HostError> {
        self.machine.registered(driver)
    }

    fn node(&self, node: Node) -> Result<String, HostError> {
        self.machine.node(node)
    }

    fn in_use(&self, device: PciAddress) -> Result<bool, HostError> {
        self.machine.in_use(device)
    }

    fn unbind_waits(&self, device: PciAddress) -> Result<bool, HostError> {
        self.machine.unbind_waits(device)
    }

    /// What the machine itself is asked by opening the group's node; what the daemon has open of it
    /// would be closed by then.
    fn probe_free(&self, _group: u32) -> Result<bool, VfioError> {
        Ok(true)
    }

    fn adopt_hold(
        &self,
        _group: u32,
        _context: Option<&dyn Context>,
        _fds: Vec<OwnedFd>,
    ) -> Result<Box<dyn GroupHold>, VfioError> {
        Err(not_rehearsed("adopt hold"))
    }

    fn adopt_context(
        &self,
        _backend: BackendKind,
        _fd: OwnedFd,
    ) -> Result<Box<dyn Context>, VfioError> {
        Err(not_rehearsed("adopt context"))
    }
}

#[cfg(test)]
mod tests;
