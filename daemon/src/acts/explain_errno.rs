//! What a kernel errno means for the user: the cause, who it is, and the way out.
//!
//! The kernel answers EPERM to `BIND` and `SET_CONTAINER` for three different reasons and EINVAL
//! for several more. None of them is the caller's lack of permission, so none is told as that.

use berth_host::{
    Answer, DeviceFacts, DmaKind, Host, HostError, PciAddress, ProcessUse, VfioError,
};
use berth_ownership::{Blocker, DeviceId, ForeignProcess, OwnerInfo, Reason, Refusal};
use rustix::io::Errno;

use super::{job::GroupJob, vf_token};

/// Explains why VFIO or iommufd refused something on a group.
pub(crate) fn vfio(host: &dyn Host, group: &GroupJob, error: &VfioError) -> Box<Refusal> {
    let errno = Errno::from_raw_os_error(error.errno);
    if error.op == "open" && matches!(errno, Errno::ACCESS | Errno::PERM) {
        return not_given(group, error, errno);
    }
    let found = match errno {
        Errno::PERM | Errno::BUSY => owners(host, group).or_else(|| msi_unsafe(host, group, errno)),
        Errno::INVAL => owners(host, group).or_else(|| firmware_or_cache(host, group)),
        Errno::NODEV | Errno::NOENT | Errno::NXIO => gone(host, group),
        Errno::ACCESS => kept_by_token(host, group),
        Errno::NOMEM => Some(Refusal::new(
            Reason::MemlockLimit,
            &group.id,
            format!("no memory could be pinned for group {}", group.id),
        )),
        _ => None,
    };
    let refusal = found.unwrap_or_else(|| unexplained(group, errno));
    with_op(refusal, error)
}

/// Explains why a privileged act failed.
pub(crate) fn host(error: &HostError, device: PciAddress) -> Box<Refusal> {
    let message = error.to_string();
    match error {
        HostError::NoDevice(address) => Refusal::new(Reason::DeviceGone, address, message),
        HostError::Helper { still_running: true, .. } => {
            Refusal::new(Reason::Wedged, device, message)
        }
        HostError::Helper { .. } => Refusal::new(Reason::HelperFailed, device, message),
        HostError::File { op: "find driver", path, errno } => {
            let driver = path.rsplit('/').next().unwrap_or_default();
            let text = format!(
                "{device} needs driver {driver}, which isn't registered: its module is gone"
            );
            Refusal::new(Reason::KernelRefused, device, text + &format!(" (modprobe {driver})"))
                .with_errno(*errno)
                .with_resolve(vec![format!("modprobe {driver}")])
        }
        HostError::File { errno, .. } => {
            Refusal::new(Reason::KernelRefused, device, message).with_errno(*errno)
        }
        HostError::DriverMismatch { .. } | HostError::Topology { .. } => {
            Refusal::new(Reason::KernelRefused, device, message)
        }
    }
}

fn with_op(mut refusal: Box<Refusal>, error: &VfioError) -> Box<Refusal> {
    refusal.message = format!("{}: {error}", refusal.message);
    refusal.with_errno(error.errno)
}

/// A virtual function whose physical one is on a VFIO driver, or that one, and another token than the
/// daemon's.
///
/// # Kernel
/// `vfio_pci_validate_vf_token`: whoever opens it has to show what was set on the physical one.
fn kept_by_token(host: &dyn Host, group: &GroupJob) -> Option<Box<Refusal>> {
    group.members.iter().find_map(|&address| {
        let physical = vf_token::keeper(host, address)?;
        let (pf, driver) = (physical.address, physical.driver.unwrap_or_default());
        let (what, ways) = if pf == address {
            let text = format!("{pf} is on {driver}, and virtual functions of it are open");
            (text, vec![format!("end who has them: berth sriov set {pf} 0 names one")])
        } else {
            let text = format!("{address} is a virtual function of {pf}, which is on {driver}");
            let who =
                format!("release or end whoever has {pf} (berth explain {pf}), and try again");
            let anew = format!("berth sriov set {pf} 0, then N: nobody has the new ones open");
            (text, vec![who, anew])
        };
        let text = format!(
            "{what}: the kernel asks for {pf}'s VF token, which isn't the one that berthd keeps: \
             whoever had or has {pf} open set another"
        );
        Some(Refusal::new(Reason::KernelRefused, &group.id, text).with_resolve(ways))
    })
}

