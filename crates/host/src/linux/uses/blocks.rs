//! Block devices of a device, what is built on them, and the mounts and swaps that use them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    found,
    mounts::{self, Mount},
    text,
};
use crate::{
    HostUse, PciAddress,
    linux::tree::{self, Root},
};

/// Finds mounts, swap areas, md, dm and LVM volumes on a device's block devices.
pub(super) fn find(root: &Root, address: PciAddress) -> Vec<HostUse> {
    let mut names = own(root, address);
    if names.is_empty() {
        return Vec::new();
    }
    let mut uses = volumes(root, &mut names);
    let table = mounts::parse(&text(root.join("proc/self/mountinfo")));
    let file_systems = btrfs_members(root, &names);
    for mount in mounted(root, &names, &file_systems, &table) {
        uses.push(found("mount", format!("{} on {}", short(&mount.source), mount.point)));
    }
    for area in mounts::swaps(&text(root.join("proc/swaps"))) {
        if names.contains(short(&area)) || names.contains(&resolved(root, &area)) {
            uses.push(found("swap", area));
        }
    }
    uses.sort_by(|a, b| (&a.kind, &a.detail).cmp(&(&b.kind, &b.detail)));
    uses.dedup();
    uses
}

/// Block devices that lie in the PCI device, partitions included.
fn own(root: &Root, address: PciAddress) -> BTreeSet<String> {
    let class = root.join("sys/class/block");
    let subsystems = nvme_subsystems(root, address);
    let Ok(names) = tree::names_in(&class) else { return BTreeSet::new() };
    let address = address.to_string();
    names
        .into_iter()
        .filter(|name| {
            let Ok(target) = std::fs::read_link(class.join(name)) else { return false };
            let mut parts = target.iter().filter_map(|part| part.to_str());
            parts.any(|part| part == address || subsystems.contains(part))
        })
        .collect()
}

/// The NVMe subsystems that the device is a path to: with multipath their disks lie there.
fn nvme_subsystems(root: &Root, address: PciAddress) -> BTreeSet<String> {
    let mut controllers = BTreeSet::new();
    if let Ok(dir) = tree::open_dir(&root.device(address)) {
        tree::each_name_at(&dir, "nvme", |name| {
            controllers.insert(name.to_owned());
        });
    }
    let virtual_ones = root.join("sys/devices/virtual/nvme-subsystem");
    let Ok(names) = tree::names_in(&virtual_ones) else { return BTreeSet::new() };
    names
        .into_iter()
        .filter(|subsystem| {
            let dir = virtual_ones.join(subsystem);
            controllers.iter().any(|name| dir.join(name).symlink_metadata().is_ok())
        })
        .collect()
}

/// Adds what is built on the block devices to them, and says what it is.
fn volumes(root: &Root, names: &mut BTreeSet<String>) -> Vec<HostUse> {
    let mut uses = Vec::new();
    let mut todo: Vec<String> = names.iter().cloned().collect();
    while let Some(lower) = todo.pop() {
        let dir = root.join("sys/class/block").join(&lower);
        for holder in tree::names_in(&dir.join("holders")).unwrap_or_default() {
            let (kind, name) = volume(&root.join("sys/class/block").join(&holder), &holder);
            uses.push(found(kind, format!("{name} on {lower}")));
            if names.insert(holder.clone()) {
                todo.push(holder.clone());
                // Partitions of a volume lie in its directory.
                let parts = tree::names_in(&root.join("sys/class/block").join(&holder));
                for part in parts.unwrap_or_default() {
                    if part.starts_with(&holder) && names.insert(part.clone()) {
                        todo.push(part);
                    }
                }
            }
        }
    }
    uses
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
fn btrfs_members(root: &Root, names: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
    let all = root.join("sys/fs/btrfs");
    tree::names_in(&all)
        .unwrap_or_default()
        .into_iter()
        .map(|id| {
            let devices = tree::names_in(&all.join(&id).join("devices")).unwrap_or_default();
            (id, devices.into_iter().collect::<BTreeSet<_>>())
        })
        .filter(|(_, devices)| !devices.is_disjoint(names))
        .collect()
}

fn mounted<'m>(
    root: &Root,
    names: &BTreeSet<String>,
    file_systems: &BTreeMap<String, BTreeSet<String>>,
    table: &'m [Mount],
) -> Vec<&'m Mount> {
    let numbers: BTreeSet<String> = names
        .iter()
        .map(|name| text(root.join("sys/class/block").join(name).join("dev")))
        .map(|number| number.trim().to_owned())
        .filter(|number| !number.is_empty())
        .collect();
    table
        .iter()
        .filter(|mount| {
            let source = resolved(root, &mount.source);
            numbers.contains(&mount.device)
                || (mount.source.starts_with("/dev/") && names.contains(&source))
                || file_systems.values().any(|members| members.contains(&source))
        })
        .collect()
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
