//! The privileged acts on a simulated machine, in the order in which the real ones write.

use std::{sync::Arc, sync::mpsc, time::Duration};

use rustix::io::Errno;

use super::{
    fault::{At, Site},
    kernel::Kernel,
    process::start_time,
    shared::{Kind, Shared, lock},
    topology::ResetKind,
};
use crate::{Act, ActOutcome, HostError, PciAddress, ProcessUse, ResetOutcome, api::sriov_writes};

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
        Act::Bind { device, driver } => bind(shared, *device, driver),
        Act::Unbind { device } => {
            detach(shared, *device)?;
            Ok(ActOutcome::Driver(None))
        }
        Act::Override { device, driver } => {
            write_override(shared, *device, driver.as_deref())?;
            Ok(ActOutcome::Done)
        }
        Act::Restore { device, driver, driver_override } => {
            restore(shared, *device, driver.as_deref(), driver_override.as_deref())
        }
        Act::Sriov { device, count, autoprobe } => {
            let writes = sriov_writes(*count, *autoprobe).into_iter();
            for (name, value) in writes {
                let set = shared.kernel().write_sriov(*device, name, &value);
                set.map_err(attribute(*device, name))?;
            }
            Ok(ActOutcome::Done)
        }
        Act::Reset { device } => reset(&mut shared.kernel(), *device).map(ActOutcome::Reset),
        Act::ReadConfig { device } => config(&shared.kernel(), *device).map(ActOutcome::Config),
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

fn attribute(device: PciAddress, name: &str) -> impl FnOnce(Errno) -> HostError {
    let path = format!("/sys/bus/pci/devices/{device}/{name}");
    move |errno| HostError::File { op: "write", path, errno: errno.raw_os_error() }
}

fn driver_attribute(driver: &str, op: &'static str, name: &str) -> impl FnOnce(Errno) -> HostError {
    let path = format!("/sys/bus/pci/drivers/{driver}{name}");
    move |errno| HostError::File { op, path, errno: errno.raw_os_error() }
}

/// The real act looks for the driver's directory before it writes anything.
fn registered(kernel: &Kernel, driver: &str) -> Result<(), HostError> {
    let known = ["vfio-pci", "pci-stub", "pcieport"].contains(&driver)
        || kernel.devices.values().any(|device| {
            device.model.facts.vfio_driver == driver
                || device.model.host_drivers.iter().any(|name| name == driver)
        });
    if known && !kernel.unloaded.contains(driver) {
        return Ok(());
    }
    Err(driver_attribute(driver, "find driver", "")(Errno::NOENT))
}

fn bound(kernel: &Kernel, device: PciAddress) -> Result<Option<String>, HostError> {
    let found = kernel.dev(device).map_err(|_| HostError::NoDevice(device))?;
    Ok(found.model.facts.driver.clone())
}

fn write_override(
    shared: &Shared,
    device: PciAddress,
    driver: Option<&str>,
) -> Result<(), HostError> {
    shared
        .pass(Site::WriteOverride, Some(device), None)
        .and_then(|()| shared.kernel().set_override(device, driver))
        .map_err(attribute(device, "driver_override"))
}

fn write_probe(shared: &Shared, device: PciAddress) -> Result<(), Errno> {
    shared.pass(Site::WriteProbe, Some(device), None)?;
    shared.kernel().drivers_probe(device)
}

fn write_bind(shared: &Shared, device: PciAddress, driver: &str) -> Result<(), Errno> {
    shared.pass(Site::WriteBind, Some(device), None)?;
    shared.kernel().bind_driver(device, driver)
}

fn bind(shared: &Shared, device: PciAddress, driver: &str) -> Result<ActOutcome, HostError> {
    registered(&shared.kernel(), driver)?;
    write_override(shared, device, Some(driver))?;
    let before = bound(&shared.kernel(), device)?;
    if before.as_deref() == Some(driver) {
        return Ok(ActOutcome::Driver(before));
    }
    detach(shared, device)?;
    match write_probe(shared, device) {
        // Every failure of a probe is EINVAL; binding by name answers with the real one.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(driver_attribute("", "write", "drivers_probe")(errno)),
    }
    if bound(&shared.kernel(), device)?.is_none() {
        let by_name = write_bind(shared, device, driver);
        by_name.map_err(driver_attribute(driver, "write", "/bind"))?;
    }
    expect(&shared.kernel(), device, Some(driver))
}

