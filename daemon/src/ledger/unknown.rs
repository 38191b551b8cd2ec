//! A record that was begun anew: what the kernel can't say is marked, and needs an operator's word.
//!
//! Groups, drivers and who has them open are seen. Not seen is for whom a device was taken from its
//! driver, what it had before, under which label, and whether it was reset since. So devices on VFIO
//! drivers are quarantined.

use std::sync::Arc;

use berth_host::DmaKind;
use berth_ownership::{Command, Event};
use serde_json::json;

use super::{decide::record, draft::Draft, scan::Scan};
use crate::{
    model::Meta,
    store::{EventRecord, HistoryLost},
};

/// Marks what isn't known after the first look at the machine, once.
pub(super) fn mark(draft: &mut Draft, scan: &Scan) -> Vec<Event> {
    let Some(lost) = draft.book.history_lost.take() else { return Vec::new() };
    let on_vfio = scan.inventory.devices.iter().filter(|device| {
        device.dma == DmaKind::Managed
            && !device.bridge
            && device.driver.as_deref() == Some(device.vfio_driver.as_str())
    });
    let commands: Vec<Command> = on_vfio
        .map(|device| Command::Quarantine {
            device: device.address.to_string().into(),
            why: format!(
                "unknown history: on {} since before the record was begun anew; who had it, what \
                 driver it had and whether it was reset is not known",
                device.vfio_driver
            ),
        })
        .collect();
    let events = record(draft, &commands, &Meta::internal("history lost"));
    draft.rows.meta.push(("history_lost".to_owned(), "null".to_owned()));
    let devices = scan.inventory.devices.len();
    note(draft, &lost, devices, commands.len());
    events
}

fn note(draft: &mut Draft, lost: &HistoryLost, devices: usize, quarantined: usize) {
    tracing::warn!(devices, quarantined, set_aside = lost.set_aside, "the record was begun anew");
    draft.book.seq += 1;
    let after = json!({
        "setAside": lost.set_aside,
        "message": lost.message,
        "devices": devices,
        "quarantined": quarantined,
        "epochFloor": draft.book.state.epoch_floor().0.to_string(),
    });
    draft.events.push(Arc::new(EventRecord {
        seq: draft.book.seq,
        time_unix_ms: draft.now().unix_ms.0,
        boot_id: Arc::clone(&draft.book.boot.id),
        actor: "berthd".to_owned(),
        cause: "start".to_owned(),
        request_id: String::new(),
        kind: "store.rebuilt".to_owned(),
        groups: Vec::new(),
        devices: Vec::new(),
        reservation: String::new(),
        before: None,
        after: Some(after.to_string()),
    }));
}
