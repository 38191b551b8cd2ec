//! Which processes have VFIO nodes open.

mod unit;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::io::Errno;

use super::tree::{self, Root};
use crate::{HostError, PciAddress, ProcessUse};

const ANONYMOUS: &str = ProcessUse::SOME_DEVICE;

/// So much of an environment is looked at.
const ENVIRONMENT_BYTES: usize = 64 << 10;

/// How often the list of processes is read, at most, until nobody is new on it.
const LISTS: usize = 8;

/// What to look for.
#[derive(Debug, Clone, Default)]
pub(super) struct Sought {
    /// Paths of nodes.
    pub nodes: BTreeSet<String>,
    /// Devices whose own descriptors count too.
    pub devices: BTreeSet<PciAddress>,
}

/// Whether a path is one of the nodes that may be asked for.
pub(super) fn is_node(path: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if matches!(path, "/dev/iommu" | "/dev/vfio/vfio") {
        return true;
    }
    if let Some(number) = path.strip_prefix("/dev/vhost-vdpa-") {
        return digits(number);
    }
    let Some(rest) = path.strip_prefix("/dev/vfio/") else { return false };
    let rest = rest.strip_prefix("devices/").map_or(rest, |cdev| {
        let cdev = cdev.strip_prefix("noiommu-").unwrap_or(cdev);
        cdev.strip_prefix("vfio").unwrap_or("")
    });
    digits(rest.strip_prefix("noiommu-").unwrap_or(rest))
}

/// Nodes with the devices behind them: members of a group's node, the device of a cdev.
pub(super) fn sought(root: &Root, nodes: &[String]) -> Result<Sought, HostError> {
    let mut devices = BTreeSet::new();
    for node in nodes {
        if !is_node(node) {
            return Err(tree::file_error("look for", node, Errno::INVAL));
        }
        let name = node.rsplit('/').next().unwrap_or("");
        if node.starts_with("/dev/vfio/devices/") {
            let link = root.join("sys/class/vfio-dev").join(name).join("device");
            let target = std::fs::read_link(link).ok();
            let name = target.as_deref().and_then(|target| target.file_name()?.to_str());
            devices.extend(name.and_then(|name| name.parse::<PciAddress>().ok()));
        } else if node.starts_with("/dev/vfio/") {
            let number = name.strip_prefix("noiommu-").unwrap_or(name);
            let members = root.join("sys/kernel/iommu_groups").join(number).join("devices");
            let names = tree::names_in(&members).unwrap_or_default();
            devices.extend(names.iter().filter_map(|name| name.parse::<PciAddress>().ok()));
        }
    }
    Ok(Sought { nodes: nodes.iter().cloned().collect(), devices })
}

/// Finds the processes, by pid, that have one of the nodes or devices open; `except` is left out.
///
/// Those with a VFIO device that can't be told are answered last, with
/// [`ProcessUse::SOME_DEVICE`] as what they have open: whoever asks knows whether the ones before
/// are his own.
///
/// # Errors
/// When a process that is there can't be looked at: then nobody is known not to have it open. One
/// that ends meanwhile has nothing open.
pub(super) fn find(
    root: &Root,
    sought: &Sought,
    except: i32,
) -> Result<Vec<ProcessUse>, HostError> {
    let proc = root.join("proc");
    view::whole(root)?;
    let mut certain = Vec::new();
    let mut possible = Vec::new();
    let mut looked_at = HashSet::from([except]);
    // One that ends before it is looked at may have left what it had to a child that is not on the
    // list; that is on the next one.
    for _ in 0..LISTS {
        let names =
            tree::names_in(&proc).map_err(|errno| tree::file_error("read", &proc, errno))?;
        let mut pids: Vec<i32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        pids.retain(|pid| looked_at.insert(*pid));
        if pids.is_empty() {
            break;
        }
        pids.sort_unstable();
        each(&proc, &pids, sought, &mut certain, &mut possible)?;
    }
    certain.extend(possible);
    Ok(certain)
}

/// Looks at some processes.
fn each(
    proc: &Path,
    pids: &[i32],
    sought: &Sought,
    certain: &mut Vec<ProcessUse>,
    possible: &mut Vec<ProcessUse>,
) -> Result<(), HostError> {
    for &pid in pids {
        let dir = proc.join(pid.to_string());
        let found = match look(&dir, sought) {
            Ok(found) => found,
            Err(errno) if is_gone(errno) => continue,
            Err(errno) => return Err(tree::file_error("read", dir.join("fd"), errno)),
        };
        for (what, sure) in found.open {
            let list = if sure { &mut *certain } else { &mut *possible };
            list.push(ProcessUse {
                pid,
                start_time: found.start_time,
                parent: found.parent,
                name: found.name.clone(),
                what,
                reservation: found.reservation.clone(),
                uid: found.uid,
                unit: found.unit.clone(),
            });
        }
    }
    Ok(())
}

/// A process ended, or a descriptor was closed, between two looks.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::SRCH)
}

/// Leaves those that may have any device out, where somebody is known for sure.
pub(super) fn without_guesses(found: &mut Vec<ProcessUse>) {
    if found.iter().any(ProcessUse::is_certain) {
        found.retain(ProcessUse::is_certain);
    }
}

/// One process.
#[derive(Default)]
struct Found {
    start_time: u64,
    parent: i32,
    name: String,
    reservation: String,
    uid: Option<u32>,
    unit: String,
    /// What it has open, and whether that is certain.
    open: BTreeMap<String, bool>,
}