fn detach(shared: &Shared, device: PciAddress) -> Result<(), HostError> {
    if bound(&shared.kernel(), device)?.is_none() {
        return Ok(());
    }
    let passed = shared.pass(Site::WriteUnbind, Some(device), None);
    passed
        .and_then(|()| shared.kernel_without_users(device).unbind_driver(device))
        .map_err(attribute(device, "driver/unbind"))
}

fn restore(
    shared: &Shared,
    device: PciAddress,
    driver: Option<&str>,
    driver_override: Option<&str>,
) -> Result<ActOutcome, HostError> {
    let gone = driver.map(|driver| registered(&shared.kernel(), driver));
    let before = bound(&shared.kernel(), device)?;
    if before.as_deref() != driver {
        detach(shared, device)?;
    }
    if shared.kernel().overridden(device).as_deref() != driver_override {
        write_override(shared, device, driver_override)?;
    }
    // Only now, so that the driver takes the device once it is there again.
    gone.transpose()?;
    if let Some(driver) = driver
        && before.as_deref() != Some(driver)
    {
        let mut answer = write_bind(shared, device, driver);
        if answer == Err(Errno::NODEV) {
            // The override makes a driver match that doesn't by itself.
            write_override(shared, device, Some(driver))?;
            answer = write_bind(shared, device, driver);
            write_override(shared, device, driver_override)?;
        }
        answer.map_err(driver_attribute(driver, "write", "/bind"))?;
    }
    expect(&shared.kernel(), device, driver)
}

fn expect(
    kernel: &Kernel,
    device: PciAddress,
    wanted: Option<&str>,
) -> Result<ActOutcome, HostError> {
    let found = bound(kernel, device)?;
    if found.as_deref() == wanted {
        return Ok(ActOutcome::Driver(found));
    }
    let word = |driver: Option<&str>| driver.unwrap_or("none").to_owned();
    Err(HostError::DriverMismatch { device, wanted: word(wanted), found: word(found.as_deref()) })
}

fn reset(kernel: &mut Kernel, device: PciAddress) -> Result<ResetOutcome, HostError> {
    let model = &kernel.dev(device).map_err(|_| HostError::NoDevice(device))?.model;
    Ok(match model.reset {
        ResetKind::Verified => {
            let method = model.facts.reset_methods.first().cloned();
            ResetOutcome::Verified { method: method.unwrap_or_else(|| "unknown".to_owned()) }
        }
        ResetKind::NotPossible => {
            ResetOutcome::NotPossible { note: "the device has no reset method".to_owned() }
        }
        ResetKind::Failed => ResetOutcome::Failed {
            note: "the configuration space reads all ones after the reset".to_owned(),
        },
    })
}

/// The first 64 bytes; all ones for a device whose reset fails.
fn config(kernel: &Kernel, device: PciAddress) -> Result<Vec<u8>, HostError> {
    let found = kernel.dev(device).map_err(|_| HostError::NoDevice(device))?;
    if found.model.reset == ResetKind::Failed {
        return Ok(vec![0xff; 64]);
    }
    let facts = &found.model.facts;
    let open = found.vfio.as_ref().is_some_and(|vfio| vfio.open_count > 0);
    let mut bytes = vec![0; 64];
    bytes[0..2].copy_from_slice(&facts.vendor.to_le_bytes());
    bytes[2..4].copy_from_slice(&facts.device.to_le_bytes());
    // Memory space, and bus master while somebody has it open.
    bytes[4] = if open || kernel.masters.contains(&device) { 6 } else { 2 };
    bytes[8] = facts.revision;
    bytes[9..12].copy_from_slice(&facts.class.to_le_bytes()[..3]);
    bytes[14] = u8::from(facts.bridge);
    bytes[44..46].copy_from_slice(&facts.subsystem_vendor.to_le_bytes());
    bytes[46..48].copy_from_slice(&facts.subsystem_device.to_le_bytes());
    Ok(bytes)
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
