//! Events change the state. Every event is taken in every state; what it names and is not there
//! is passed over.

mod condition;
mod host;
mod sriov;

use std::sync::Arc;

use crate::event::{DeviceLeft, Event};
use crate::ids::{DeviceId, DomainId, GroupId, ReservationId};
use crate::model::{
    Condition, DriverDma, OperationKind, Ownership, Policy, ReservationState, ResetPolicy,
};
use crate::record::{Context, Device, Domain, Group, Reservation};
use crate::state::State;
use condition::assess;

impl State {
    /// Takes an event. Never fails and never panics.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::GroupObserved { facts } => self.observe(facts),
            Event::GroupGone { group } => self.drop_group(group),
            Event::DeviceGone { device } => self.drop_device(device),
            Event::ContextCreated { context } => {
                self.contexts.insert(context.id.clone(), Arc::new(context.clone()));
            }
            Event::ContextDeleted { context } => {
                self.contexts.remove(context);
            }
            Event::DomainCreated { domain } => self.insert_domain(domain),
            Event::DomainDeleted { domain } => self.drop_domain(domain),
            Event::Reserved { reservation } => self.insert_reservation(reservation),
            Event::Forgotten { reservation } => {
                self.reservations.remove(reservation);
            }
            Event::Released { reservation, devices, detail } => {
                self.release(reservation, devices, detail);
            }
            Event::HoldLost { reservation, why } => self.lose(reservation, why),
            Event::KernelDmaStarted { device, op } => {
                self.on_device(device, |device| device.kernel_dma_op = Some(op.clone()));
            }
            Event::KernelDmaChanged { device, dma } => self.on_device(device, |device| {
                device.kernel_dma_op = None;
                device.facts.private_domain &= dma.uses_kernel_dma();
                device.facts.dma = dma.clone();
            }),
            Event::KernelDmaFailed { device, .. } => {
                self.on_device(device, |device| device.kernel_dma_op = None);
            }
            Event::SriovStarted { .. } | Event::SriovChanged { .. } | Event::SriovFailed { .. } => {
                self.sriov(event)
            }
            Event::Marked { device, condition, why, term } => {
                self.mark_with(device, *condition, why, term.as_ref());
            }
            Event::Unmarked { device, condition, .. } => self.unmark(device, *condition),
            Event::Assessed { device, health } => {
                self.on_device(device, |device| assess(device, health));
            }
            Event::EpochRaised { floor } => self.epoch_floor = self.epoch_floor.max(*floor),
            Event::Started { reservation, .. }
            | Event::Failed { reservation, .. }
            | Event::Prepared { reservation, .. }
            | Event::Attached { reservation, .. }
            | Event::Detached { reservation }
            | Event::Replaced { reservation, .. }
            | Event::Handed { reservation, .. }
            | Event::HandOverUndone { reservation }
            | Event::BindSeen { reservation, .. }
            | Event::HolderGone { reservation, .. }
            | Event::HolderMoved { reservation, .. }
            | Event::HolderPassed { reservation, .. }
            | Event::Renewed { reservation, .. }
            | Event::Expired { reservation }
            | Event::DetachedByRestart { reservation, .. } => {
                self.on_reservation(reservation, event);
            }
        }
    }

    /// Takes many events.
    pub fn apply_all<'a>(&mut self, events: impl IntoIterator<Item = &'a Event>) {
        for event in events {
            self.apply(event);
        }
    }

    fn on_reservation(&mut self, id: &ReservationId, event: &Event) {
        let Some(slot) = self.reservations.get_mut(id) else { return };
        let reservation = Arc::make_mut(slot);
        if reservation.state == ReservationState::Released {
            return;
        }
        change_reservation(reservation, event);
        let policy = reservation.policy;
        let taken = match event {
            // The host drivers are off: that is what being prepared means.
            Event::Prepared { .. } => reservation.taken.clone(),
            _ => Vec::new(),
        };
        let groups: Vec<GroupId> =
            reservation.targets.iter().map(|target| target.group.clone()).collect();
        for group in &groups {
            if let Event::Handed { process, .. } = event {
                self.is_known(group, process.pid);
            }
            if policy == Policy::Group {
                self.set_attached(group, event);
            }
            self.refresh(group);
        }
        for device in &taken {
            self.on_device(device, |device| {
                device.facts.dma = DriverDma::None;
                device.facts.private_domain = false;
                device.facts.uses.clear();
            });
        }
    }

    /// A process that is a holder is none that we don't know.
    fn is_known(&mut self, group: &GroupId, pid: u32) {
        let Some(slot) = self.groups.get_mut(group) else { return };
        if slot.foreign_pids.contains(&pid) {
            let group = Arc::make_mut(slot);
            group.foreign_pids.retain(|other| *other != pid);
            group.foreign.retain(|other| other.pid != pid);
        }
    }

    /// Under the group policy the attached domain is the group's: it moves for all of the token.
    fn set_attached(&mut self, group: &GroupId, event: &Event) {
        let Some(slot) = self.groups.get_mut(group) else { return };
        match event {
            Event::Attached { domain, .. } | Event::Replaced { domain, .. } => {
                Arc::make_mut(slot).attached = Some(domain.clone());
            }
            Event::Handed { reservation, .. } => {
                let Some(reservation) = self.reservations.get(reservation) else { return };
                if reservation.delivery.holder_owns_domain() {
                    Arc::make_mut(slot).attached = Some(reservation.domain.clone());
                }
            }
            Event::Detached { .. } => Arc::make_mut(slot).attached = None,
            _ => {}
        }
    }

    fn insert_reservation(&mut self, reservation: &Reservation) {
        self.reservations.insert(reservation.id.clone(), Arc::new(reservation.clone()));
        if let Some(context) = self.contexts.get_mut(&reservation.context) {
            push_once(&mut Arc::make_mut(context).reservations, &reservation.id);
        }
        for target in &reservation.targets {
            if let Some(group) = self.groups.get_mut(&target.group) {
                let group = Arc::make_mut(group);
                group.epoch = group.epoch.max(reservation.epoch);
                push_once(&mut group.reservations, &reservation.id);
            }
            self.refresh(&target.group);
        }
    }

    fn insert_domain(&mut self, domain: &Domain) {
        if let Some(context) = self.contexts.get_mut(&domain.context) {
            push_once(&mut Arc::make_mut(context).domains, &domain.id);
        }
        self.domains.insert(domain.id.clone(), Arc::new(domain.clone()));
    }

    fn drop_domain(&mut self, id: &DomainId) {
        let Some(domain) = self.domains.remove(id) else { return };
        if let Some(context) = self.contexts.get_mut(&domain.context) {
            let context: &mut Context = Arc::make_mut(context);
            context.domains.retain(|other| other != id);
        }
    }

    /// Ends a reservation's claims and hold; the record stays.
    fn unhold(&mut self, id: &ReservationId, change: impl FnOnce(&mut Reservation)) {
        let Some(slot) = self.reservations.get_mut(id) else { return };
        let reservation = Arc::make_mut(slot);
        reservation.claims = 0;
        reservation.resume = None;
        change(reservation);
        let groups: Vec<GroupId> =
            reservation.targets.iter().map(|target| target.group.clone()).collect();
        for group in &groups {
            if let Some(slot) = self.groups.get_mut(group) {
                Arc::make_mut(slot).reservations.retain(|other| other != id);
            }
            self.refresh(group);
        }
    }

    fn release(&mut self, id: &ReservationId, devices: &[DeviceLeft], detail: &str) {
        self.unhold(id, |reservation| {
            reservation.state = ReservationState::Released;
            reservation.pending = None;
            reservation.expires = None;
            reservation.process = None;
            detail.clone_into(&mut reservation.detail);
        });
        self.pass_on_taken(id);
        let context = self.reservations.get(id).map(|reservation| reservation.context.clone());
        if let Some(slot) = context.and_then(|context| self.contexts.get_mut(&context)) {
            Arc::make_mut(slot).reservations.retain(|other| other != id);
        }
        for left in devices {
            self.on_device(&left.device, |device| {
                device.only_label.clone_from(&left.only_label);
                match left.reset_worked {
                    Some(true) => device.failed_resets = 0,
                    Some(false) => device.failed_resets = device.failed_resets.saturating_add(1),
                    None => {}
                }
                if let Some(why) = &left.quarantined {
                    device.marks.insert(Condition::Quarantined, why.clone());
                }
            });
        }
    }

    /// While others hold a group no host driver can be bound: the devices that were taken from
    /// the host go on to one of them, which gives them back.
    fn pass_on_taken(&mut self, id: &ReservationId) {
        let taken = self.reservations.get(id).map(|slot| slot.taken.clone()).unwrap_or_default();
        for device in taken {
            let heir = self
                .devices
                .get(&device)
                .and_then(|known| self.groups.get(&known.group))
                .and_then(|group| group.reservations.first().cloned());
            if let Some(slot) = heir.and_then(|heir| self.reservations.get_mut(&heir)) {
                let heir = Arc::make_mut(slot);
                heir.prepared = true;
                push_once(&mut heir.taken, &device);
            }
        }
    }

    fn lose(&mut self, id: &ReservationId, why: &str) {
        let Some(reservation) = self.reservations.get(id).map(|slot| Reservation::clone(slot))
        else {
            return;
        };
        if reservation.state == ReservationState::Released {
            return;
        }
        self.unhold(id, |reservation| {
            reservation.state = ReservationState::Lost;
            why.clone_into(&mut reservation.detail);
            keep_only_release(reservation);
        });
        if reservation.ever_claimed && reservation.reset_policy != ResetPolicy::None {
            for device in reservation.devices() {
                self.on_device(device, |device| {
                    device.only_label = Some(reservation.label.clone());
                });
            }
        }
    }

    fn on_device(&mut self, id: &DeviceId, change: impl FnOnce(&mut Device)) {
        let Some(slot) = self.devices.get_mut(id) else { return };
        let device = Arc::make_mut(slot);
        change(device);
        let group = device.group.clone();
        self.refresh(&group);
    }

    /// Works out a group's ownership, condition and drift from its devices and reservations.
    pub(crate) fn refresh(&mut self, id: &GroupId) {
        let Some(group) = self.groups.get(id) else { return };
        let claimed = self.claimed(group);
        let facts = self.observed(group);
        let (condition, note) = self.worst(group);
        let Some(slot) = self.groups.get_mut(id) else { return };
        let group = Arc::make_mut(slot);
        if claimed.is_none() {
            group.attached = None;
        }
        group.drift = claimed.is_some() && facts != Ownership::Free;
        group.ownership = claimed.unwrap_or(facts);
        group.condition = condition;
        group.note = note;
    }

    fn claimed(&self, group: &Group) -> Option<Ownership> {
        let mut claims = 0_u32;
        let mut first: Option<&Reservation> = None;
        for reservation in self.reservations_of(group).filter(|reservation| reservation.claims > 0)
        {
            first = first.or(Some(reservation));
            let here = reservation.targets.iter().filter(|target| target.group == group.id);
            let count: usize = here.map(|target| target.devices.len()).sum();
            claims = claims.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        }
        let first = first?;
        Some(match first.policy {
            Policy::Exclusive => Ownership::Exclusive { claim: first.id.clone() },
            Policy::Shared => Ownership::Shared {
                context: first.context.clone(),
                domain: first.domain.clone(),
                claims,
            },
            Policy::Group => Ownership::Group {
                token: first.token.clone(),
                claims,
                domain: group.attached.clone(),
            },
        })
    }

    /// Who has the group as far as the host says.
    pub(crate) fn observed(&self, group: &Group) -> Ownership {
        if !group.foreign_pids.is_empty() {
            return Ownership::Foreign { pids: group.foreign_pids.clone() };
        }
        let users = self.devices_of(group).filter(|device| device.facts.uses_kernel_dma()).count();
        let n = u32::try_from(users).unwrap_or(u32::MAX);
        let private = self.devices_of(group).any(|device| device.facts.private_domain);
        match (n, private) {
            (0, _) => Ownership::Free,
            (n, true) => Ownership::Private { n },
            (n, false) => Ownership::Kernel { n },
        }
    }

    fn worst(&self, group: &Group) -> (Condition, String) {
        let worst = self.devices_of(group).max_by_key(|device| device.condition());
        let Some(device) = worst else { return (Condition::Ok, String::new()) };
        let condition = device.condition();
        let note = device.marks.get(&condition).map(|why| format!("{}: {why}", device.facts.id));
        (condition, note.unwrap_or_default())
    }
}

