//! What must always hold, worked out from the reservations alone: independently of how the state
//! keeps its groups up to date.

use std::collections::BTreeMap;

use crate::ids::DeviceId;
use crate::model::{OperationKind, Ownership, Policy, ReservationState};
use crate::record::{Context, Group, Reservation};
use crate::state::State;

/// Checks a state.
///
/// # Errors
///
/// The invariant that is broken, in words.
pub fn check(state: &State) -> Result<(), String> {
    let mut holders: BTreeMap<&DeviceId, &Reservation> = BTreeMap::new();
    for reservation in state.reservations() {
        check_reservation(state, reservation)?;
        if !reservation.holds() {
            continue;
        }
        for device in reservation.devices() {
            if let Some(other) = holders.insert(device, reservation) {
                return Err(format!("{device} is in {} and in {}", other.id, reservation.id));
            }
        }
    }
    for group in state.groups() {
        check_group(state, group)?;
    }
    for device in state.devices() {
        let id = &device.facts.id;
        let group = state.group(&device.group);
        if !group.is_some_and(|group| group.devices.contains(id)) {
            return Err(format!("{id} is not in its group {}", device.group));
        }
    }
    state.contexts().try_for_each(|context| check_context(state, context))
}

/// All or nothing; the state tells the claims; an epoch is its groups' highest at most.
fn check_reservation(state: &State, reservation: &Reservation) -> Result<(), String> {
    let id = &reservation.id;
    let expected = match reservation.state {
        ReservationState::Handed
        | ReservationState::Held
        | ReservationState::Expired
        | ReservationState::Draining => reservation.device_count(),
        ReservationState::Preparing
        | ReservationState::Reserved
        | ReservationState::Lost
        | ReservationState::Released => 0,
    };
    let (claims, word) = (reservation.claims, reservation.state);
    if claims != expected || (claims == 0 && expected != 0) {
        return Err(format!("{id} is {word} with {claims} claims instead of {expected}"));
    }
    let pending = reservation.pending.as_ref().map(|pending| pending.kind);
    let sound = match reservation.state {
        ReservationState::Preparing => pending == Some(OperationKind::Prepare),
        ReservationState::Released => pending.is_none(),
        ReservationState::Lost => matches!(pending, None | Some(OperationKind::Release)),
        _ => pending != Some(OperationKind::Prepare),
    };
    if !sound {
        return Err(format!("{id} is {word} while {pending:?} is under way"));
    }
    if reservation.state == ReservationState::Expired && reservation.resume.is_none() {
        return Err(format!("{id} has expired and has no state to return to"));
    }
    if !reservation.holds() {
        return Ok(());
    }
    for target in &reservation.targets {
        let Some(group) = state.group(&target.group) else {
            return Err(format!("{id} holds {}, which is not there", target.group));
        };
        if !group.reservations.contains(id) {
            return Err(format!("{id} holds {}, which doesn't know", group.id));
        }
        if reservation.epoch > group.epoch {
            return Err(format!("{id} has a higher epoch than {}", group.id));
        }
        let stray = target.devices.iter().find(|device| !group.devices.contains(device));
        if let Some(device) = stray {
            return Err(format!("{id} has {device}, which is not in {}", group.id));
        }
    }
    check_context_of(state, reservation)
}

fn check_context_of(state: &State, reservation: &Reservation) -> Result<(), String> {
    let id = &reservation.id;
    let Some(context) = state.context(&reservation.context) else {
        return Err(format!("{id} is in {}, which is not there", reservation.context));
    };
    if context.label != reservation.label {
        return Err(format!("{id} and its context {} differ in label", context.id));
    }
    if context.policy != reservation.policy || context.backend != reservation.backend {
        return Err(format!("{id} and its context {} differ in kind", context.id));
    }
    if !context.reservations.contains(id) {
        return Err(format!("{} does not know of {id}", context.id));
    }
    match state.domain(&reservation.domain) {
        Some(domain) if domain.context == context.id && domain.label == context.label => Ok(()),
        Some(domain) => Err(format!("{id} uses {} of {}", domain.id, domain.context)),
        None => Err(format!("{id} uses {}, which is not there", reservation.domain)),
    }
}

