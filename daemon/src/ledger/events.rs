//! Changes as they are recorded and streamed: what they concern, the object before and after.

use std::collections::BTreeSet;

use berth_ownership::{
    ContextId, DeviceId, DomainId, Event, Group, GroupId, OperationKind, ReservationId,
};
use serde_json::json;

use super::book::Book;
use crate::{json, view};

/// What a batch touched. Rows are written of what differs from before.
#[derive(Debug, Default, Clone)]
pub(super) struct Touched {
    pub(super) groups: BTreeSet<GroupId>,
    pub(super) devices: BTreeSet<DeviceId>,
    pub(super) reservations: BTreeSet<ReservationId>,
    pub(super) contexts: BTreeSet<ContextId>,
    pub(super) domains: BTreeSet<DomainId>,
    /// Devices may have come to or gone from those that are not there but remembered.
    pub(super) absent: bool,
}

impl Touched {
    /// Adds all that an event touches. Called before it is applied, and after.
    pub(super) fn add(&mut self, book: &Book, event: &Event) {
        if let Some(id) = event.reservation() {
            self.reservation(book, id);
        }
        match event {
            Event::GroupObserved { facts } => {
                self.devices.extend(facts.devices.iter().map(|device| device.id.clone()));
                for device in &facts.devices {
                    self.device(book, &device.id);
                }
                self.group(book, &facts.id);
                self.absent = true;
            }
            Event::GroupGone { group } => {
                self.group(book, group);
                self.absent = true;
            }
            Event::DeviceGone { device } => {
                self.device(book, device);
                self.absent = true;
            }
            Event::KernelDmaStarted { device, .. }
            | Event::KernelDmaChanged { device, .. }
            | Event::KernelDmaFailed { device, .. }
            | Event::SriovStarted { device, .. }
            | Event::SriovChanged { device, .. }
            | Event::SriovFailed { device, .. } => self.device(book, device),
            Event::Marked { device, .. }
            | Event::Unmarked { device, .. }
            | Event::Assessed { device, .. } => {
                self.device(book, device);
                self.absent = true;
            }
            Event::ContextCreated { context } => {
                self.contexts.insert(context.id.clone());
            }
            Event::ContextDeleted { context } => {
                self.contexts.insert(context.clone());
            }
            Event::DomainCreated { domain } => self.domain(book, &domain.id, Some(&domain.context)),
            Event::DomainDeleted { domain } => self.domain(book, domain, None),
            Event::Released { devices, .. } => {
                for left in devices {
                    self.device(book, &left.device);
                }
            }
            _ => {}
        }
    }

    /// Adds all that another has.
    pub(super) fn merge(&mut self, other: Self) {
        self.groups.extend(other.groups);
        self.devices.extend(other.devices);
        self.reservations.extend(other.reservations);
        self.contexts.extend(other.contexts);
        self.domains.extend(other.domains);
        self.absent |= other.absent;
    }

    fn reservation(&mut self, book: &Book, id: &ReservationId) {
        self.reservations.insert(id.clone());
        let Some(record) = book.state.reservation(id) else { return };
        self.contexts.insert(record.context.clone());
        self.domains.insert(record.domain.clone());
        for target in &record.targets {
            self.groups.insert(target.group.clone());
            self.devices.extend(target.devices.iter().cloned());
        }
    }

    fn group(&mut self, book: &Book, id: &GroupId) {
        self.groups.insert(id.clone());
        let Some(group) = book.state.group(id) else { return };
        self.devices.extend(group.devices.iter().cloned());
        for reservation in &group.reservations {
            self.reservation(book, reservation);
        }
    }

    fn device(&mut self, book: &Book, id: &DeviceId) {
        self.devices.insert(id.clone());
        if let Some(device) = book.state.device(id) {
            self.group(book, &device.group);
        }
    }

    fn domain(&mut self, book: &Book, id: &DomainId, context: Option<&ContextId>) {
        self.domains.insert(id.clone());
        let known = book.state.domain(id).map(|domain| &domain.context);
        if let Some(context) = context.or(known) {
            self.contexts.insert(context.clone());
        }
    }
}

/// The object that an event is about.
#[derive(Debug, Clone)]
pub(super) enum About {
    Group(GroupId),
    Device(DeviceId),
    Reservation(ReservationId),
    Context(ContextId),
    Domain(DomainId),
    Store,
}

/// The object that an event is about.
pub(super) fn about(event: &Event) -> About {
    if let Some(id) = event.reservation() {
        return About::Reservation(id.clone());
    }
    match event {
        Event::GroupObserved { facts } => About::Group(facts.id.clone()),
        Event::GroupGone { group } => About::Group(group.clone()),
        Event::DeviceGone { device }
        | Event::KernelDmaStarted { device, .. }
        | Event::KernelDmaChanged { device, .. }
        | Event::KernelDmaFailed { device, .. }
        | Event::SriovStarted { device, .. }
        | Event::SriovChanged { device, .. }
        | Event::SriovFailed { device, .. }
        | Event::Marked { device, .. }
        | Event::Unmarked { device, .. }
        | Event::Assessed { device, .. } => About::Device(device.clone()),
        Event::ContextCreated { context } => About::Context(context.id.clone()),
        Event::ContextDeleted { context } => About::Context(context.clone()),
        Event::DomainCreated { domain } => About::Domain(domain.id.clone()),
        Event::DomainDeleted { domain } => About::Domain(domain.clone()),
        _ => About::Store,
    }
}

