//! Block devices of a device, what is built on them, and the mounts and swaps that use them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    mounts::{self, Mount},
    text,
};
use crate::{
    HostError, HostUse, PciAddress,
    linux::tree::{self, Root},
};

/// Finds mounts, swap areas, md, dm and LVM volumes on a device's block devices.
///
/// # Errors
/// Of a file that tells of them.
pub(super) fn find(root: &Root, address: PciAddress) -> Result<Vec<HostUse>, HostError> {
    let mut names = own(root, address)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut uses = volumes(root, &mut names)?;
    let table = mounts::parse(&super::table(root.join("proc/self/mountinfo"))?);
    let file_systems = btrfs_members(root, &names)?;
    for mount in mounted(root, &names, &file_systems, &table)? {
        let detail = format!("{} on {}", short(&mount.source), mount.point);
        uses.push(HostUse::new("mount", detail).with_target(&mount.point));
    }
    for area in mounts::swaps(&super::table(root.join("proc/swaps"))?) {
        if names.contains(short(&area)) || names.contains(&resolved(root, &area)) {
            uses.push(HostUse::new("swap", area));
        }
    }
    uses.sort_by(|a, b| (&a.kind, &a.detail).cmp(&(&b.kind, &b.detail)));
    uses.dedup();
    Ok(uses)
}

/// Block devices that lie in the PCI device, partitions included.
fn own(root: &Root, address: PciAddress) -> Result<BTreeSet<String>, HostError> {
    let class = root.join("sys/class/block");
    let subsystems = nvme_subsystems(root, address)?;
    let names = super::names(class.clone())?;
    let address = address.to_string();
    let own = names
        .into_iter()
        .filter(|name| {
            let Ok(target) = std::fs::read_link(class.join(name)) else { return false };
            let mut parts = target.iter().filter_map(|part| part.to_str());
            parts.any(|part| part == address || subsystems.contains(part))
        })
        .collect();
    Ok(own)
}

/// The NVMe subsystems that the device is a path to: with multipath their disks lie there.
fn nvme_subsystems(root: &Root, address: PciAddress) -> Result<BTreeSet<String>, HostError> {
    let mut controllers = BTreeSet::new();
    if let Ok(dir) = tree::open_dir(&root.device(address)) {
        tree::each_name_at(&dir, "nvme", |name| {
            controllers.insert(name.to_owned());
        });
    }
    let virtual_ones = root.join("sys/devices/virtual/nvme-subsystem");
    let names = super::names(virtual_ones.clone())?;
    let subsystems = names
        .into_iter()
        .filter(|subsystem| {
            let dir = virtual_ones.join(subsystem);
            controllers.iter().any(|name| dir.join(name).symlink_metadata().is_ok())
        })
        .collect();
    Ok(subsystems)
}

/// Adds what is built on the block devices to them, and says what it is.
fn volumes(root: &Root, names: &mut BTreeSet<String>) -> Result<Vec<HostUse>, HostError> {
    let mut uses = Vec::new();
    let mut todo: Vec<String> = names.iter().cloned().collect();
    while let Some(lower) = todo.pop() {
        let dir = root.join("sys/class/block").join(&lower);
        for holder in super::names(dir.join("holders"))? {
            let (kind, name) = volume(&root.join("sys/class/block").join(&holder), &holder);
            let used = HostUse::new(kind, format!("{name} on {lower}"));
            uses.push(if kind == "md" { used.with_target(format!("/dev/{name}")) } else { used });
            if names.insert(holder.clone()) {
                todo.push(holder.clone());
                // Partitions of a volume lie in its directory.
                for part in super::names(root.join("sys/class/block").join(&holder))? {
                    if part.starts_with(&holder) && names.insert(part.clone()) {
                        todo.push(part);
                    }
                }
            }
        }
    }
    Ok(uses)
}

fn volume(dir: &Path, holder: &str) -> (&'static str, String) {
    if dir.join("md").is_dir() {
        return ("md", holder.to_owned());
    }
    let uuid = text(dir.join("dm/uuid"));
    let name = text(dir.join("dm/name")).trim().to_owned();
    let name = if name.is_empty() { holder.to_owned() } else { name };
    if uuid.starts_with("LVM-") { ("lvm", name) } else { ("dm", name) }
}

/// The block devices of each btrfs that has one of these, by the file system's id.
fn btrfs_members(
    root: &Root,
    names: &BTreeSet<String>,
) -> Result<BTreeMap<String, BTreeSet<String>>, HostError> {
    let all = root.join("sys/fs/btrfs");
    let mut members = BTreeMap::new();
    for id in super::names(all.clone())? {
        let devices = super::names(all.join(&id).join("devices"))?;
        let devices: BTreeSet<String> = devices.into_iter().collect();
        if !devices.is_disjoint(names) {
            members.insert(id, devices);
        }
    }
    Ok(members)
}

fn mounted<'m>(
    root: &Root,
    names: &BTreeSet<String>,
    file_systems: &BTreeMap<String, BTreeSet<String>>,
    table: &'m [Mount],
) -> Result<Vec<&'m Mount>, HostError> {
    let mut numbers = BTreeSet::new();
    for name in names {
        let number = super::table(root.join("sys/class/block").join(name).join("dev"))?;
        numbers.extend(Some(number.trim().to_owned()).filter(|number| !number.is_empty()));
    }
    let mounted = table
        .iter()
        .filter(|mount| {
            let source = resolved(root, &mount.source);
            numbers.contains(&mount.device)
                || (mount.source.starts_with("/dev/") && names.contains(&source))
                || file_systems.values().any(|members| members.contains(&source))
        })
        .collect();
    Ok(mounted)
}

/// The block device behind a path such as `/dev/mapper/vg-lv`.
fn resolved(root: &Root, path: &str) -> String {
    let node = root.join(path.trim_start_matches('/'));
    let target = std::fs::read_link(&node).ok();
    let name = target.as_deref().unwrap_or(Path::new(path)).file_name();
    name.and_then(|name| name.to_str()).unwrap_or_default().to_owned()
}

fn short(path: &str) -> &str {
    path.strip_prefix("/dev/").unwrap_or(path)
}
