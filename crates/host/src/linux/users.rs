//! Who has devices open, asked of the helper: one act looks at every process of the machine.

use std::collections::{BTreeMap, BTreeSet};

use super::{LinuxHost, nodes, procs};
use crate::{Act, ActOutcome, Host as _, HostError, PciAddress, ProcessUse};

/// Devices in one act, so that question and answer fit into a packet.
const AT_ONCE: usize = 256;

/// Who has one device open.
pub(super) fn of(host: &LinuxHost, device: PciAddress) -> Result<Vec<ProcessUse>, HostError> {
    let nodes = nodes::leading_to(&host.root, device)?;
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    // A sibling's own descriptor is no use of this device.
    let sibling = |what: &str| what.parse::<PciAddress>().is_ok_and(|other| other != device);
    let mut found = ask(host, nodes)?;
    found.retain(|process| !sibling(&process.what));
    procs::without_guesses(&mut found);
    Ok(found)
}

/// Which of some devices others may have open.
pub(super) fn among(
    host: &LinuxHost,
    devices: &[PciAddress],
) -> Result<BTreeSet<PciAddress>, HostError> {
    let mut used = BTreeSet::new();
    for some in devices.chunks(AT_ONCE) {
        used.extend(among_some(host, some)?);
    }
    Ok(used)
}

fn among_some(host: &LinuxHost, devices: &[PciAddress]) -> Result<BTreeSet<PciAddress>, HostError> {
    let mut behind: BTreeMap<String, Vec<PciAddress>> = BTreeMap::new();
    for device in devices {
        match nodes::leading_to(&host.root, *device) {
            Ok(nodes) => {
                for node in nodes {
                    behind.entry(node).or_default().push(*device);
                }
            }
            Err(HostError::NoDevice(_)) => {}
            Err(error) => return Err(error),
        }
    }
    if behind.is_empty() {
        return Ok(BTreeSet::new());
    }
    let found = ask(host, behind.keys().cloned().collect())?;
    // A descriptor that doesn't tell whose it is may be any one's.
    if !found.iter().all(ProcessUse::is_certain) {
        return Ok(devices.iter().copied().collect());
    }
    let mut used = BTreeSet::new();
    for process in found {
        match behind.get(&process.what) {
            Some(those) => used.extend(those),
            None => used.extend(process.what.parse::<PciAddress>()),
        }
    }
    Ok(used)
}

/// Who has one of some nodes open, or a device behind one, this process left out.
fn ask(host: &LinuxHost, nodes: Vec<String>) -> Result<Vec<ProcessUse>, HostError> {
    let ActOutcome::Holders(mut found) = host.perform(&Act::WhoHolds { nodes })? else {
        return Ok(Vec::new());
    };
    let me = rustix::process::getpid().as_raw_nonzero().get();
    // What we just forked has what we have, until it is a helper: none of ours has more.
    let ours = |process: &ProcessUse| {
        process.pid == me || process.parent == me || Some(process.pid) == host.keeper
    };
    found.retain(|process| !ours(process));
    Ok(found)
}
