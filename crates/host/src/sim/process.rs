//! Processes that have files of the simulated kernel open: scripted ones, and real ones that were
//! handed a descriptor.

use std::{
    collections::{BTreeMap, HashSet},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    sync::Arc,
};

use super::shared::{Kind, OpenFile, Shared, lock};
use crate::{
    PciAddress, ProcessUse,
    linux::{reservation_of_pid, standing_of_pid},
};

/// Pids of scripted processes lie above what Linux gives out.
const FIRST_PID: i32 = 5_000_000;

/// The scripted processes.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    running: BTreeMap<i32, Process>,
    started: i32,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) unit: String,
    pub(crate) stopped: bool,
    pub(crate) memlock_bytes: Option<u64>,
    pub(crate) files: Vec<Arc<OpenFile>>,
    /// Descriptors it was handed.
    pub(crate) received: Vec<(Kind, OwnedFd)>,
}

impl Processes {
    pub(crate) fn start(&mut self, name: &str, uid: u32) -> i32 {
        let pid = FIRST_PID + self.started;
        self.started += 1;
        let process = Process {
            name: name.to_owned(),
            uid,
            unit: String::new(),
            stopped: false,
            memlock_bytes: None,
            files: Vec::new(),
            received: Vec::new(),
        };
        self.running.insert(pid, process);
        pid
    }

    pub(crate) fn get(&mut self, pid: i32) -> Option<&mut Process> {
        self.running.get_mut(&pid)
    }

    /// Ends a process; its files close when the answer is dropped.
    #[must_use]
    pub(crate) fn end(&mut self, pid: i32) -> Option<Process> {
        self.running.remove(&pid)
    }

    fn holding(&self, wanted: &dyn Fn(Kind) -> bool) -> Vec<(i32, &Process, Kind)> {
        let mut found = Vec::new();
        for (pid, process) in &self.running {
            let kinds = process.files.iter().map(|file| file.kind);
            let kinds = kinds.chain(process.received.iter().map(|(kind, _)| *kind));
            found.extend(kinds.filter(|k| wanted(*k)).map(|k| (*pid, process, k)));
        }
        found
    }
}

/// Scripted processes have no start time in /proc; theirs is their pid.
pub(crate) fn start_time(pid: i32) -> u64 {
    u64::try_from(pid).unwrap_or_default()
}

impl Shared {
    /// Who has any of the wanted files open, this process left out.
    pub(crate) fn holders(&self, wanted: &dyn Fn(Kind) -> bool) -> Vec<ProcessUse> {
        let mut found: Vec<ProcessUse> = lock(&self.processes)
            .holding(wanted)
            .into_iter()
            .map(|(pid, process, kind)| ProcessUse {
                pid,
                start_time: start_time(pid),
                parent: 0,
                name: process.name.clone(),
                what: self.node(kind),
                reservation: String::new(),
                uid: Some(process.uid),
                unit: process.unit.clone(),
            })
            .collect();
        let exported = self.exported(wanted);
        if !exported.is_empty() {
            let real = real_holders(&exported).into_iter();
            found.extend(real.map(|(pid, start_time, name, kind)| {
                let (uid, unit) = standing_of_pid(pid);
                ProcessUse {
                    pid,
                    start_time,
                    parent: 0,
                    name,
                    what: self.node(kind),
                    reservation: reservation_of_pid(pid),
                    uid,
                    unit,
                }
            }));
        }
        found.dedup();
        found
    }

    /// Whether a device or the group that it is in is meant.
    pub(crate) fn about(&self, device: PciAddress) -> impl Fn(Kind) -> bool + use<> {
        let group = self.kernel().group_of(device).ok();
        move |kind| match kind {
            Kind::Device(address) => address == device,
            Kind::Group(number) => Some(number) == group,
            Kind::Container | Kind::Iommufd | Kind::Vhost(_) => false,
        }
    }

    /// The path under which a file was opened.
    pub(crate) fn node(&self, kind: Kind) -> String {
        match kind {
            Kind::Container => "/dev/vfio/vfio".to_owned(),
            Kind::Iommufd => "/dev/iommu".to_owned(),
            Kind::Group(number) => format!("/dev/vfio/{number}"),
            Kind::Vhost(address) => self.kernel().vhost_node(address).unwrap_or_default(),
            Kind::Device(address) => {
                let kernel = self.kernel();
                let device = kernel.devices.get(&address);
                match device.and_then(|device| device.vfio.as_ref()?.cdev) {
                    Some(number) => format!("/dev/vfio/devices/vfio{number}"),
                    None => address.to_string(),
                }
            }
        }
    }
}

/// Field 22 of `/proc/PID/stat`.
fn start_time_of(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Real processes with one of these memfds open.
fn real_holders(exported: &[(Kind, (u64, u64))]) -> Vec<(i32, u64, String, Kind)> {
    let mut found = Vec::new();
    let mut looked_at = HashSet::from([std::process::id().to_string()]);
    // Who ends before he is looked at may have left what he had to a child that is not on the list.
    loop {
        let listed = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let names = listed.filter_map(|entry| entry.file_name().into_string().ok());
        let new: Vec<String> = names.filter(|name| looked_at.insert(name.clone())).collect();
        if new.is_empty() {
            return found;
        }
        of_processes(&new, exported, &mut found);
    }
}

fn of_processes(
    pids: &[String],
    exported: &[(Kind, (u64, u64))],
    found: &mut Vec<(i32, u64, String, Kind)>,
) {
    for pid in pids {
        let process = Path::new("/proc").join(pid);
        let Ok(number) = pid.parse::<i32>() else { continue };
        let Ok(descriptors) = std::fs::read_dir(process.join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(data) = std::fs::metadata(descriptor.path()) else { continue };
            let here = (data.dev(), data.ino());
            if let Some((kind, _)) = exported.iter().find(|(_, identity)| *identity == here) {
                let read = |name| std::fs::read_to_string(process.join(name)).ok();
                let Some(started) = read("stat").as_deref().and_then(start_time_of) else { break };
                let comm = read("comm").unwrap_or_default();
                found.push((number, started, comm.trim().to_owned(), *kind));
            }
        }
    }
}
