//! Looking at the machine: what the ledger is told about it.

use std::collections::HashMap;

use berth_host::{DeviceFacts, DmaKind, Host, HostError, HostUse, Inventory, PciAddress};
use berth_ownership::{GroupId, UNSEEN};
use tokio::task::JoinHandle;

use crate::model::{HostUses, Looked, Snapshot};

/// What a look at the machine found.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Groups and devices.
    pub inventory: Inventory,
    /// What the host does with devices that are on host drivers.
    pub uses: HostUses,
    /// Processes that own groups without our knowing, by group number.
    pub foreign: HashMap<u32, Vec<u32>>,
    /// How many looks at single devices had been taken when it began: what was looked at later is
    /// known better.
    pub after_looks: u64,
}

/// A look at the machine that goes on.
pub type Survey = JoinHandle<Result<Scan, HostError>>;

/// Looks at the machine, but for foreign owners: that takes knowing which groups are ours. Blocks.
///
/// Uses are asked for devices on host drivers alone.
///
/// # Errors
/// What could not be read.
pub fn survey(host: &dyn Host) -> Result<Scan, HostError> {
    let inventory = host.scan()?;
    let mut uses = HostUses::new();
    for device in &inventory.devices {
        let found = uses_of(host, device)?;
        if !found.is_empty() {
            uses.insert(device.address, found);
        }
    }
    Ok(Scan { inventory, uses, ..Scan::default() })
}

/// Adds the processes that own groups without our knowing: they are looked for in groups that have
/// a device on a VFIO driver and no reservation in `known`. Blocks.
pub(super) fn find_strangers(host: &dyn Host, found: &mut Scan, known: &Snapshot) {
    let Scan { inventory, foreign, .. } = found;
    let candidates: Vec<_> = inventory.devices.iter().filter(|device| on_vfio(device)).collect();
    if candidates.is_empty() {
        return;
    }
    // By what was just found: at the first look of a daemon nothing is known but the record.
    let ids: HashMap<u32, &str> =
        inventory.groups.iter().map(|it| (it.number, it.stable_id.as_str())).collect();
    let ours = |number: u32| {
        let id = ids.get(&number).map(GroupId::new);
        let group = id.and_then(|id| known.state.group(&id));
        group.is_some_and(|group| !group.reservations.is_empty())
    };
    for device in candidates {
        let Some(number) = device.group.filter(|number| !ours(*number)) else { continue };
        for pid in owners(host, device.address, number) {
            let pids = foreign.entry(number).or_default();
            if !pids.contains(&pid) {
                pids.push(pid);
            }
        }
    }
}

fn on_vfio(device: &DeviceFacts) -> bool {
    device.dma == DmaKind::Managed
        && !device.bridge
        && device.driver.as_deref() == Some(device.vfio_driver.as_str())
}

/// Processes that have a group without our knowing. Where they can't be looked at the kernel's own
/// word counts, and [`UNSEEN`] stands for whoever has it.
fn owners(host: &dyn Host, device: PciAddress, group: u32) -> Vec<u32> {
    let error = match host.users_of(device) {
        Ok(users) => return users.iter().filter_map(|user| user.pid.try_into().ok()).collect(),
        Err(HostError::NoDevice(_)) => return Vec::new(),
        Err(error) => error,
    };
    let free = matches!(host.probe_free(group), Ok(true));
    tracing::warn!(%device, group, free, %error, "who has a group open can't be told");
    if free { Vec::new() } else { vec![UNSEEN] }
}

/// Looks at some devices again. Blocks. Those that are gone are left out.
///
/// # Errors
/// What could not be read.
pub fn look(host: &dyn Host, addresses: &[PciAddress]) -> Result<Vec<Looked>, HostError> {
    let mut found = Vec::with_capacity(addresses.len());
    for address in addresses {
        match host.device(*address) {
            Ok(facts) => {
                let uses = uses_of(host, &facts)?;
                found.push(Looked { facts, uses });
            }
            Err(HostError::NoDevice(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn uses_of(host: &dyn Host, device: &DeviceFacts) -> Result<Vec<HostUse>, HostError> {
    let on_host = matches!(device.dma, DmaKind::Kernel | DmaKind::Assumed);
    if on_host && !device.bridge { host.uses(device.address) } else { Ok(Vec::new()) }
}