/// Changes one reservation by one event about it.
fn change_reservation(reservation: &mut Reservation, event: &Event) {
    match event {
        Event::Started { pending, .. } => reservation.pending = Some(pending.clone()),
        Event::Failed { why, .. } => {
            reservation.pending = None;
            why.clone_into(&mut reservation.detail);
        }
        Event::Prepared { hold, .. } => {
            reservation.pending = None;
            reservation.prepared = true;
            reservation.hold = *hold;
            reservation.state = ReservationState::Reserved;
        }
        Event::Attached { domain, .. } => {
            reservation.pending = None;
            reservation.domain = domain.clone();
            claim(reservation, ReservationState::Held);
        }
        Event::Detached { .. } => {
            reservation.pending = None;
            match reservation.policy {
                Policy::Exclusive | Policy::Shared => unclaim(reservation),
                Policy::Group => {}
            }
        }
        Event::Replaced { domain, .. } => {
            reservation.pending = None;
            reservation.domain = domain.clone();
        }
        Event::Handed { process, .. } => {
            reservation.pending = None;
            reservation.process = Some(process.clone());
            if reservation.delivery.holder_owns_domain() && reservation.claims == 0 {
                claim(reservation, ReservationState::Handed);
            }
        }
        Event::HandOverUndone { .. } | Event::HolderGone { expires: None, .. } => {
            unclaim(reservation);
        }
        Event::HolderGone { expires, .. } => {
            unclaim(reservation);
            reservation.expires.clone_from(expires);
        }
        Event::BindSeen { .. } | Event::HolderMoved { .. } | Event::HolderPassed { .. } => {
            change_holder(reservation, event);
        }
        Event::DetachedByRestart { why, expires, .. } => {
            unclaim(reservation);
            why.clone_into(&mut reservation.detail);
            reservation.expires.clone_from(expires);
            if reservation.state != ReservationState::Preparing {
                keep_only_release(reservation);
            }
        }
        _ => change_lease(reservation, event),
    }
}