/// Never two owners; `owner_cnt` is the number of live claims.
fn check_group(state: &State, group: &Group) -> Result<(), String> {
    let id = &group.id;
    let mut first: Option<&Reservation> = None;
    let mut claims = 0;
    for holder in &group.reservations {
        let Some(reservation) = state.reservation(holder).filter(|held| held.holds()) else {
            return Err(format!("{id} is held by {holder}, which holds nothing"));
        };
        let here = reservation.targets.iter().filter(|target| target.group == *id);
        let devices: usize = here.map(|target| target.devices.len()).sum();
        if devices == 0 {
            return Err(format!("{id} is held by {holder}, which has no device in it"));
        }
        if reservation.claims > 0 {
            claims += devices;
        }
        if let Some(first) = first.filter(|first| !is_compatible(first, reservation)) {
            return Err(format!("{id} is held by {} and by {holder}", first.id));
        }
        first = first.or(Some(reservation));
    }
    let owned = match &group.ownership {
        Ownership::Exclusive { .. } | Ownership::Shared { .. } | Ownership::Group { .. } => true,
        Ownership::Free
        | Ownership::Kernel { .. }
        | Ownership::Private { .. }
        | Ownership::Foreign { .. } => false,
    };
    if owned != (claims > 0) {
        return Err(format!("{id} is {} with {claims} claims", group.ownership.word()));
    }
    let count = usize::try_from(group.ownership.owner_cnt()).unwrap_or(usize::MAX);
    if owned && count != claims {
        return Err(format!("{id} has owner_cnt {count} and {claims} claims"));
    }
    check_attached(state, group, owned)
}

fn check_attached(state: &State, group: &Group, owned: bool) -> Result<(), String> {
    let id = &group.id;
    if let Ownership::Group { domain, .. } = &group.ownership
        && *domain != group.attached
    {
        return Err(format!("{id} has another domain attached than its ownership says"));
    }
    let Some(attached) = &group.attached else { return Ok(()) };
    if !owned {
        return Err(format!("{id} has {attached} attached and no owner"));
    }
    let Some(domain) = state.domain(attached) else {
        return Err(format!("{id} has {attached} attached, which is not there"));
    };
    let stranger = state.reservations_of(group).find(|held| held.context != domain.context);
    match stranger {
        Some(stranger) => Err(format!("{id} has {attached} attached beside {}", stranger.id)),
        None => Ok(()),
    }
}

/// Whether two reservations may hold one group.
fn is_compatible(one: &Reservation, other: &Reservation) -> bool {
    if one.label != other.label || one.policy != other.policy || one.context != other.context {
        return false;
    }
    match one.policy {
        Policy::Exclusive => false,
        Policy::Shared => one.domain == other.domain,
        Policy::Group => one.token == other.token,
    }
}

/// One token, one label; one domain where a device fd could be moved to another.
fn check_context(state: &State, context: &Context) -> Result<(), String> {
    let id = &context.id;
    for domain in &context.domains {
        let known = state.domain(domain);
        if !known.is_some_and(|known| known.context == *id && known.label == context.label) {
            return Err(format!("{id} has {domain}, which doesn't say so"));
        }
    }
    match context.policy {
        Policy::Exclusive | Policy::Shared if context.domains.len() > 1 => {
            return Err(format!("{id} has {} domains", context.domains.len()));
        }
        Policy::Exclusive | Policy::Shared | Policy::Group => {}
    }
    let mut first: Option<&Reservation> = None;
    for reservation in &context.reservations {
        let Some(reservation) = state.reservation(reservation) else {
            return Err(format!("{id} is used by {reservation}, which is not there"));
        };
        let apart = first.is_some_and(|first| {
            first.label != reservation.label
                || (context.policy == Policy::Group && first.token != reservation.token)
        });
        if apart {
            return Err(format!("{id} is used by two labels or tokens"));
        }
        first = first.or(Some(reservation));
    }
    Ok(())
}
