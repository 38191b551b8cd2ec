//! Devices as the API has them.

use berth_host::{Bar, DeviceFacts, DmaKind, GroupingCode, HostUse, ProcessUse};
use berth_ownership::{Condition, Device, DeviceId};
use berth_proto::v1;

use super::{
    health::{cordon, health},
    words,
};
use crate::model::Snapshot;

/// A device as the API has it: facts of the host, condition of the record.
#[must_use]
pub fn device(snapshot: &Snapshot, facts: &DeviceFacts) -> v1::Device {
    let id = DeviceId::from(facts.address.to_string());
    let record = snapshot.state.device(&id);
    let (condition, condition_note) = standing(record);
    v1::Device {
        address: Some(words::address(facts.address)),
        group: record.map(|record| record.group.to_string()).unwrap_or_default(),
        vendor_id: facts.vendor.into(),
        device_id: facts.device.into(),
        subsystem_vendor_id: facts.subsystem_vendor.into(),
        subsystem_device_id: facts.subsystem_device.into(),
        class_code: facts.class,
        class_name: facts.class_name.clone(),
        vendor_name: facts.vendor_name.clone(),
        device_name: facts.device_name.clone(),
        revision: facts.revision.into(),
        numa_node: facts.numa_node,
        bars: facts.bars.iter().map(bar).collect(),
        reset_methods: facts.reset_methods.clone(),
        driver: facts.driver.clone().unwrap_or_default(),
        uses_kernel_dma: uses_kernel_dma(facts.dma).into(),
        driver_override: facts.driver_override.clone().unwrap_or_default(),
        vfio_driver: facts.vfio_driver.clone(),
        is_bridge: facts.bridge,
        physical_function: facts.physical_function.map(words::address),
        virtual_functions: facts.virtual_functions.iter().copied().map(words::address).collect(),
        sriov_total_vfs: facts.sriov_total.into(),
        host_uses: host_uses(snapshot.uses_of(facts.address)),
        condition: words::condition(condition).into(),
        condition_note,
        grouping: Some(grouping(facts)),
        baseline: snapshot.baseline(&id).map(|baseline| v1::Baseline {
            driver: baseline.driver.clone().unwrap_or_default(),
            driver_override: baseline.driver_override.clone().unwrap_or_default(),
        }),
        parent_port: facts.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        cdev: facts.cdev.clone().unwrap_or_default(),
        reset_with: if facts.resets_peers() {
            facts.reset_set.iter().copied().map(words::address).collect()
        } else {
            Vec::new()
        },
        foreign: snapshot
            .group_of(facts.address)
            .map(|group| super::group::foreign(&group.foreign_pids, &group.foreign))
            .unwrap_or_default(),
        health: health(record, snapshot.health.get(&facts.address).map(AsRef::as_ref)),
        cordon: record.and_then(|record| cordon(record, &snapshot.boot)),
        sriov: (facts.sriov_total > 0).then(|| super::sriov::sriov(snapshot, facts)),
    }
}

fn standing(record: Option<&Device>) -> (Condition, String) {
    let Some(record) = record else { return (Condition::Ok, String::new()) };
    let condition = record.condition();
    let mut note = record.marks.get(&condition).cloned().unwrap_or_default();
    if let Some(label) = &record.only_label {
        if !note.is_empty() {
            note.push_str("; ");
        }
        note.push_str(&format!("not reset since label {label} had it: only that label may"));
    }
    (condition, note)
}

fn bar(bar: &Bar) -> v1::Bar {
    v1::Bar {
        index: bar.index,
        size_bytes: bar.size_bytes,
        memory64: bar.memory64,
        prefetchable: bar.prefetchable,
        io: bar.io,
    }
}

fn host_uses(uses: &[HostUse]) -> Vec<v1::HostUse> {
    uses.iter()
        .map(|host_use| v1::HostUse {
            kind: host_use.kind.clone(),
            detail: host_use.detail.clone(),
        })
        .collect()
}

fn grouping(facts: &DeviceFacts) -> v1::GroupingReason {
    let code = match facts.grouping.code {
        GroupingCode::Alone => "alone",
        GroupingCode::BridgeAlias => "bridge-alias",
        GroupingCode::MissingAcs => "missing-acs",
        GroupingCode::Multifunction => "multifunction",
        GroupingCode::Unknown => "unknown",
    };
    v1::GroupingReason {
        device: Some(words::address(facts.address)),
        code: code.to_owned(),
        cause: facts.grouping.cause.map(|cause| cause.to_string()).unwrap_or_default(),
        text: facts.grouping.text.clone(),
    }
}

/// Whether a driver uses kernel DMA, as the API has it.
#[must_use]
pub fn uses_kernel_dma(dma: DmaKind) -> v1::kernel_dma::Uses {
    match dma {
        DmaKind::None | DmaKind::Managed => v1::kernel_dma::Uses::No,
        DmaKind::Kernel => v1::kernel_dma::Uses::Yes,
        DmaKind::Assumed => v1::kernel_dma::Uses::Assumed,
    }
}

/// A device's kernel DMA as the API has it. `may` are the policies that may attach now, in the
/// order exclusive, shared, group; `because` says why not.
#[must_use]
pub fn kernel_dma(facts: &DeviceFacts, may: [bool; 3], because: String) -> v1::KernelDma {
    let [exclusive, shared, group] = may;
    v1::KernelDma {
        device: Some(words::address(facts.address)),
        uses_kernel_dma: uses_kernel_dma(facts.dma).into(),
        driver: facts.driver.clone().unwrap_or_default(),
        may_attach: Some(v1::MayAttach { exclusive, shared, group }),
        because,
        writes: Vec::new(),
    }
}

/// A process that has something open.
#[must_use]
pub fn user(user: &ProcessUse) -> v1::Process {
    let ProcessUse { pid, name, what, unit, .. } = user.clone();
    v1::Process { pid, name, what, unit }
}

/// A process from the record's words: `qemu (1234)`, `qemu (1234) in machine-qemu.scope`.
#[must_use]
pub fn process(text: &str) -> v1::Process {
    let (named, unit) = match text.rsplit_once(") in ") {
        Some((named, unit)) if !unit.contains(' ') => (named, unit),
        _ => (text.strip_suffix(')').unwrap_or(text), ""),
    };
    let parsed = named.rsplit_once(" (").and_then(|(name, pid)| Some((name, pid.parse().ok()?)));
    let (name, pid) = parsed.unwrap_or((text, 0));
    let unit = if pid == 0 { String::new() } else { unit.to_owned() };
    v1::Process { pid, name: name.to_owned(), what: String::new(), unit }
}

#[cfg(test)]
mod tests {
    use super::process;

    #[test]
    fn processes_are_read_from_the_records_words() {
        for (text, pid, name, unit) in [
            ("qemu (12)", 12, "qemu", ""),
            ("qemu (12) in machine-a.scope", 12, "qemu", "machine-a.scope"),
            ("a (b) c (12) in x.service", 12, "a (b) c", "x.service"),
            ("a process that berthd can't see", 0, "a process that berthd can't see", ""),
        ] {
            let found = process(text);
            let found = (found.pid, found.name.as_str(), found.unit.as_str());
            assert_eq!(found, (pid, name, unit));
        }
    }
}
