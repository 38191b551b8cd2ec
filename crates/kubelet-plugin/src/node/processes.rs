//! Which processes are in which allocation's container: by the variable that its first process got,
//! and from then on by the control group that it was in, whatever becomes of the variable.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::core::Allocation;

/// The beginning of the variable's name; the resource follows, the allocation's name is the value.
pub const ALLOCATION_ENV: &str = "BERTH_ALLOCATION_";

/// A process in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number on the host.
    pub pid: u32,
    /// `/proc/PID/comm`.
    pub name: String,
    /// Below the root of the control groups; unset where it says nothing about the container.
    pub cgroup: Option<String>,
}

/// The processes of one moment.
#[derive(Debug, Clone)]
pub struct Processes {
    by_allocation: BTreeMap<String, Vec<Process>>,
    cgroup_root: PathBuf,
}

impl Processes {
    /// Looks through `/proc`. Blocks for as long as that takes.
    #[must_use]
    pub fn look(cgroup_root: &Path) -> Self {
        let mut by_allocation: BTreeMap<String, Vec<Process>> = BTreeMap::new();
        let own = cgroup_of("self");
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            for allocation in allocations_of(pid) {
                let process = Process {
                    pid,
                    name: fs::read_to_string(format!("/proc/{pid}/comm"))
                        .unwrap_or_default()
                        .trim()
                        .to_owned(),
                    cgroup: cgroup_of(&pid.to_string()).filter(|path| Some(path) != own.as_ref()),
                };
                by_allocation.entry(allocation).or_default().push(process);
            }
        }
        Self { by_allocation, cgroup_root: cgroup_root.to_owned() }
    }

    /// Those of an allocation.
    #[must_use]
    pub fn of(&self, allocation: &str) -> &[Process] {
        self.by_allocation.get(allocation).map_or(&[], Vec::as_slice)
    }

    /// Who shows that an allocation's container runs; none where nothing does.
    #[must_use]
    pub fn running(&self, allocation: &Allocation) -> Option<String> {
        if let Some(first) = self.of(&allocation.name).first() {
            return Some(format!("{} (pid {})", first.name, first.pid));
        }
        let populated = allocation.cgroups.iter().find(|path| self.populated(path))?;
        Some(format!("processes in {populated}"))
    }

    /// The control groups that an allocation's processes are in now.
    #[must_use]
    pub fn cgroups(&self, allocation: &str) -> BTreeSet<String> {
        self.of(allocation).iter().filter_map(|process| process.cgroup.clone()).collect()
    }

    fn populated(&self, path: &str) -> bool {
        let file = self.cgroup_root.join(path.trim_start_matches('/')).join("cgroup.events");
        fs::read_to_string(file)
            .is_ok_and(|text| text.lines().any(|line| line.trim() == "populated 1"))
    }
}

/// Whether a process is in an allocation's container: it has the variable, or is in a control group,
/// or below one, in which one that had it was seen. Blocks.
#[must_use]
pub fn is_in_container(pid: u32, allocation: &Allocation, cgroup_root: &Path) -> bool {
    if allocations_of(pid).contains(&allocation.name) {
        return true;
    }
    let Some(own) = cgroup_of(&pid.to_string()) else { return false };
    let within = |seen: &String| {
        own.strip_prefix(seen.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    allocation.cgroups.iter().any(within)
        || Processes::look(cgroup_root).cgroups(&allocation.name).iter().any(within)
}

/// The values of the variable; one for each resource that the container has.
fn allocations_of(pid: u32) -> BTreeSet<String> {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ
        .split(|byte| *byte == 0)
        .filter_map(|word| std::str::from_utf8(word).ok()?.strip_prefix(ALLOCATION_ENV))
        .filter_map(|word| Some(word.split_once('=')?.1.to_owned()))
        .collect()
}

/// The control group of version 2; unset for the root, which every process could be in, and for one
/// outside of this program's own namespace, whose path leads nowhere from the root that it sees.
fn cgroup_of(pid: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?.trim();
    (path.len() > 1 && !path.starts_with("/..")).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_populated_control_group_shows_that_a_container_runs() {
        let root = tempfile::tempdir().unwrap();
        let events = |populated: u8| {
            let dir = root.path().join("kubepods.slice/c1");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.events"), format!("populated {populated}\nfrozen 0\n"))
                .unwrap();
        };
        let allocation = Allocation {
            name: "a-000000000000".to_owned(),
            cgroups: BTreeSet::from(["/kubepods.slice/c1".to_owned()]),
            ..Allocation::default()
        };
        let running = || Processes::look(root.path()).running(&allocation);
        assert_eq!(running(), None, "its control group is gone");
        events(1);
        assert_eq!(running().as_deref(), Some("processes in /kubepods.slice/c1"));
        events(0);
        assert_eq!(running(), None);
    }
}
