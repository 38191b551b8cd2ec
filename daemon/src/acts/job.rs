//! What a piece of kernel work is about, in the host's words: group numbers and addresses.

use std::collections::BTreeSet;

use berth_host::{BackendKind, DmaKind, IovaRange, PciAddress};
use berth_ownership::{
    Backend, ContextId, Delivery, DeviceId, DomainId, GroupId, Policy, Reason, Refusal,
    Reservation, ReservationId, ReservationState,
};

use super::scheduler::Key;
use crate::model::Snapshot;

/// One group of the work.
#[derive(Clone, Debug)]
pub(crate) struct GroupJob {
    /// Its stable id.
    pub(crate) id: GroupId,
    /// The kernel's number now.
    pub(crate) number: u32,
    /// Everything in it, bridges too.
    pub(crate) members: Vec<PciAddress>,
    /// What the reservation claims of it.
    pub(crate) devices: Vec<PciAddress>,
    /// Ranges that must stay as they are.
    pub(crate) reserved: Vec<IovaRange>,
    /// Other reservations that hold it now.
    pub(crate) others: Vec<ReservationId>,
}

/// The reservation that the work is for.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Its id.
    pub(crate) reservation: ReservationId,
    /// How its claims are made.
    pub(crate) policy: Policy,
    /// How the holder gets the devices.
    pub(crate) delivery: Delivery,
    /// The kernel interface.
    pub(crate) backend: BackendKind,
    /// Who may fetch its devices.
    pub(crate) identity: String,
    /// Its context.
    pub(crate) context: ContextId,
    /// Its domain.
    pub(crate) domain: DomainId,
    /// Its groups.
    pub(crate) groups: Vec<GroupJob>,
    /// Devices that may be taken from host drivers.
    pub(crate) taken: Vec<PciAddress>,
    /// Whether any device was ever attached.
    pub(crate) ever_claimed: bool,
    /// Somebody else took its groups: what it still has is let go, and nothing more is claimed.
    pub(crate) lost: bool,
}

impl Job {
    /// The work's subject as the snapshot has it.
    ///
    /// # Errors
    /// `DEVICE_GONE` when a group or device isn't on the machine any more.
    pub(crate) fn of(snapshot: &Snapshot, id: &ReservationId) -> Result<Self, Box<Refusal>> {
        let reservation = snapshot.state.reservation(id).ok_or_else(|| {
            Refusal::new(Reason::NotFound, id, format!("there is no reservation {id}"))
        })?;
        let lost = reservation.state == ReservationState::Lost;
        let groups: Result<Vec<GroupJob>, Box<Refusal>> = reservation
            .targets
            .iter()
            // What is lost may be gone by now, and is given back all the same.
            .filter(|target| !lost || snapshot.group(&target.group).is_some())
            .map(|target| group_job(snapshot, reservation, &target.group, &target.devices))
            .collect();
        Ok(Self {
            reservation: id.clone(),
            policy: reservation.policy,
            delivery: reservation.delivery,
            backend: backend_kind(reservation.backend),
            identity: reservation.for_identity.clone(),
            context: reservation.context.clone(),
            domain: reservation.domain.clone(),
            groups: groups?,
            taken: reservation.taken.iter().filter_map(address).collect(),
            ever_claimed: reservation.ever_claimed,
            lost,
        })
    }

    /// The devices that the reservation claims.
    pub(crate) fn devices(&self) -> impl Iterator<Item = PciAddress> {
        self.groups.iter().flat_map(|group| group.devices.iter().copied())
    }

    /// What the work touches: members, their reset sets, and the context.
    pub(crate) fn keys(&self, snapshot: &Snapshot) -> Vec<Key> {
        let members: BTreeSet<PciAddress> =
            self.groups.iter().flat_map(|group| group.members.iter().copied()).collect();
        let mut keys = device_keys(snapshot, members);
        keys.push(Key::Context(self.context.clone()));
        keys
    }
}

/// What work on these devices touches.
pub(crate) fn device_keys(
    snapshot: &Snapshot,
    devices: impl IntoIterator<Item = PciAddress>,
) -> Vec<Key> {
    let mut touched = BTreeSet::new();
    for address in devices {
        touched.insert(address);
        if let Some(facts) = snapshot.device(address) {
            touched.extend(facts.reset_set.iter().copied());
            // Where its driver is VFIO's its token may have to be set.
            let managed = |at: &PciAddress| {
                snapshot.device(*at).is_some_and(|facts| facts.dma == DmaKind::Managed)
            };
            touched.extend(facts.physical_function.filter(managed));
        }
    }
    touched.into_iter().map(Key::Device).collect()
}

fn group_job(
    snapshot: &Snapshot,
    reservation: &Reservation,
    group: &GroupId,
    devices: &[DeviceId],
) -> Result<GroupJob, Box<Refusal>> {
    let gone = || {
        Refusal::new(
            Reason::DeviceGone,
            group,
            format!("group {group} of reservation {} is no longer there", reservation.id),
        )
    };
    let facts = snapshot.group(group).ok_or_else(gone)?;
    let record = snapshot.state.group(group).ok_or_else(gone)?;
    let others = snapshot
        .state
        .reservations_of(record)
        .filter(|other| other.id != reservation.id && other.holds())
        .map(|other| other.id.clone())
        .collect();
    Ok(GroupJob {
        id: group.clone(),
        number: facts.number,
        members: facts.members.clone(),
        // A device that somebody else has by now, as the reservation was lost, is left alone.
        devices: devices
            .iter()
            .filter(|id| {
                let holder =
                    snapshot.state.device(id).and_then(|d| snapshot.state.device_reservation(d));
                holder.is_none_or(|holder| holder.id == reservation.id)
            })
            .filter_map(address)
            .collect(),
        reserved: facts.reserved_regions.clone(),
        others,
    })
}

/// The address of a device of the record.
pub(crate) fn address(id: &DeviceId) -> Option<PciAddress> {
    id.as_str().parse().ok()
}

/// The record's id of a device.
pub(crate) fn device_id(address: PciAddress) -> DeviceId {
    DeviceId::new(address.to_string())
}

/// The host's word for a back end.
pub(crate) fn backend_kind(backend: Backend) -> BackendKind {
    match backend {
        Backend::Iommufd => BackendKind::Iommufd,
        Backend::Type1 => BackendKind::Type1,
    }
}
