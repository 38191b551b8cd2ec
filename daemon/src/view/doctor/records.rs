//! What is wrong with what is recorded: conditions, strangers, drift, reservations that are stuck.

use berth_ownership::{Condition, Device, Group, Reservation, ReservationState};
use berth_proto::v1;

use super::{super::owner_of, Code, drivers, finding, fixed_by};
use crate::model::Snapshot;

pub(super) fn findings(snapshot: &Snapshot) -> Vec<v1::Finding> {
    let state = &snapshot.state;
    let mut found: Vec<v1::Finding> = state.devices().flat_map(of_device).collect();
    found.extend(state.groups().flat_map(|group| of_group(snapshot, group)));
    found.extend(state.reservations().flat_map(of_reservation));
    found
}

/// What concerns one group.
pub(super) fn of(snapshot: &Snapshot, group: &Group) -> Vec<v1::Finding> {
    let state = &snapshot.state;
    let devices = group.devices.iter().filter_map(|id| state.device(id));
    let mut found: Vec<v1::Finding> = devices.flat_map(of_device).collect();
    found.extend(of_group(snapshot, group));
    found.extend(state.reservations_of(group).flat_map(of_reservation));
    found
}

fn of_device(device: &Device) -> Vec<v1::Finding> {
    let id = &device.facts.id;
    let mut found: Vec<v1::Finding> = device
        .marks
        .iter()
        .filter_map(|(condition, why)| {
            let (code, fix) = mark(*condition, id.as_str())?;
            let why = if why.is_empty() { "nobody said why" } else { why };
            Some(fixed_by(finding(code, id, why), fix))
        })
        .collect();
    if let Some(label) = &device.only_label {
        let cause = format!("it was not given back clean, so only label {label} may have it");
        let finding = finding(Code::OneLabelOnly, id, cause);
        found.push(fixed_by(finding, format!("berth quarantine clear {id} --reason TEXT")));
    }
    found
}

fn mark(condition: Condition, id: &str) -> Option<(Code, String)> {
    Some(match condition {
        Condition::Ok => return None,
        Condition::Degraded => (Code::Degraded, format!("see berth device show {id}")),
        Condition::Failed => (Code::DeviceFailed, format!("see berth device show {id}")),
        Condition::Cordoned => (Code::Cordoned, format!("berth uncordon {id}")),
        Condition::Wedged => {
            (Code::Wedged, "end the processes that are named, or wait for them".to_owned())
        }
        Condition::Quarantined => {
            (Code::Quarantined, format!("berth quarantine clear {id} --reason TEXT"))
        }
    })
}

fn of_group(snapshot: &Snapshot, group: &Group) -> Vec<v1::Finding> {
    let mut found = Vec::new();
    if !group.foreign_pids.is_empty() {
        let processes = owner_of(&snapshot.state, group).processes;
        let who: Vec<String> = processes.iter().map(named).collect();
        let cause = format!("{} has it, and Berth gave it to nobody", who.join(", "));
        let finding = finding(Code::ForeignOwner, &group.id, cause);
        let mut finding = fixed_by(finding, format!("end {}", who.join(", ")));
        if let [alone] = processes.as_slice() {
            let (id, pid) = (&group.id, alone.pid);
            finding =
                fixed_by(finding, format!("berth adopt --group {id} --pid {pid} --holder NAME"));
        }
        found.push(finding);
    }
    if group.drift {
        found.push(drift(snapshot, group));
    }
    found
}

/// Who is there beside whoever has the group by the record, and what ends that.
fn drift(snapshot: &Snapshot, group: &Group) -> v1::Finding {
    let owners: Vec<String> = snapshot
        .state
        .reservations_of(group)
        .map(|owner| format!("{} for {}", owner.id, owner.holder))
        .collect();
    let strangers: Vec<String> =
        owner_of(&snapshot.state, group).processes.iter().map(named).collect();
    let drivers = drivers::on_host(snapshot, group);
    let on_host = drivers.iter().map(|facts| format!("{} on its host driver", facts.address));
    let beside: Vec<String> = strangers.iter().cloned().chain(on_host).collect();
    let cause = format!(
        "by the record {} has it, and {} is there all the same",
        owners.join(" and "),
        beside.join(", ")
    );
    let mut finding = finding(Code::Drift, &group.id, cause);
    if !group.foreign_pids.is_empty() {
        finding = fixed_by(finding, format!("end {}", strangers.join(", ")));
    }
    drivers.into_iter().fold(finding, |finding, facts| drivers::released(snapshot, facts, finding))
}

fn of_reservation(record: &Reservation) -> Option<v1::Finding> {
    let id = &record.id;
    let (code, cause, fix) = match record.state {
        ReservationState::Lost => {
            let cause =
                format!("holder {} has nothing of it any more: {}", record.holder, record.detail);
            (Code::ReservationLost, cause, record.release_command())
        }
        ReservationState::Expired => {
            let cause = format!("its lease is over, and holder {} still has it", record.holder);
            let finding = fixed_by(finding(Code::LeaseOver, id, cause), renew(record));
            return Some(fixed_by(finding, record.release_command()));
        }
        ReservationState::Draining => {
            let who = record.process.as_ref().map_or_else(
                || "some process".to_owned(),
                |process| format!("{} ({})", process.name, process.pid),
            );
            let cause = format!("its holder is dead, and {who} has a device of it open");
            (Code::HolderDraining, cause, record.release_command())
        }
        ReservationState::Preparing
        | ReservationState::Reserved
        | ReservationState::Handed
        | ReservationState::Held
        | ReservationState::Released => return None,
    };
    Some(fixed_by(finding(code, id, cause), fix))
}

fn renew(record: &Reservation) -> String {
    format!("berth reservation renew {}", record.id)
}

/// A process by its name, where that is known.
fn named(process: &v1::Process) -> String {
    match (process.name.as_str(), process.pid) {
        ("", pid) => format!("process {pid}"),
        (name, 0) => name.to_owned(),
        (name, pid) => format!("{name} ({pid})"),
    }
}
