//! The privileged acts on a simulated machine, in the order in which the real ones write.

use std::{sync::Arc, sync::mpsc, time::Duration};

use rustix::io::Errno;

use super::{
    attributes::Device,
    fault::{At, Site},
    process::start_time,
    shared::{Kind, Shared, lock},
};
use crate::{
    Act, ActOutcome, HostError, PciAddress, ProcessUse, ResetOutcome,
    steps::{self, Device as _},
};

const STOP: i32 = 19;
const CONT: i32 = 18;
const TERM: i32 = 15;
const KILL: i32 = 9;

/// Does an act. One that would wait runs on like a helper process when its time is over.
pub(crate) fn perform(shared: &Arc<Shared>, act: &Act) -> Result<ActOutcome, HostError> {
    let (site, device) = site(act);
    if !may_wait(shared, act, site, device) {
        return run(shared, act);
    }
    let (send, receive) = mpsc::channel();
    let helper = Arc::clone(shared);
    let job = act.clone();
    lock(&shared.waiting).extend(device);
    std::thread::spawn(move || {
        let done = run(&helper, &job);
        {
            let mut waiting = lock(&helper.waiting);
            if let Some(at) = waiting.iter().position(|it| Some(*it) == device) {
                waiting.swap_remove(at);
            }
        }
        // Nobody listens any more when the time was over; the act counts all the same.
        let _unheard = send.send(done);
    });
    let timeout = Duration::from_millis(shared.helper_timeout_ms);
    receive.recv_timeout(timeout).unwrap_or_else(|_| {
        Err(HostError::Helper {
            verb: verb(act).to_owned(),
            object: device.map_or_else(|| "the host".to_owned(), |device| device.to_string()),
            message: format!("no answer within {} ms", shared.helper_timeout_ms),
            still_running: true,
        })
    })
}

fn may_wait(shared: &Shared, act: &Act, site: Site, device: Option<PciAddress>) -> bool {
    let group = device.and_then(|device| shared.kernel().group_of(device).ok());
    let unbinds = matches!(act, Act::Bind { .. } | Act::Unbind { .. } | Act::Restore { .. });
    shared.faults.slow(&At { site, device, group })
        || (unbinds && device.is_some_and(|device| shared.kernel().in_use(device)))
}

fn site(act: &Act) -> (Site, Option<PciAddress>) {
    match act {
        Act::Bind { device, .. } => (Site::Bind, Some(*device)),
        Act::Unbind { device } => (Site::Unbind, Some(*device)),
        Act::Override { device, .. } => (Site::Override, Some(*device)),
        Act::Restore { device, .. } => (Site::Restore, Some(*device)),
        Act::Sriov { device, .. } => (Site::Sriov, Some(*device)),
        Act::Reset { device } => (Site::Reset, Some(*device)),
        Act::ReadConfig { device } => (Site::ReadConfig, Some(*device)),
        Act::WhoHolds { .. } => (Site::WhoHolds, None),
        Act::Prlimit { .. } => (Site::Prlimit, None),
        Act::Kill { .. } => (Site::Kill, None),
        Act::OpenIommu => (Site::OpenIommu, None),
        Act::Access { .. } => (Site::Access, None),
    }
}

fn verb(act: &Act) -> &'static str {
    match act {
        Act::Bind { .. } => "bind",
        Act::Unbind { .. } => "unbind",
        Act::Override { .. } => "override",
        Act::Restore { .. } => "restore",
        Act::Sriov { .. } => "sriov",
        Act::Reset { .. } => "reset",
        Act::ReadConfig { .. } => "read-config",
        Act::WhoHolds { .. } => "who-holds",
        Act::Prlimit { .. } => "prlimit",
        Act::Kill { .. } => "kill",
        Act::OpenIommu => "open-iommu",
        Act::Access { .. } => "access",
    }
}

