//! Which processes have VFIO nodes open.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::io::Errno;

use super::tree::{self, Root};
use crate::{HostError, PciAddress, ProcessUse};

const ANONYMOUS: &str = ProcessUse::SOME_DEVICE;

/// What to look for.
#[derive(Debug, Clone, Default)]
pub(super) struct Sought {
    /// Paths of nodes.
    pub nodes: Vec<String>,
    /// Devices whose own descriptors count too.
    pub devices: Vec<PciAddress>,
}

/// Whether a path is one of the nodes that may be asked for.
pub(super) fn is_node(path: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if matches!(path, "/dev/iommu" | "/dev/vfio/vfio") {
        return true;
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
    let mut devices = Vec::new();
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
    Ok(Sought { nodes: nodes.to_vec(), devices })
}

/// Finds the processes, by pid, that have one of the nodes or devices open.
///
/// Processes whose descriptors can't be read are passed over; `except` is left out. Those with a
/// VFIO device that can't be told are answered last, with [`ProcessUse::SOME_DEVICE`] as what they
/// have open: whoever asks knows whether the ones before are his own.
pub(super) fn find(
    root: &Root,
    sought: &Sought,
    except: i32,
) -> Result<Vec<ProcessUse>, HostError> {
    let proc = root.join("proc");
    let names = tree::names_in(&proc).map_err(|errno| tree::file_error("read", &proc, errno))?;
    let mut certain = Vec::new();
    let mut possible = Vec::new();
    let mut pids: Vec<i32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    pids.sort_unstable();
    for pid in pids.into_iter().filter(|pid| *pid != except) {
        let Ok(dir) = tree::open_dir(&proc.join(pid.to_string())) else { continue };
        let found = open_files(dir.as_fd(), sought);
        if found.is_empty() {
            continue;
        }
        let name = tree::text_at(&dir, "comm").unwrap_or_default();
        for (what, sure) in found {
            let list = if sure { &mut certain } else { &mut possible };
            list.push(ProcessUse { pid, name: name.clone(), what });
        }
    }
    certain.extend(possible);
    Ok(certain)
}

/// Leaves those that may have any device out, where somebody is known for sure.
pub(super) fn without_guesses(found: &mut Vec<ProcessUse>) {
    if found.iter().any(ProcessUse::is_certain) {
        found.retain(ProcessUse::is_certain);
    }
}

/// What a process has open, and whether that is certain.
fn open_files(process: BorrowedFd<'_>, sought: &Sought) -> BTreeMap<String, bool> {
    let mut found = BTreeMap::new();
    let mut link = vec![0; tree::PAGE_BYTES];
    let Ok(files) = tree::open_dir_at(process, "fd") else { return found };
    tree::each_name_at(process, "fd", |number| {
        let Some(target) = tree::link_at(&files, number, &mut link) else { return };
        if sought.nodes.iter().any(|node| node == target) {
            found.insert(target.to_owned(), true);
        } else if target == ANONYMOUS && !sought.devices.is_empty() {
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
    });
    found
}

fn device_of(process: BorrowedFd<'_>, number: &str) -> Option<PciAddress> {
    let text = tree::text_at(process, &format!("fdinfo/{number}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("vfio-device-syspath:"))?;
    line.trim().rsplit('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{ConfigBytes, FakeDevice, FakeTree};

    fn tree() -> (tempfile::TempDir, FakeTree) {
        let dir = tempfile::tempdir().unwrap();
        let tree = FakeTree::at(dir.path()).unwrap();
        let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
        let device = FakeDevice::new("0000:00:05.0".parse().unwrap(), &config).group(8);
        tree.add(&device).unwrap();
        for (pid, comm, target) in [
            (10, "qemu", "/dev/vfio/8"),
            (11, "sh", "/dev/null"),
            (12, "driver", ANONYMOUS),
            (13, "old", ANONYMOUS),
        ] {
            tree.file(&format!("proc/{pid}/comm"), format!("{comm}\n")).unwrap();
            tree.link(&format!("proc/{pid}/fd/7"), target).unwrap();
        }
        let fdinfo = "pos: 0\nvfio-device-syspath: /sys/devices/pci0000:00/0000:00:05.0\n";
        tree.file("proc/12/fdinfo/7", fdinfo).unwrap();
        (dir, tree)
    }

    fn holders(tree: &FakeTree, node: &str, except: i32) -> Vec<(i32, String)> {
        let root = Root::new(tree.root());
        let sought = sought(&root, &[node.to_owned()]).unwrap();
        let mut found = find(&root, &sought, except).unwrap();
        without_guesses(&mut found);
        found.into_iter().map(|found| (found.pid, found.what)).collect()
    }

    #[test]
    fn finds_who_has_the_node_or_its_device_open() {
        let (_dir, tree) = tree();
        let expected = [(10, "/dev/vfio/8".to_owned()), (12, "0000:00:05.0".to_owned())];
        assert_eq!(holders(&tree, "/dev/vfio/8", 0), expected);
        assert_eq!(holders(&tree, "/dev/vfio/8", 10), expected[1..]);
    }

    #[test]
    fn a_device_that_cannot_be_told_is_answered_only_when_nothing_else_is_known() {
        let (_dir, tree) = tree();
        std::fs::remove_file(tree.root().join("proc/10/fd/7")).unwrap();
        std::fs::remove_file(tree.root().join("proc/12/fd/7")).unwrap();
        assert_eq!(holders(&tree, "/dev/vfio/8", 0), [(13, ANONYMOUS.to_owned())]);
        assert_eq!(holders(&tree, "/dev/vfio/9", 0), []);
    }

    #[test]
    fn only_vfio_nodes_may_be_asked_for() {
        for good in [
            "/dev/iommu",
            "/dev/vfio/vfio",
            "/dev/vfio/12",
            "/dev/vfio/noiommu-0",
            "/dev/vfio/devices/vfio3",
            "/dev/vfio/devices/noiommu-vfio3",
        ] {
            assert!(is_node(good), "{good}");
        }
        for bad in ["/dev/sda", "/dev/vfio/", "/dev/vfio/../sda", "/dev/vfio/devices/3", "", "8"] {
            assert!(!is_node(bad), "{bad}");
            assert!(sought(&Root::new("/"), &[bad.to_owned()]).is_err());
        }
    }
}
