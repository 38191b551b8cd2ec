//! The three policies, one file each, and what they have in common: how a group looks to the one
//! who asks, and the look-up of the answer.

mod exclusive;
mod group;
mod shared;

use crate::command::Reserve;
use crate::ids::{DeviceId, DomainId, ReservationId};
use crate::model::{Delivery, Ownership, Policy};
use crate::reason::{Errno, Reason};
use crate::record::{Flags, Group, Reservation};
use crate::state::State;
use crate::table::{Cell, Change, Operation, OwnershipRow};

/// Who asks for something in a group, and what is presented.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claimant<'a> {
    /// The reservation, once there is one.
    pub reservation: Option<&'a Reservation>,
    /// The policy; none for host drivers.
    pub policy: Option<Policy>,
    /// The domain that is presented.
    pub domain: Option<&'a DomainId>,
    /// The token that is presented.
    pub token: Option<&'a ReservationId>,
    /// What is presented is of another label.
    pub other_label: bool,
    /// The devices that are wanted.
    pub devices: &'a [DeviceId],
    /// What may be done to the host.
    pub flags: Flags,
    /// The foreign process that is to be its holder.
    pub adopts: Option<u32>,
}

/// A cell that said no.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Denial {
    /// What was met.
    pub row: OwnershipRow,
    /// Why not.
    pub reason: Reason,
    /// With which errno.
    pub errno: Errno,
}

/// Whether the policy allows the delivery.
pub(crate) fn delivers(policy: Policy, delivery: Delivery) -> bool {
    match policy {
        Policy::Exclusive => exclusive::delivers(delivery),
        Policy::Shared => shared::delivers(delivery),
        Policy::Group => group::delivers(delivery),
    }
}

/// What is wrong with a request whatever the state, if anything.
pub(crate) fn malformed(request: &Reserve) -> Option<&'static str> {
    match request.policy {
        Policy::Exclusive => exclusive::malformed(request),
        Policy::Shared => shared::malformed(request),
        Policy::Group => group::malformed(request),
    }
}

/// Whether a new reservation may hold the group.
pub(crate) fn admit(state: &State, group: &Group, claimant: &Claimant<'_>) -> Result<(), Denial> {
    let op = match claimant.policy {
        Some(Policy::Exclusive) => exclusive::reserve_column(group),
        Some(Policy::Shared) => shared::reserve_column(),
        Some(Policy::Group) => group::reserve_column(),
        None => return Ok(()),
    };
    let op = if claimant.other_label { Operation::ReserveOtherLabel } else { op };
    ask(state, group, claimant, op).map(|_| ())
}

/// Whether a reservation may begin with a foreign owner of the group as its holder.
pub(crate) fn adopt(state: &State, group: &Group, claimant: &Claimant<'_>) -> Result<(), Denial> {
    ask(state, group, claimant, Operation::Adopt)?;
    if claimant.policy == Some(Policy::Exclusive) && !exclusive::is_single(group) {
        let (row, reason) = (OwnershipRow::ForeignAdopted, Reason::GroupNotSingleton);
        return Err(Denial { row, reason, errno: reason.errno() });
    }
    Ok(())
}

/// The column under which a reservation attaches in the group.
pub(crate) fn attach_column(policy: Policy, group: &Group) -> Operation {
    match policy {
        Policy::Exclusive => exclusive::attach_column(group),
        Policy::Shared => shared::attach_column(),
        Policy::Group => group::attach_column(),
    }
}

/// Looks up every cell that the operation meets. All of them have to allow it.
pub(crate) fn ask(
    state: &State,
    group: &Group,
    claimant: &Claimant<'_>,
    op: Operation,
) -> Result<Change, Denial> {
    let mut answer = Change::Stays;
    for row in rows(state, group, claimant, op) {
        #[cfg(test)]
        crate::tests::coverage::note(row, op);
        match state.table().ownership(row, op) {
            Some(Cell::Next(change)) if answer == Change::Stays => answer = change,
            Some(Cell::Next(_)) => {}
            Some(Cell::Refuse(reason, errno)) => return Err(Denial { row, reason, errno }),
            None => {
                let reason = Reason::Internal;
                return Err(Denial { row, reason, errno: reason.errno() });
            }
        }
    }
    Ok(answer)
}

