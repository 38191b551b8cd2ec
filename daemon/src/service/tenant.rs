//! Callers who are confined to a label: they see and touch what is under it, and are told nothing of
//! what is under others.

use berth_ownership::{Domain, Label, Reason, Refusal, Reservation, State};
use berth_proto::v1;

use crate::{
    model::{ApiError, Call, Caller, Snapshot},
    store::EventRecord,
};

/// Whether something under a label is there at all, for this caller.
pub(super) fn may_see(caller: &Caller, label: &Label) -> bool {
    caller.tenant.as_deref().is_none_or(|tenant| tenant == label.as_str())
}

/// A reservation that was found, where the caller may know of it; else it is as if it weren't.
pub(super) fn visible<'a>(
    caller: &Caller,
    found: Result<&'a Reservation, ApiError>,
) -> Result<&'a Reservation, ApiError> {
    found.and_then(|record| {
        let id = record.id.as_str();
        if may_see(caller, &record.label) {
            Ok(record)
        } else {
            Err(super::find::no_reservation(id))
        }
    })
}

/// The same of a domain, by its context's label.
pub(super) fn visible_domain<'a>(
    caller: &Caller,
    state: &State,
    found: Result<&'a Domain, ApiError>,
) -> Result<&'a Domain, ApiError> {
    found.and_then(|domain| {
        let label = state.context(&domain.context).map(|context| &context.label);
        let seen = label.is_none_or(|label| may_see(caller, label));
        if seen { Ok(domain) } else { Err(super::find::no_domain(domain.id.as_str())) }
    })
}

/// The label of something that is asked for: what the request says, else what is usual. Whoever is
/// confined to a label gets no other.
pub(super) fn label(caller: &Caller, asked: &str, usual: &str) -> Result<Label, ApiError> {
    let Some(tenant) = caller.tenant.as_deref() else { return super::parse::label(asked, usual) };
    if asked.is_empty() || asked == tenant {
        return Ok(Label::new(tenant));
    }
    let text =
        format!("{} is confined to the label {tenant}, and asks for {asked}", caller.identity);
    let refusal = Refusal::new(Reason::PermissionDenied, "label", text);
    Err(ApiError::Refused(refusal.with_resolve(vec!["leave label out".to_owned()])))
}

/// Calls about the host as a whole, whose answers tell of all labels.
pub(super) fn spans_labels(call: Call) -> bool {
    matches!(
        call,
        Call::Explain
            | Call::QueryKernelDma
            | Call::SetKernelDma
            | Call::ReleaseKernelDma
            | Call::Cordon
            | Call::Uncordon
            | Call::ClearQuarantine
            | Call::Adopt
            | Call::Diagnose
            | Call::GetSnapshot
            | Call::SnapshotWithSerials
            | Call::GetConfig
            | Call::WhatIf
    )
}

/// Whether an event is about something under the caller's label. What isn't on record any more is
/// known by what the event says of it.
pub(super) fn may_see_event(tenant: &str, snapshot: &Snapshot, event: &EventRecord) -> bool {
    if event.reservation.is_empty() {
        return false;
    }
    let id = berth_ownership::ReservationId::new(&event.reservation);
    if let Some(record) = snapshot.state.reservation(&id) {
        return record.label.as_str() == tenant;
    }
    let says = |object: &Option<String>| {
        let object: Option<serde_json::Value> =
            object.as_deref().and_then(|json| serde_json::from_str(json).ok());
        object.is_some_and(|object| object["label"] == tenant)
    };
    says(&event.after) || says(&event.before)
}

/// A group without what it tells of other labels: that it isn't free stays.
pub(super) fn show_group(caller: &Caller, snapshot: &Snapshot, mut group: v1::Group) -> v1::Group {
    let Some(tenant) = caller.tenant.as_deref() else { return group };
    let own = |id: &String| {
        let id = berth_ownership::ReservationId::new(id);
        snapshot.state.reservation(&id).is_some_and(|record| record.label.as_str() == tenant)
    };
    group.reservations.retain(own);
    if let Some(owner) = &mut group.owner
        && owner.label != tenant
    {
        *owner = v1::Owner { kind: owner.kind, claims: owner.claims, ..v1::Owner::default() };
    }
    group.drift.clear();
    group.condition_note.clear();
    group.devices = group.devices.into_iter().map(|device| show_device(caller, device)).collect();
    group
}

/// A device without the processes that have it, what the host does with it, and notes that name others.
pub(super) fn show_device(caller: &Caller, device: v1::Device) -> v1::Device {
    if caller.tenant.is_none() {
        return device;
    }
    v1::Device {
        foreign: Vec::new(),
        host_uses: Vec::new(),
        condition_note: String::new(),
        baseline: None,
        ..device
    }
}

/// An error without what it tells of other labels.
pub(super) fn conceal(caller: &Caller, error: ApiError) -> ApiError {
    let Some(tenant) = caller.tenant.as_deref() else { return error };
    let refusal = error.refusal();
    let owner = refusal.owner.as_ref().and_then(|owner| owner.label.as_ref());
    if !names_others(refusal.reason) || owner.is_some_and(|label| label.as_str() == tenant) {
        return error;
    }
    let row = refusal.reason.row();
    let object = if refusal.object.starts_with("r-") { "reservation" } else { &refusal.object };
    let text = format!("{object}: {}", row.title);
    let concealed = Refusal::new(refusal.reason, object, text).with_errno(refusal.errno);
    ApiError::Refused(concealed)
}

/// Reasons whose refusals name who or what is in the way.
fn names_others(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::GroupOwned
            | Reason::ForeignOwner
            | Reason::NotTheOwner
            | Reason::DomainMismatch
            | Reason::LabelMismatch
            | Reason::ResetScope
            | Reason::KernelDma
            | Reason::HostUsesDevice
            | Reason::GroupNotViable
            | Reason::GroupNotSingleton
            | Reason::Quarantined
            | Reason::Cordoned
            | Reason::DeniedByRule
            | Reason::Wedged
            | Reason::HolderDraining
            | Reason::DomainInUse
            | Reason::ReservationBusy
            | Reason::AlreadyExists
            | Reason::NotForYou
    )
}