fn members(host: &dyn Host, group: &GroupJob) -> Vec<DeviceFacts> {
    group.members.iter().filter_map(|&address| host.device(address).ok()).collect()
}

/// Somebody has the group: a process that isn't ours, or a host driver.
fn owners(host: &dyn Host, group: &GroupJob) -> Option<Box<Refusal>> {
    let mut processes: Vec<ProcessUse> = Vec::new();
    for &address in &group.members {
        for user in host.users_of(address).unwrap_or_default() {
            if !processes.iter().any(|known| known.pid == user.pid) {
                processes.push(user);
            }
        }
    }
    if !processes.is_empty() {
        return Some(foreign(group, &processes));
    }
    let blockers: Vec<Blocker> = members(host, group)
        .iter()
        .filter(|facts| matches!(facts.dma, DmaKind::Kernel | DmaKind::Assumed))
        .map(|facts| on_host_driver(host, facts))
        .collect();
    if blockers.is_empty() { None } else { Some(kernel_dma(group, blockers)) }
}

/// A process as the record has foreign ones.
pub(crate) fn foreign_of(user: &ProcessUse) -> ForeignProcess {
    let pid = u32::try_from(user.pid).unwrap_or_default();
    ForeignProcess { pid, name: user.name.clone(), unit: user.unit.clone() }
}

/// A refusal that names the foreign processes.
pub(crate) fn foreign(group: &GroupJob, processes: &[ProcessUse]) -> Box<Refusal> {
    let named: Vec<String> = processes.iter().map(|user| foreign_of(user).to_string()).collect();
    let what = processes.first().map(|user| user.what.as_str()).unwrap_or_default();
    let blockers = group.devices.first().map(|address| Blocker {
        device: DeviceId::new(address.to_string()),
        driver: None,
        processes: named.clone(),
        mounts: Vec::new(),
        text: format!("{} has {what} open", named.join(", ")),
    });
    let stop = processes.iter().map(|user| format!("stop process {} ({})", user.pid, user.name));
    let adopt = match processes {
        [alone] => {
            Some(format!("berth adopt --group {} --pid {} --holder NAME", group.id, alone.pid))
        }
        _ => None,
    };
    Refusal::new(
        Reason::ForeignOwner,
        &group.id,
        format!("group {} is in use by {}, which berthd did not start", group.id, named.join(", ")),
    )
    .with_owner(Some(OwnerInfo {
        kind: "foreign".to_owned(),
        holder: None,
        label: None,
        reservation: None,
        claims: u32::try_from(processes.len()).unwrap_or(u32::MAX),
    }))
    .with_blockers(blockers.into_iter().collect())
    .with_resolve(stop.chain(adopt).collect())
}

fn on_host_driver(host: &dyn Host, facts: &DeviceFacts) -> Blocker {
    let driver = facts.driver.clone().unwrap_or_default();
    let mounts = host.uses(facts.address).unwrap_or_default();
    Blocker {
        device: DeviceId::new(facts.address.to_string()),
        text: format!("{} is on host driver {driver}, which uses kernel DMA", facts.address),
        driver: Some(driver),
        processes: Vec::new(),
        mounts: mounts.iter().map(|used| format!("{} {}", used.kind, used.detail)).collect(),
    }
}

