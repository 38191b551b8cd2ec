//! Finding what a request names: groups by id, number or member; reservations; devices.

use berth_host::{DeviceFacts, PciAddress};
use berth_ownership::{Domain, DomainId, Group, GroupId, Reservation, ReservationId};
use berth_proto::v1;

use crate::model::{ApiError, Snapshot};

/// A group by stable id, kernel number or member's address.
pub(super) fn group<'a>(snapshot: &'a Snapshot, text: &str) -> Result<&'a Group, ApiError> {
    let missing = || {
        ApiError::not_found(
            text,
            format!("no group is called {text:?} and none has it as a member"),
        )
    };
    if text.starts_with("g-") {
        return snapshot.state.group(&GroupId::new(text)).ok_or_else(missing);
    }
    if let Ok(number) = text.parse::<u32>() {
        let facts = snapshot.group_by_number(number).ok_or_else(missing)?;
        return snapshot.state.group(&GroupId::new(&facts.stable_id)).ok_or_else(missing);
    }
    let address: PciAddress = text.parse().map_err(|_| {
        ApiError::invalid_argument(
            "group",
            format!("{text:?} is not a group"),
            "name it as g-0123456789ab, by its number, or by a member's address",
        )
    })?;
    let facts = device(snapshot, address)?;
    group_of(snapshot, facts)
}

/// The group of a device.
pub(super) fn group_of<'a>(
    snapshot: &'a Snapshot,
    facts: &DeviceFacts,
) -> Result<&'a Group, ApiError> {
    let at = facts.address;
    snapshot.group_of(at).ok_or_else(|| {
        ApiError::not_found(
            at,
            format!("{at} has no IOMMU group: the IOMMU is off, or doesn't cover the device"),
        )
    })
}

/// A device.
pub(super) fn device(snapshot: &Snapshot, address: PciAddress) -> Result<&DeviceFacts, ApiError> {
    snapshot
        .device(address)
        .ok_or_else(|| ApiError::not_found(address, format!("no device is at {address}")))
}

/// What is to be explained: a group, also as the first one of a reservation whose memory is asked
/// about.
pub(super) fn explained(
    snapshot: &Snapshot,
    request: &v1::ExplainRequest,
) -> Result<(Group, Option<Reservation>), ApiError> {
    if request.memory_bytes == 0 || !request.object.starts_with("r-") {
        return group(snapshot, &request.object).map(|found| (found.clone(), None));
    }
    let found = reservation(snapshot, &request.object)?;
    let first = found.targets.first().map(|target| target.group.as_str()).unwrap_or_default();
    Ok((group(snapshot, first)?.clone(), Some(found.clone())))
}

/// A reservation, released ones too while they are remembered.
pub(super) fn reservation<'a>(
    snapshot: &'a Snapshot,
    id: &str,
) -> Result<&'a Reservation, ApiError> {
    if id.is_empty() {
        return Err(ApiError::invalid_argument(
            "id",
            "id is missing",
            "name a reservation like r-0123456789ab; `berth reservation list` shows them",
        ));
    }
    snapshot.state.reservation(&ReservationId::new(id)).ok_or_else(|| no_reservation(id))
}

/// There is none of that name, or none that the caller may know of.
pub(super) fn no_reservation(id: &str) -> ApiError {
    ApiError::not_found(id, format!("no reservation is called {id:?}"))
}

/// The same of a domain.
pub(super) fn no_domain(id: &str) -> ApiError {
    ApiError::not_found(id, format!("no domain is called {id:?}"))
}

/// A domain.
pub(super) fn domain<'a>(snapshot: &'a Snapshot, id: &str) -> Result<&'a Domain, ApiError> {
    if id.is_empty() {
        return Err(ApiError::invalid_argument(
            "id",
            "id is missing",
            "name a domain like d-0123456789ab; `berth domain list` shows them",
        ));
    }
    snapshot.state.domain(&DomainId::new(id)).ok_or_else(|| no_domain(id))
}

/// What events are filtered by: a reservation's id, a group's stable id, a device in full.
pub(super) fn event_object(snapshot: &Snapshot, text: &str) -> Result<String, ApiError> {
    if text.is_empty() || text.starts_with("r-") || text.starts_with("g-") {
        return Ok(text.to_owned());
    }
    if let Ok(address) = text.parse::<PciAddress>() {
        return Ok(address.to_string());
    }
    group(snapshot, text).map(|group| group.id.to_string())
}
