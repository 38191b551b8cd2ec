//! Looking at the machine: what the ledger is told about it.

use std::collections::HashMap;

use berth_host::{
    DeviceFacts, DmaKind, Host, HostError, HostUse, Inventory, PciAddress, ProcessUse,
};
use berth_ownership::{ForeignProcess, Group, GroupId, Hold, ReservationState, UNSEEN};
use tokio::task::JoinHandle;

use super::kept_ids::Known;
use crate::{
    acts::{
        explain_errno::foreign_of,
        kin::{self, Kinship},
    },
    model::{HostUses, Looked, Snapshot},
};

/// What a look at the machine found.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Groups and devices.
    pub inventory: Inventory,
    /// What the host does with devices that are on host drivers.
    pub uses: HostUses,
    /// Processes that own groups without our knowing, by group number.
    pub foreign: HashMap<u32, Vec<ForeignProcess>>,
    /// How many looks at single devices had been taken when it began: what was looked at later is
    /// known better.
    pub after_looks: u64,
}

/// A look at the machine that goes on.
pub type Survey = JoinHandle<Result<Scan, HostError>>;

/// Looks at the machine, but for what takes knowing the record: whose groups are, and by which id. Blocks.
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

/// Adds what takes knowing the record: the ids that groups are reserved by, and foreign owners. Blocks.
pub(super) fn complete(host: &dyn Host, found: &mut Scan, known: &Snapshot) {
    Known::of(known).keep_ids(&mut found.inventory);
    find_strangers(host, found, known);
}

/// Adds the processes that own groups without our knowing: they are looked for in groups that have
/// a device on a VFIO driver. Where a reservation in `known` holds the group they are those that
/// are neither its holder's nor of a user that it is for. Blocks.
fn find_strangers(host: &dyn Host, found: &mut Scan, known: &Snapshot) {
    let Scan { inventory, foreign, .. } = found;
    let candidates: Vec<_> = inventory.devices.iter().filter(|device| on_vfio(device)).collect();
    if candidates.is_empty() {
        return;
    }
    // By what was just found: at the first look of a daemon nothing is known but the record.
    let ids: HashMap<u32, &str> =
        inventory.groups.iter().map(|it| (it.number, it.stable_id.as_str())).collect();
    let record = |number: u32| ids.get(&number).and_then(|id| known.state.group(&GroupId::new(id)));
    let may_have = |device: &&DeviceFacts| {
        let held = record(device.group?).filter(|group| !group.reservations.is_empty());
        let asked = held.is_none_or(|group| may_have_strangers(known, group));
        asked.then_some((device.address, device.group?, held))
    };
    let asked: Vec<_> = candidates.iter().filter_map(may_have).collect();
    // Where it can't be told each is asked, so that what is the matter with it is told of each.
    let addresses: Vec<PciAddress> = asked.iter().map(|(device, ..)| *device).collect();
    let used = host.used_among(&addresses).unwrap_or_else(|_| addresses.into_iter().collect());
    for (device, number, held) in asked {
        if !used.contains(&device) {
            continue;
        }
        for owner in owners(host, device, number, known, held) {
            let owners = foreign.entry(number).or_default();
            if !owners.iter().any(|known| known.pid == owner.pid) {
                owners.push(owner);
            }
        }
    }
}

/// Whether somebody beside a group's reservations can have it, and be told from their holders: not
/// where the kernel keeps all others out, and not while work is under way, or who has it is about
/// to show.
fn may_have_strangers(known: &Snapshot, group: &Group) -> bool {
    known.state.reservations_of(group).all(|record| {
        let open = match record.state {
            ReservationState::Reserved => record.hold == Hold::Ledger,
            ReservationState::Held | ReservationState::Expired => true,
            ReservationState::Preparing
            | ReservationState::Handed
            | ReservationState::Draining
            | ReservationState::Lost
            | ReservationState::Released => false,
        };
        open && record.pending.is_none()
    })
}

/// Whether a process has a group as the holder of one of its reservations, as what came of that, or
/// as a user that fetched.
fn is_ours(known: &Snapshot, group: &Group, user: &ProcessUse) -> bool {
    known.state.reservations_of(group).any(|record| {
        let uid = user.uid.map(|uid| format!("uid:{uid}"));
        let theirs = uid.is_none_or(|uid| uid == record.for_identity || uid == record.requester);
        theirs
            || record.process.as_ref().is_some_and(|holder| {
                u32::try_from(user.pid) == Ok(holder.pid)
                    || kin::of(record, holder, user) == Kinship::Own
            })
    })
}

fn on_vfio(device: &DeviceFacts) -> bool {
    device.dma == DmaKind::Managed
        && !device.bridge
        && device.driver.as_deref() == Some(device.vfio_driver.as_str())
}

/// Processes that have a group without our knowing. Where they can't be looked at the kernel's own
/// word counts, and [`UNSEEN`] stands for whoever has it; of a group that is `held` it says nothing.
fn owners(
    host: &dyn Host,
    device: PciAddress,
    group: u32,
    known: &Snapshot,
    held: Option<&Group>,
) -> Vec<ForeignProcess> {
    let error = match host.users_of(device) {
        Ok(users) => {
            // Older kernels don't tell whose device a descriptor is: where the kernel has this one
            // closed, it is another one's.
            let certain = users.iter().all(ProcessUse::is_certain);
            if !certain && (held.is_some() || matches!(host.in_use(device), Ok(false))) {
                return Vec::new();
            }
            let strange = |user: &&ProcessUse| !held.is_some_and(|it| is_ours(known, it, user));
            return users.iter().filter(strange).map(foreign_of).collect();
        }
        Err(HostError::NoDevice(_)) => return Vec::new(),
        Err(error) => error,
    };
    if held.is_some() {
        return Vec::new();
    }
    let free = matches!(host.probe_free(group), Ok(true));
    tracing::warn!(%device, group, free, %error, "who has a group open can't be told");
    let unseen = ForeignProcess { pid: UNSEEN, name: String::new(), unit: String::new() };
    if free { Vec::new() } else { vec![unseen] }
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

/// The first byte of a display's class.
const DISPLAY: u32 = 0x03;

fn uses_of(host: &dyn Host, device: &DeviceFacts) -> Result<Vec<HostUse>, HostError> {
    let on_host = matches!(device.dma, DmaKind::Kernel | DmaKind::Assumed);
    // The firmware's framebuffer shows the console on a display that has no driver.
    let shows = device.class >> 16 == DISPLAY;
    let asked = (on_host || shows) && !device.bridge;
    if asked { host.uses(device.address) } else { Ok(Vec::new()) }
}