fn run(shared: &Arc<Shared>, act: &Act) -> Result<ActOutcome, HostError> {
    let (site, device) = site(act);
    if let Some(device) = device {
        shared.kernel().dev(device).map_err(|_| HostError::NoDevice(device))?;
    }
    if let Err(errno) = shared.pass(site, device, None) {
        return scripted(act, device, errno);
    }
    match act {
        Act::Bind { device, .. }
        | Act::Unbind { device }
        | Act::Override { device, .. }
        | Act::Restore { device, .. }
        | Act::Sriov { device, .. }
        | Act::Reset { device } => steps::perform(&Device { shared, address: *device }, act),
        Act::ReadConfig { device } => {
            Device { shared, address: *device }.config().map(ActOutcome::Config)
        }
        Act::WhoHolds { nodes } => Ok(ActOutcome::Holders(who_holds(shared, nodes))),
        Act::Prlimit { pid, start_time, memlock_bytes } => {
            prlimit(shared, *pid, *start_time, *memlock_bytes)
        }
        Act::Kill { pid, start_time, signal } => kill(shared, *pid, *start_time, *signal),
        Act::OpenIommu => open_iommu(shared),
        Act::Access { node, uid, allow } => {
            let set = shared.kernel().set_access(*node, *uid, *allow);
            set.map_err(|errno| HostError::File {
                op: "setxattr",
                path: node.to_string(),
                errno: errno.raw_os_error(),
            })?;
            Ok(ActOutcome::Done)
        }
    }
}

/// A scripted errno, as the real act would report it.
fn scripted(act: &Act, device: Option<PciAddress>, errno: Errno) -> Result<ActOutcome, HostError> {
    if matches!(act, Act::Reset { .. }) {
        let note = format!("write reset: {}", berth_uapi::errno_name(errno));
        return Ok(ActOutcome::Reset(ResetOutcome::Failed { note }));
    }
    let path = device.map_or_else(
        || format!("/dev/{}", verb(act)),
        |device| format!("/sys/bus/pci/devices/{device}/{}", verb(act)),
    );
    Err(HostError::File { op: "write", path, errno: errno.raw_os_error() })
}

fn who_holds(shared: &Shared, nodes: &[String]) -> Vec<ProcessUse> {
    let found = shared.holders(&|_: Kind| true);
    found.into_iter().filter(|holder| nodes.contains(&holder.what)).collect()
}

fn process_error(op: &'static str, pid: i32, errno: Errno) -> HostError {
    HostError::File { op, path: format!("process {pid}"), errno: errno.raw_os_error() }
}

/// Limits of real processes are left alone: nothing is pinned on a simulated machine.
fn prlimit(
    shared: &Shared,
    pid: i32,
    started: u64,
    memlock_bytes: u64,
) -> Result<ActOutcome, HostError> {
    match lock(&shared.processes).get(pid) {
        Some(process) if started == start_time(pid) => {
            process.memlock_bytes = Some(memlock_bytes.max(process.memlock_bytes.unwrap_or(0)));
            Ok(ActOutcome::Done)
        }
        Some(_) => Err(process_error("find", pid, Errno::SRCH)),
        None if std::path::Path::new(&format!("/proc/{pid}")).exists() => Ok(ActOutcome::Done),
        None => Err(process_error("find", pid, Errno::SRCH)),
    }
}

/// Scripted processes only: a simulated machine must not end real ones.
fn kill(shared: &Shared, pid: i32, started: u64, signal: i32) -> Result<ActOutcome, HostError> {
    if ![STOP, CONT, TERM, KILL].contains(&signal) {
        return Err(process_error("send", pid, Errno::INVAL));
    }
    let ended = {
        let mut processes = lock(&shared.processes);
        let process = processes.get(pid).filter(|_| started == start_time(pid));
        let Some(process) = process else { return Err(process_error("find", pid, Errno::SRCH)) };
        process.stopped = signal == STOP || (process.stopped && signal != CONT);
        let ends = signal == KILL || (signal == TERM && !process.stopped);
        if ends { processes.end(pid) } else { None }
    };
    // Its files close here, with no lock held.
    drop(ended);
    Ok(ActOutcome::Done)
}

fn open_iommu(shared: &Arc<Shared>) -> Result<ActOutcome, HostError> {
    let failed = |op| {
        move |errno: Errno| HostError::File {
            op,
            path: "/dev/iommu".to_owned(),
            errno: errno.raw_os_error(),
        }
    };
    let id = shared.kernel().open_iommufd().map_err(failed("open"))?;
    let file = shared.own(id, Kind::Iommufd);
    let fd = shared.descriptor(&file, "simulated context\n").map_err(failed("dup"))?;
    Ok(ActOutcome::Fd(fd))
}
