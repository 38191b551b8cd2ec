//! SR-IOV as the API has it.

use berth_host::DeviceFacts;
use berth_ownership::DeviceId;
use berth_proto::v1;

use super::words;
use crate::{acts::sriov::of, model::Snapshot};

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