/// Changes who has one reservation, and how.
fn change_holder(reservation: &mut Reservation, event: &Event) {
    match event {
        Event::BindSeen { process, .. } => {
            match reservation.state {
                ReservationState::Handed => reservation.state = ReservationState::Held,
                _ => reservation.resume = reservation.resume.map(|_| ReservationState::Held),
            }
            // The same by pid and start time, under another name perhaps.
            if process.is_some() && reservation.process == *process {
                reservation.process.clone_from(process);
            }
        }
        Event::HolderMoved { process, .. } => {
            // The holder itself may be dead, and what it sent to somebody not received yet.
            reservation.detail = match reservation.process.replace(process.clone()) {
                Some(holder) if holder == *process => {
                    format!("what {process} had is still open")
                }
                _ => format!("{process} still has the devices open"),
            };
            reservation.resume = None;
            reservation.state = ReservationState::Draining;
        }
        Event::HolderPassed { process, .. } => {
            reservation.process = Some(process.clone());
            reservation.detail = match reservation.state {
                ReservationState::Draining => format!("{process} still has the devices open"),
                _ => format!("{process} came of the holder and has the devices open"),
            };
        }
        _ => {}
    }
}

/// Changes the lease of one reservation.
fn change_lease(reservation: &mut Reservation, event: &Event) {
    match event {
        Event::Renewed { ttl_ms, expires, .. } => {
            reservation.ttl_ms = *ttl_ms;
            reservation.expires.clone_from(expires);
            if let Some(resume) = reservation.resume.take() {
                reservation.state = resume;
            }
        }
        Event::Expired { .. } => {
            reservation.resume = Some(reservation.state);
            reservation.state = ReservationState::Expired;
        }
        _ => {}
    }
}

fn claim(reservation: &mut Reservation, state: ReservationState) {
    reservation.claims = reservation.device_count();
    reservation.ever_claimed = true;
    reservation.state = state;
}

fn unclaim(reservation: &mut Reservation) {
    reservation.claims = 0;
    reservation.process = None;
    reservation.resume = None;
    match reservation.state {
        ReservationState::Reserved
        | ReservationState::Handed
        | ReservationState::Held
        | ReservationState::Expired
        | ReservationState::Draining => reservation.state = ReservationState::Reserved,
        ReservationState::Preparing | ReservationState::Lost | ReservationState::Released => {}
    }
}

/// Kernel work that is moot ends; giving back goes on.
fn keep_only_release(reservation: &mut Reservation) {
    let pending = reservation.pending.take();
    reservation.pending = pending.filter(|pending| pending.kind == OperationKind::Release);
}

fn push_once<T: Clone + PartialEq>(list: &mut Vec<T>, item: &T) {
    if !list.contains(item) {
        list.push(item.clone());
    }
}
