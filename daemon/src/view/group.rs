//! Groups as the API has them.

use berth_ownership::{DriverDma, Group, Ownership, State, UNSEEN};
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
            owner.processes = pids
                .iter()
                .filter_map(|pid| i32::try_from(*pid).ok())
                .map(|pid| v1::Process { pid, name: String::new(), what: String::new() })
                .collect();
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
    for pid in &record.foreign_pids {
        found.push(match *pid {
            UNSEEN => "a process that berthd can't see owns it too".to_owned(),
            pid => format!("process {pid} owns it too"),
        });
    }
    format!("the record says {}, but {}", record.ownership.word(), found.join(" and "))
}