/// What the claimant meets in the group: first owners and holds, then what the host does.
pub(crate) fn rows(
    state: &State,
    group: &Group,
    claimant: &Claimant<'_>,
    op: Operation,
) -> Vec<OwnershipRow> {
    let mut rows = Vec::new();
    let holds = claimant.reservation.filter(|own| group.reservations.contains(&own.id));
    match holds {
        Some(own) => rows.push(own_row(state, group, own)),
        None => {
            for other in state.reservations_of(group) {
                let row = other_row(group, claimant, other);
                if !rows.contains(&row) {
                    rows.push(row);
                }
            }
        }
    }
    if !is_claimed(group) {
        rows.extend(host_rows(state, group, claimant, op));
    }
    if rows.is_empty() {
        rows.push(OwnershipRow::Free);
    }
    rows
}

fn is_claimed(group: &Group) -> bool {
    match group.ownership {
        Ownership::Exclusive { .. } | Ownership::Shared { .. } | Ownership::Group { .. } => true,
        Ownership::Free
        | Ownership::Kernel { .. }
        | Ownership::Private { .. }
        | Ownership::Foreign { .. } => false,
    }
}

fn own_row(state: &State, group: &Group, own: &Reservation) -> OwnershipRow {
    let others = state.reservations_of(group).any(|other| other.id != own.id && other.claims > 0);
    match own.policy {
        Policy::Exclusive => exclusive::own_row(own.claims > 0),
        Policy::Shared => shared::own_row(own.claims > 0, others),
        Policy::Group => group::own_row(own.claims > 0, others, group.attached.is_some()),
    }
}

fn other_row(group: &Group, claimant: &Claimant<'_>, other: &Reservation) -> OwnershipRow {
    let same = match claimant.policy {
        Some(Policy::Exclusive) | None => false,
        Some(Policy::Shared) => shared::is_same(claimant, other),
        Some(Policy::Group) => group::is_same(claimant, other),
    };
    if same && other.devices().any(|device| claimant.devices.contains(device)) {
        return OwnershipRow::DeviceTaken;
    }
    match other.policy {
        Policy::Exclusive => exclusive::other_row(other.claims > 0),
        Policy::Shared => shared::other_row(is_claimed(group), same),
        Policy::Group => group::other_row(is_claimed(group), same, group.attached.is_some()),
    }
}

/// What the host does with the group. Kernel DMA orders look at the uses of their device alone.
fn host_rows(
    state: &State,
    group: &Group,
    claimant: &Claimant<'_>,
    op: Operation,
) -> Vec<OwnershipRow> {
    let mut rows = Vec::new();
    let kernel_order = claimant.policy.is_none();
    let used = state.devices_of(group).any(|device| {
        let asked = !kernel_order || claimant.devices.contains(&device.facts.id);
        asked && !device.facts.uses.is_empty()
    });
    if used && !claimant.flags.host_uses_it_anyway {
        rows.push(OwnershipRow::HostUses);
    }
    match (group.foreign_pids.as_slice(), claimant.adopts) {
        ([], _) => {}
        ([alone], Some(adopted)) if *alone == adopted => rows.push(OwnershipRow::ForeignAdopted),
        _ => rows.push(OwnershipRow::Foreign),
    }
    let busy = state.devices_of(group).any(|device| state.is_busy(device));
    let private = state.devices_of(group).any(|device| device.facts.private_domain);
    let kernel = state.devices_of(group).any(|device| device.facts.uses_kernel_dma());
    // A driver may be set beside another one, but nothing is given up by that.
    let given_up = match op {
        Operation::KernelDmaRelease => used && claimant.flags.host_uses_it_anyway,
        Operation::KernelDmaSet | Operation::Adopt => false,
        Operation::ReserveExclusive
        | Operation::ReserveExclusiveCrowded
        | Operation::ReserveShared
        | Operation::ReserveGroup
        | Operation::ReserveOtherLabel
        | Operation::Attach
        | Operation::AttachCrowded
        | Operation::Detach
        | Operation::Replace
        | Operation::Release => {
            let kept = state.devices_of(group).any(|device| device.facts.is_kept());
            claimant.flags.take_from_host && !kept
        }
    };
    match (busy, private, kernel) {
        (true, _, _) => rows.push(OwnershipRow::KernelBusy),
        (false, _, true) if given_up => rows.push(OwnershipRow::KernelTaken),
        (false, true, _) => rows.push(OwnershipRow::Private),
        (false, false, true) => rows.push(OwnershipRow::Kernel),
        (false, false, false) => {}
    }
    rows
}
