//! From what a batch touched to the rows that it writes: those that differ from before.

use std::ptr;

use berth_ownership::{Policy, Reservation, State};
use serde::Serialize;

use super::{book::Book, events::Touched};
use crate::{
    json,
    model::Extra,
    store::{DeviceRow, Rows, TargetRow},
};

fn raw<T: Serialize>(record: &T) -> String {
    // Records are plain data: serializing them can't fail.
    json::to_string(record).unwrap_or_default()
}

fn same<T>(before: Option<&T>, after: Option<&T>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => ptr::eq(before, after),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Adds the rows of all records that differ between two books.
pub(super) fn records(rows: &mut Rows, touched: &Touched, before: &Book, after: &Book) {
    let (old, new) = (&before.state, &after.state);
    for id in &touched.groups {
        match (old.group(id), new.group(id)) {
            (was, is) if same(was, is) => {}
            (_, Some(group)) => rows.groups.push((id.to_string(), raw(group))),
            (_, None) => rows.groups_gone.push(id.to_string()),
        }
    }
    for id in &touched.contexts {
        match (old.context(id), new.context(id)) {
            (was, is) if same(was, is) => {}
            (_, Some(context)) => rows.contexts.push((id.to_string(), raw(context))),
            (_, None) => rows.contexts_gone.push(id.to_string()),
        }
    }
    for id in &touched.domains {
        match (old.domain(id), new.domain(id)) {
            (was, is) if same(was, is) => {}
            (_, Some(domain)) => rows.domains.push((id.to_string(), raw(domain))),
            (_, None) => rows.domains_gone.push(id.to_string()),
        }
    }
    devices(rows, touched, old, new);
    reservations(rows, touched, before, after);
    if old.epoch_floor() != new.epoch_floor() {
        rows.meta.push(("epoch_floor".to_owned(), new.epoch_floor().0.to_string()));
    }
}

fn devices(rows: &mut Rows, touched: &Touched, old: &State, new: &State) {
    for id in &touched.devices {
        match (old.device(id), new.device(id)) {
            (was, is) if same(was, is) => {}
            (_, Some(device)) => rows.devices.push(DeviceRow(id.to_string(), 1, raw(device))),
            (_, None) => rows.devices_gone.push(id.to_string()),
        }
    }
    if !touched.absent {
        return;
    }
    for device in new.absent() {
        rows.devices_gone.retain(|gone| gone != device.facts.id.as_str());
        let known = old.absent().find(|known| known.facts.id == device.facts.id);
        if !same(known, Some(device)) {
            rows.devices.push(DeviceRow(device.facts.id.to_string(), 0, raw(device)));
        }
    }
    for device in old.absent() {
        let id = &device.facts.id;
        let still = new.device(id).is_some() || new.absent().any(|other| other.facts.id == *id);
        if !still {
            rows.devices_gone.push(id.to_string());
        }
    }
}

fn reservations(rows: &mut Rows, touched: &Touched, before: &Book, after: &Book) {
    for id in &touched.reservations {
        let (was, is) = (before.state.reservation(id), after.state.reservation(id));
        let (old_extra, new_extra) = (before.extras.get(id), after.extras.get(id));
        let extra_same = same(old_extra.map(AsRef::as_ref), new_extra.map(AsRef::as_ref));
        if same(was, is) && extra_same {
            continue;
        }
        match is {
            Some(record) => {
                let extra = new_extra.map_or_else(|| "{}".to_owned(), |extra| raw::<Extra>(extra));
                rows.reservations.push((id.to_string(), raw(record), extra));
            }
            None if was.is_some() => rows.reservations_gone.push(id.to_string()),
            None => {}
        }
        targets(rows, was, is);
    }
}

/// Writes the targets anew, where they differ.
fn targets(rows: &mut Rows, was: Option<&Reservation>, is: Option<&Reservation>) {
    let living = |record: Option<&Reservation>| record.is_some_and(Reservation::holds);
    let same = match (was, is) {
        (Some(was), Some(is)) => {
            was.holds() == is.holds() && was.targets == is.targets && owner(was) == owner(is)
        }
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    if same || !(living(was) || living(is)) {
        return;
    }
    if let Some(was) = was.filter(|was| was.holds()) {
        rows.retarget.push(was.id.to_string());
    }
    let Some(is) = is.filter(|is| is.holds()) else { return };
    for target in &is.targets {
        for device in &target.devices {
            rows.targets.push(TargetRow(
                device.to_string(),
                target.group.to_string(),
                is.id.to_string(),
                owner(is).to_owned(),
            ));
        }
    }
}

/// What all reservations of a group have in common.
fn owner(record: &Reservation) -> &str {
    match record.policy {
        Policy::Exclusive => record.id.as_str(),
        Policy::Shared => record.domain.as_str(),
        Policy::Group => record.token.as_str(),
    }
}
