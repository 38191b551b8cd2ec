//! SR-IOV as the API has it.

use berth_host::{DeviceFacts, PciAddress, sriov_writes};
use berth_ownership::{DeviceId, SriovOp};
use berth_proto::v1;

use super::words;
use crate::{
    acts::sriov::{of, steps},
    model::Snapshot,
};

/// SR-IOV of a physical function.
#[must_use]
pub fn sriov(snapshot: &Snapshot, facts: &DeviceFacts) -> v1::Sriov {
    let record = snapshot.state.device(&DeviceId::from(facts.address.to_string()));
    let here = |boot: &berth_ownership::BootId| boot.as_str() == &*snapshot.boot.id;
    let baseline = record
        .and_then(|record| record.sriov_baseline.as_ref())
        .filter(|baseline| here(&baseline.boot_id));
    let now = of(facts);
    v1::Sriov {
        device: Some(words::address(facts.address)),
        vfs: now.vfs.into(),
        total_vfs: facts.sriov_total.into(),
        drivers_autoprobe: now.autoprobe,
        functions: facts.virtual_functions.iter().copied().map(words::address).collect(),
        baseline: baseline.map(|baseline| v1::SriovBaseline {
            vfs: baseline.was.vfs.into(),
            drivers_autoprobe: baseline.was.autoprobe,
        }),
        writes: Vec::new(),
        under_way: record.is_some_and(|record| record.sriov_op.is_some()),
    }
}

/// The writes that a change takes, in order, each with what undoes it.
#[must_use]
pub fn sriov_plan(device: PciAddress, op: SriovOp) -> Vec<v1::SysfsWrite> {
    let [mut vfs, mut autoprobe] =
        [op.from.vfs.to_string(), u8::from(op.from.autoprobe).to_string()];
    let steps = steps(op.from, op.to).into_iter();
    let writes =
        steps.flat_map(|step| sriov_writes(step.vfs, step.autoprobe)).map(|(name, value)| {
            let before = if name == "sriov_numvfs" { &mut vfs } else { &mut autoprobe };
            v1::SysfsWrite {
                path: format!("/sys/bus/pci/devices/{device}/{name}"),
                undo: std::mem::replace(before, value.clone()),
                value,
            }
        });
    // What is there already is written all the same, but nothing comes of it.
    writes.filter(|write| write.value != write.undo).collect()
}
