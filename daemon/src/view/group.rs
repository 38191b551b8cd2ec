//! Groups as the API has them.

use berth_ownership::{DriverDma, ForeignProcess, Group, Ownership, State, UNSEEN, name_foreign};
use berth_proto::v1;

use super::{
    device::{device, process},
    words,
};
use crate::model::Snapshot;

/// A group as the API has it.
#[must_use]
pub fn group(snapshot: &Snapshot, record: &Group) -> v1::Group {
    let state = &*snapshot.state;
    let facts = snapshot.group(&record.id);
    let kind = words::ownership_kind(&record.ownership);
    v1::Group {
        stable_id: record.id.to_string(),
        number: facts.map_or(0, |facts| facts.number),
        devices: record
            .devices
            .iter()
            .filter_map(|id| snapshot.device_by_id(id))
            .map(|facts| device(snapshot, facts))
            .collect(),
        ownership: kind.into(),
        owner: Some(owner_of(state, record)),
        owner_cnt: record.ownership.owner_cnt(),
        condition: words::condition(record.condition).into(),
        condition_note: record.note.clone(),
        epoch: record.epoch.0,
        reservations: record.reservations.iter().map(ToString::to_string).collect(),
        iommu_type: facts.map(|facts| facts.iommu_type.clone()).unwrap_or_default(),
        reserved_regions: facts
            .into_iter()
            .flat_map(|facts| &facts.reserved_regions)
            .map(|range| v1::IovaRange {
                first: range.first,
                last: range.last,
                kind: range.kind.clone(),
            })
            .collect(),
        viable: viable(state, record),
        drift: drift(state, record),
    }
}

/// Whether the kernel would let the group be owned by user space.
fn viable(state: &State, record: &Group) -> bool {
    record.foreign_pids.is_empty()
        && !state.devices_of(record).any(|device| device.facts.uses_kernel_dma())
}

/// Who holds the group's DMA.
#[must_use]
pub fn owner_of(state: &State, record: &Group) -> v1::Owner {
    let mut owner = v1::Owner {
        kind: words::ownership_kind(&record.ownership).into(),
        claims: record.ownership.owner_cnt(),
        ..v1::Owner::default()
    };
    let reservation = match &record.ownership {
        Ownership::Exclusive { claim } => Some(claim),
        Ownership::Shared { domain, .. } => {
            owner.domain = domain.to_string();
            record.reservations.first()
        }
        Ownership::Group { token, domain, .. } => {
            owner.domain = domain.as_ref().map(ToString::to_string).unwrap_or_default();
            Some(token)
        }
        Ownership::Foreign { pids } => {
            owner.processes = foreign(pids, &record.foreign);
            None
        }
        Ownership::Private { .. } => {
            let devices = state.devices_of(record);
            owner.processes = devices
                .flat_map(|device| &device.facts.processes)
                .map(|text| process(text))
                .collect();
            None
        }
        Ownership::Free | Ownership::Kernel { .. } => None,
    };
    if let Some(reservation) = reservation {
        owner.reservation = reservation.to_string();
        if let Some(record) = state.reservation(reservation) {
            owner.holder = record.holder.to_string();
            owner.label = record.label.to_string();
            if owner.domain.is_empty() && record.policy != berth_ownership::Policy::Group {
                owner.domain = record.domain.to_string();
            }
        }
    }
    owner
}

/// Processes outside that own a group. One that can't be seen has no line.
pub(super) fn foreign(pids: &[u32], known: &[ForeignProcess]) -> Vec<v1::Process> {
    let seen = pids.iter().filter(|pid| **pid != UNSEEN);
    let shown = |pid: &u32| {
        let about = known.iter().find(|process| process.pid == *pid);
        Some(v1::Process {
            pid: i32::try_from(*pid).ok()?,
            name: about.map(|about| about.name.clone()).unwrap_or_default(),
            what: String::new(),
            unit: about.map(|about| about.unit.clone()).unwrap_or_default(),
        })
    };
    seen.filter_map(shown).collect()
}

/// How the kernel's truth differs from the record, in words.
fn drift(state: &State, record: &Group) -> String {
    if !record.drift {
        return String::new();
    }
    let mut found = Vec::new();
    for device in state.devices_of(record) {
        match &device.facts.dma {
            DriverDma::Kernel(driver) | DriverDma::Assumed(driver) => {
                found.push(format!("{} is on host driver {driver}", device.facts.id));
            }
            DriverDma::None | DriverDma::Managed(_) => {}
        }
    }
    let owners = name_foreign(&record.foreign_pids, &record.foreign);
    found.extend(owners.iter().map(|owner| format!("{owner} owns it too")));
    format!("the record says {}, but {}", record.ownership.word(), found.join(" and "))
}