/// Looks at one process. All of it goes through one open directory, which stays this process's
/// when the pid is used again.
///
/// # Errors
/// ENOENT or ESRCH when it has ended, others when it can't be looked at.
fn look(dir: &Path, sought: &Sought) -> Result<Found, Errno> {
    let dir = tree::open_dir(dir)?;
    let mut found = Found::default();
    if open_files(dir.as_fd(), "fd", sought, &mut found.open)? == 0 {
        of_threads(dir.as_fd(), sought, &mut found.open)?;
    }
    if !found.open.is_empty() {
        (found.parent, found.start_time) = parent_and_start_at(&dir)?;
        found.name = tree::text_at(&dir, "comm").unwrap_or_default();
        found.reservation = reservation_of(&dir).unwrap_or_default();
        found.uid = tree::text_at(&dir, "status").and_then(|status| unit::real_uid(&status));
        found.unit = tree::text_at(&dir, "cgroup").map(|text| unit::of(&text)).unwrap_or_default();
    }
    Ok(found)
}

/// What `berth run` put into the environment of a process.
///
/// # Kernel
/// The environment that its program began with: what it sets later isn't shown.
fn reservation_of(process: impl AsFd) -> Option<String> {
    let mut environment = vec![0; ENVIRONMENT_BYTES];
    let found = tree::read_at(process, "environ", &mut environment).ok()?;
    let mut words = found.split(|byte| *byte == 0);
    let id = words.find_map(|word| word.strip_prefix(b"BERTH_RESERVATION="))?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    let fits = (1..=64).contains(&id.len()) && id.iter().all(plain);
    fits.then(|| String::from_utf8_lossy(id).into_owned())
}

/// The same of a process of this machine, by pid; empty where it has none.
pub(crate) fn reservation_of_pid(pid: i32) -> String {
    let dir = tree::open_dir(&Path::new("/proc").join(pid.to_string()));
    dir.ok().and_then(reservation_of).unwrap_or_default()
}

/// Real user id and unit of a process of this machine, by pid.
pub(crate) fn standing_of_pid(pid: i32) -> (Option<u32>, String) {
    let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let uid = read("status").and_then(|status| unit::real_uid(&status));
    (uid, read("cgroup").map(|text| unit::of(&text)).unwrap_or_default())
}

/// When the process started, in clock ticks since boot.
pub(super) fn start_time_at(process: impl AsFd) -> Result<u64, Errno> {
    parent_and_start_at(process).map(|(_, start)| start)
}

fn parent_and_start_at(process: impl AsFd) -> Result<(i32, u64), Errno> {
    let mut buffer = [0; tree::PAGE_BYTES];
    let stat = tree::read_at(process, "stat", &mut buffer)?;
    parent_and_start_of(&String::from_utf8_lossy(stat)).ok_or(Errno::IO)
}

/// Fields 4 and 22 of `/proc/PID/stat`. The command's name, field 2, may contain anything.
pub(super) fn parent_and_start_of(stat: &str) -> Option<(i32, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(1);
    Some((fields.next()?.parse().ok()?, fields.nth(17)?.parse().ok()?))
}

/// A process whose first thread has ended shows no descriptors; the others still have them.
fn of_threads(
    process: BorrowedFd<'_>,
    sought: &Sought,
    found: &mut BTreeMap<String, bool>,
) -> Result<(), Errno> {
    let threads = tree::try_each_name_at(process, "task", |thread| {
        match open_files(process, &format!("task/{thread}/fd"), sought, found) {
            Err(errno) if !is_gone(errno) => Err(errno),
            _ => Ok(()),
        }
    });
    threads.or_else(|errno| if is_gone(errno) { Ok(()) } else { Err(errno) })
}

/// Adds what a table of descriptors has, and tells how many there are.
fn open_files(
    process: BorrowedFd<'_>,
    table: &str,
    sought: &Sought,
    found: &mut BTreeMap<String, bool>,
) -> Result<usize, Errno> {
    let mut link = vec![0; tree::PAGE_BYTES];
    let mut count = 0;
    let files = tree::open_dir_at(process, table)?;
    tree::try_each_name_at(process, table, |number| {
        count += 1;
        let target = match tree::raw_link_at(&files, number, &mut link) {
            Ok(target) => target,
            // No node has a path that is too long to be shown.
            Err(errno) if is_gone(errno) || errno == Errno::NAMETOOLONG => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let node = std::str::from_utf8(target).ok().and_then(|target| sought.nodes.get(target));
        if let Some(node) = node {
            found.insert(node.clone(), true);
        } else if is_a_device(target) && !sought.devices.is_empty() {
            match device_of(process, number) {
                Some(device) if sought.devices.contains(&device) => {
                    found.insert(device.to_string(), true);
                }
                Some(_) => {}
                None => {
                    found.insert(ANONYMOUS.to_owned(), false);
                }
            }
        }
        Ok(())
    })?;
    Ok(count)
}

/// A device's own descriptor, by a path that doesn't tell whose: one of a cdev that is gone, as its
/// driver is being unbound, has what was its path.
fn is_a_device(target: &[u8]) -> bool {
    let cdev = || target.strip_prefix(b"/dev/vfio/devices/")?.strip_suffix(b" (deleted)");
    target == ANONYMOUS.as_bytes() || cdev().is_some()
}

fn device_of(process: BorrowedFd<'_>, number: &str) -> Option<PciAddress> {
    let text = tree::text_at(process, format!("fdinfo/{number}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("vfio-device-syspath:"))?;
    line.trim().rsplit('/').next()?.parse().ok()
}

#[cfg(test)]
#[path = "procs/tests.rs"]
mod tests;