fn kernel_dma(group: &GroupJob, blockers: Vec<Blocker>) -> Box<Refusal> {
    let texts: Vec<&str> = blockers.iter().map(|blocker| blocker.text.as_str()).collect();
    let message = format!("group {} is not viable: {}", group.id, texts.join("; "));
    let ways = blockers.iter().map(|b| format!("berth kernel-dma release {}", b.device)).collect();
    let count = u32::try_from(blockers.len()).unwrap_or(u32::MAX);
    Refusal::new(Reason::KernelDma, &group.id, message)
        .with_owner(Some(OwnerInfo {
            kind: "kernel".to_owned(),
            holder: None,
            label: None,
            reservation: None,
            claims: count,
        }))
        .with_blockers(blockers)
        .with_resolve(ways)
}

/// berthd itself may not open a node: what is behind it answers otherwise, but for groups without an
/// IOMMU, which are none here.
fn not_given(group: &GroupJob, error: &VfioError, errno: Errno) -> Box<Refusal> {
    let node = &error.object;
    let (why, ways) = match errno {
        Errno::ACCESS => (
            "it is not given to berthd's user",
            vec![
                "install Berth's udev rules (70-berth.rules)".to_owned(),
                "udevadm trigger --action=change --subsystem-match=vfio \
                 --subsystem-match=vfio-dev --subsystem-match=misc"
                    .to_owned(),
            ],
        ),
        _ => (
            "the service manager's device policy, which it made before VFIO was there, leaves it out",
            vec!["modprobe vfio-pci".to_owned(), "systemctl restart berthd".to_owned()],
        ),
    };
    let message = format!("group {}: berthd may not open {node}: {why}", group.id);
    Refusal::new(Reason::KernelRefused, &group.id, message)
        .with_errno(error.errno)
        .with_resolve(ways)
}

fn msi_unsafe(host: &dyn Host, group: &GroupJob, errno: Errno) -> Option<Box<Refusal>> {
    let features = host.features();
    let answer = features.iter().find(|feature| feature.name == "interrupt-remapping")?;
    if errno != Errno::PERM || answer.answer != Answer::No {
        return None;
    }
    Some(Refusal::new(
        Reason::MsiUnsafe,
        &group.id,
        format!(
            "group {}: this machine does not isolate MSIs ({}), so a device could raise any \
             interrupt and the kernel refuses to give it away",
            group.id, answer.note
        ),
    ))
}

fn firmware_or_cache(host: &dyn Host, group: &GroupJob) -> Option<Box<Refusal>> {
    if let Some(region) = group.reserved.iter().find(|region| region.kind == "direct") {
        return Some(Refusal::new(
            Reason::Firmware1to1,
            &group.id,
            format!(
                "group {}: the firmware demands that {:#x}-{:#x} stays mapped 1:1 for a device of it",
                group.id, region.first, region.last
            ),
        ));
    }
    let features = host.features();
    let coherent = features.iter().find(|feature| feature.name == "cache-coherency")?;
    (coherent.answer == Answer::No).then(|| {
        Refusal::new(
            Reason::NotCoherent,
            &group.id,
            format!("group {}: its IOMMU can't enforce cache coherency", group.id),
        )
    })
}

fn gone(host: &dyn Host, group: &GroupJob) -> Option<Box<Refusal>> {
    let missing = group
        .devices
        .iter()
        .find(|&&address| matches!(host.device(address), Err(HostError::NoDevice(_))))?;
    Some(Refusal::new(Reason::DeviceGone, missing, format!("device {missing} is no longer there")))
}

fn unexplained(group: &GroupJob, errno: Errno) -> Box<Refusal> {
    match errno {
        Errno::PERM | Errno::BUSY => Refusal::new(
            Reason::GroupNotViable,
            &group.id,
            format!(
                "group {} is owned by somebody whom neither its drivers nor /proc show",
                group.id
            ),
        ),
        _ => Refusal::new(
            Reason::KernelRefused,
            &group.id,
            format!("the kernel refused work on group {}", group.id),
        ),
    }
}
