//! What must always hold, worked out from the reservations alone: independently of how the state
//! keeps its groups up to date.

use std::collections::HashMap;

use crate::ids::{ContextId, DeviceId, DomainId, GroupId, ReservationId};
use crate::model::{OperationKind, Ownership, Policy, ReservationState};
use crate::record::{Context, Domain, Group, Reservation};
use crate::state::State;

/// From so many groups on, tables are worth their making.
const MANY_GROUPS: usize = 64;

/// The records by id. A check follows every reference of every record, and each start checks all
/// that is stored: with many records, tables find them several times faster than the state's trees.
struct Records<'s> {
    state: &'s State,
    tables: Option<Tables<'s>>,
}

struct Tables<'s> {
    groups: HashMap<&'s GroupId, &'s Group>,
    reservations: HashMap<&'s ReservationId, &'s Reservation>,
    contexts: HashMap<&'s ContextId, &'s Context>,
    domains: HashMap<&'s DomainId, &'s Domain>,
}

impl<'s> Records<'s> {
    fn of(state: &'s State) -> Self {
        let tables = || Tables {
            groups: state.groups().map(|group| (&group.id, group)).collect(),
            reservations: state.reservations().map(|record| (&record.id, record)).collect(),
            contexts: state.contexts().map(|context| (&context.id, context)).collect(),
            domains: state.domains().map(|domain| (&domain.id, domain)).collect(),
        };
        Self { state, tables: (state.groups.len() >= MANY_GROUPS).then(tables) }
    }

    fn group(&self, id: &GroupId) -> Option<&'s Group> {
        match &self.tables {
            Some(tables) => tables.groups.get(id).copied(),
            None => self.state.group(id),
        }
    }

    fn reservation(&self, id: &ReservationId) -> Option<&'s Reservation> {
        match &self.tables {
            Some(tables) => tables.reservations.get(id).copied(),
            None => self.state.reservation(id),
        }
    }

    fn context(&self, id: &ContextId) -> Option<&'s Context> {
        match &self.tables {
            Some(tables) => tables.contexts.get(id).copied(),
            None => self.state.context(id),
        }
    }

    fn domain(&self, id: &DomainId) -> Option<&'s Domain> {
        match &self.tables {
            Some(tables) => tables.domains.get(id).copied(),
            None => self.state.domain(id),
        }
    }
}

/// Checks a state.
///
/// # Errors
///
/// The invariant that is broken, in words.
pub fn check(state: &State) -> Result<(), String> {
    let records = Records::of(state);
    let mut holders: HashMap<&DeviceId, &Reservation> = HashMap::new();
    for reservation in state.reservations() {
        check_reservation(&records, reservation)?;
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
        check_group(&records, group)?;
    }
    for device in state.devices() {
        let id = &device.facts.id;
        let group = records.group(&device.group);
        if !group.is_some_and(|group| group.devices.contains(id)) {
            return Err(format!("{id} is not in its group {}", device.group));
        }
    }
    state.contexts().try_for_each(|context| check_context(&records, context))
}

/// All or nothing; the state tells the claims; an epoch is its groups' highest at most.
fn check_reservation(records: &Records<'_>, reservation: &Reservation) -> Result<(), String> {
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
    if claims != expected {
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
        let Some(group) = records.group(&target.group) else {
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
    check_context_of(records, reservation)
}

fn check_context_of(records: &Records<'_>, reservation: &Reservation) -> Result<(), String> {
    let id = &reservation.id;
    let Some(context) = records.context(&reservation.context) else {
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
    match records.domain(&reservation.domain) {
        Some(domain) if domain.context == context.id && domain.label == context.label => Ok(()),
        Some(domain) => Err(format!("{id} uses {} of {}", domain.id, domain.context)),
        None => Err(format!("{id} uses {}, which is not there", reservation.domain)),
    }
}

/// Never two owners; `owner_cnt` is the number of live claims.
fn check_group(records: &Records<'_>, group: &Group) -> Result<(), String> {
    let id = &group.id;
    let mut first: Option<&Reservation> = None;
    let mut claims = 0;
    for holder in &group.reservations {
        let Some(reservation) = records.reservation(holder).filter(|held| held.holds()) else {
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
    check_attached(records, group, owned)
}

fn check_attached(records: &Records<'_>, group: &Group, owned: bool) -> Result<(), String> {
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
    let Some(domain) = records.domain(attached) else {
        return Err(format!("{id} has {attached} attached, which is not there"));
    };
    let mut held = group.reservations.iter().filter_map(|id| records.reservation(id));
    let stranger = held.find(|held| held.context != domain.context);
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
fn check_context(records: &Records<'_>, context: &Context) -> Result<(), String> {
    let id = &context.id;
    for domain in &context.domains {
        let known = records.domain(domain);
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
        let Some(reservation) = records.reservation(reservation) else {
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
    let mut out = context.reservations.iter().filter_map(|id| records.reservation(id));
    let first = out.find(|reservation| reservation.is_handed_out());
    let other = first.and_then(|first| {
        out.find(|other| other.is_handed_out() && other.for_identity != first.for_identity)
    });
    match other {
        Some(other) => Err(format!("{id} is handed over to {} too", other.for_identity)),
        None => Ok(()),
    }
}