/// The event's name on every surface: the kind of object, a dot, what happened to it.
/// `known` says whether a foreign owner was known before.
pub(super) fn kind(event: &Event, about: &About, known: bool) -> String {
    let object = match about {
        About::Group(_) => "group",
        About::Device(_) => "device",
        About::Reservation(_) => "reservation",
        About::Context(_) => "context",
        About::Domain(_) => "domain",
        About::Store => "store",
    };
    let what = match event {
        Event::Reserved { .. } | Event::ContextCreated { .. } | Event::DomainCreated { .. } => {
            "created"
        }
        Event::ContextDeleted { .. } | Event::DomainDeleted { .. } => "deleted",
        Event::GroupObserved { facts } => match (known, facts.foreign_pids.is_empty()) {
            (false, false) => "foreign_owner_came",
            (true, true) => "foreign_owner_went",
            (true, false) | (false, true) => "observed",
        },
        Event::GroupGone { .. } | Event::DeviceGone { .. } => "gone",
        Event::Started { pending, .. } => match pending.kind {
            OperationKind::Prepare => "preparing",
            OperationKind::Attach => "attaching",
            OperationKind::Detach => "detaching",
            OperationKind::Replace => "replacing",
            OperationKind::HandOver => "handing_over",
            OperationKind::Release => "releasing",
        },
        other => other.name(),
    };
    format!("{object}.{what}")
}

/// Whether a foreign owner is known of a group.
pub(super) fn is_foreign(book: &Book, about: &About) -> bool {
    let About::Group(id) = about else { return false };
    book.state.group(id).is_some_and(|group| !group.foreign_pids.is_empty())
}

/// The object as it stands in the book: proto3 JSON; `None` when it isn't there.
pub(super) fn render(book: &Book, about: &About) -> Option<String> {
    let state = &book.state;
    match about {
        About::Reservation(id) => {
            let extra = book.extras.get(id).map(AsRef::as_ref);
            let shown = view::reservation(state, state.reservation(id)?, extra, &book.boot);
            json::to_string(&shown).ok()
        }
        About::Context(id) => json::to_string(&view::context(state.context(id)?)).ok(),
        About::Domain(id) => json::to_string(&view::domain(state, state.domain(id)?, None)).ok(),
        About::Group(id) => Some(group(book, state.group(id)?).to_string()),
        About::Device(id) => {
            let device = state.device(id)?;
            Some(
                json!({
                    "address": {"pci": id.as_str()},
                    "group": device.group.as_str(),
                    "driver": device.facts.dma.driver().unwrap_or_default(),
                    "condition": view::condition(device.condition()).as_str_name(),
                    "conditionNote": device.marks.get(&device.condition()).cloned().unwrap_or_default(),
                    "causes": view::causes(&device.health),
                    "cordon": view::cordon(device, &book.boot),
                    "onlyLabel": device.only_label,
                    "kernelDmaOrder": device.kernel_dma_op,
                })
                .to_string(),
            )
        }
        About::Store => Some(json!({"epochFloor": state.epoch_floor().0.to_string()}).to_string()),
    }
}

/// The object after a mark was taken away, with the reason that was given: it stands nowhere else.
pub(super) fn given_reason(event: &Event, after: Option<String>) -> Option<String> {
    let Event::Unmarked { why, .. } = event else { return after };
    let mut document: serde_json::Value = serde_json::from_str(after.as_deref()?).ok()?;
    document["reason"] = why.as_str().into();
    Some(document.to_string())
}

/// A group without the facts of its devices that don't change.
fn group(book: &Book, group: &Group) -> serde_json::Value {
    let drivers: serde_json::Map<String, serde_json::Value> = book
        .state
        .devices_of(group)
        .map(|device| {
            (device.facts.id.to_string(), device.facts.dma.driver().unwrap_or_default().into())
        })
        .collect();
    let overrides: serde_json::Map<String, serde_json::Value> = book
        .state
        .devices_of(group)
        .filter_map(|device| {
            let only = device.facts.driver_override.as_deref()?;
            Some((device.facts.id.to_string(), only.into()))
        })
        .collect();
    json!({
        "stableId": group.id.as_str(),
        "ownership": view::ownership_kind(&group.ownership).as_str_name(),
        "ownerCnt": group.ownership.owner_cnt(),
        "condition": view::condition(group.condition).as_str_name(),
        "drivers": drivers,
        "driverOverrides": overrides,
        "foreignPids": group.foreign_pids,
        "foreign": group.foreign,
    })
}

/// The groups and devices that an object concerns.
pub(super) fn concerned(book: &Book, about: &About) -> (Vec<String>, Vec<String>) {
    let state = &book.state;
    match about {
        About::Group(id) => {
            let devices = state
                .group(id)
                .map(|group| group.devices.iter().map(ToString::to_string).collect());
            (vec![id.to_string()], devices.unwrap_or_default())
        }
        About::Device(id) => {
            let groups = state.device(id).map(|device| vec![device.group.to_string()]);
            (groups.unwrap_or_default(), vec![id.to_string()])
        }
        About::Reservation(id) => state
            .reservation(id)
            .map(|record| {
                (
                    record.targets.iter().map(|target| target.group.to_string()).collect(),
                    record.devices().map(ToString::to_string).collect(),
                )
            })
            .unwrap_or_default(),
        About::Context(_) | About::Domain(_) | About::Store => (Vec::new(), Vec::new()),
    }
}
