//! Orders for a reservation: attach, detach, replace, hand over, renew, release.

use super::{Decision, start};
use crate::command::Order as OrderFor;
use crate::event::{DeviceLeft, Event};
use crate::ids::{DomainId, Expiry, ReservationId, Time};
use crate::model::{Backend, OperationKind, Policy};
use crate::policy;
use crate::reason::Reason;
use crate::record::{HolderProcess, Pending, Reservation};
use crate::refusal::Refusal;
use crate::state::State;
use crate::table::{ConditionOp, LifeChange, Operation, Order};

impl State {
    pub(super) fn decide_attach(
        &self,
        order: &OrderFor,
        domain: Option<&DomainId>,
        now: &Time,
    ) -> Decision {
        let reservation = self.find_ordered(order)?;
        check_daemon_attaches(reservation, "attach")?;
        self.life(reservation, Order::Attach)?;
        let domain = match domain {
            Some(domain) => self.check_same_context(reservation, domain)?,
            None => &reservation.domain,
        };
        self.find_domain(domain)?;
        self.check_attach(reservation)?;
        self.check_group_domain(reservation, domain)?;
        let (id, mut pending) = start(reservation, OperationKind::Attach, now);
        pending.domain = Some(domain.clone());
        Ok(vec![Event::Started { reservation: id, pending }])
    }

    /// Whether the reservation's claims may begin.
    fn check_attach(&self, reservation: &Reservation) -> Result<(), Box<Refusal>> {
        self.conditions_allow(reservation, ConditionOp::Attach)?;
        let policy = reservation.policy;
        self.ownership_allows(
            reservation,
            |group| policy::attach_column(policy, group),
            Some(Reason::AlreadyAttached),
        )
    }

    /// Who joins an attached group takes the domain that the token attached there.
    fn check_group_domain(
        &self,
        reservation: &Reservation,
        domain: &DomainId,
    ) -> Result<(), Box<Refusal>> {
        for target in &reservation.targets {
            let attached = self.group(&target.group).and_then(|group| group.attached.as_ref());
            if let Some(attached) = attached.filter(|attached| *attached != domain) {
                let text = format!(
                    "attach {} to {domain} in {}: the token has {attached} attached there",
                    reservation.id, target.group
                );
                return Err(Refusal::new(Reason::DomainMismatch, &target.group, text)
                    .with_resolve(vec![
                        format!("berth attach {} --domain {attached}", reservation.id),
                        format!(
                            "berth domain replace --reservation {} --domain {domain}",
                            reservation.token
                        ),
                    ]));
            }
        }
        Ok(())
    }

    fn check_same_context<'a>(
        &self,
        reservation: &Reservation,
        domain: &'a DomainId,
    ) -> Result<&'a DomainId, Box<Refusal>> {
        let record = self.find_domain(domain)?;
        if record.context == reservation.context {
            return Ok(domain);
        }
        let text = format!(
            "{domain} is in {}, but {} is in {}: a domain serves its own context only",
            record.context, reservation.id, reservation.context
        );
        Err(Refusal::new(Reason::InvalidArgument, domain, text))
    }

    pub(super) fn decide_detach(&self, order: &OrderFor, now: &Time) -> Decision {
        let reservation = self.find_ordered(order)?;
        check_daemon_attaches(reservation, "detach")?;
        self.life(reservation, Order::Detach)?;
        self.ownership_allows(reservation, |_| Operation::Detach, Some(Reason::NotAttached))?;
        self.conditions_allow(reservation, ConditionOp::Detach)?;
        let (id, pending) = start(reservation, OperationKind::Detach, now);
        Ok(vec![Event::Started { reservation: id, pending }])
    }

    pub(super) fn decide_replace(
        &self,
        order: &OrderFor,
        domain: &DomainId,
        now: &Time,
    ) -> Decision {
        let reservation = self.find_ordered(order)?;
        check_daemon_attaches(reservation, "replace")?;
        self.life(reservation, Order::Replace)?;
        self.ownership_allows(reservation, |_| Operation::Replace, None)?;
        if reservation.backend == Backend::Type1 {
            let text = format!(
                "replace the domain of {}: a type1 container has one domain for good",
                reservation.id
            );
            return Err(Refusal::new(Reason::BackendCannot, &reservation.id, text));
        }
        self.check_same_context(reservation, domain)?;
        self.conditions_allow(reservation, ConditionOp::Replace)?;
        let (id, mut pending) = start(reservation, OperationKind::Replace, now);
        pending.domain = Some(domain.clone());
        Ok(vec![Event::Started { reservation: id, pending }])
    }

    pub(super) fn decide_hand_over(
        &self,
        order: &OrderFor,
        process: &HolderProcess,
        now: &Time,
    ) -> Decision {
        let reservation = self.find_ordered(order)?;
        let change = self.life(reservation, Order::HandOver)?;
        let begins = change == LifeChange::Handed;
        if begins && reservation.delivery.holder_owns_domain() {
            self.check_attach(reservation)?;
            self.check_one_identity(reservation)?;
            let (id, mut pending) = start(reservation, OperationKind::HandOver, now);
            pending.process = Some(process.clone());
            return Ok(vec![Event::Started { reservation: id, pending }]);
        }
        if reservation.claims == 0 {
            let text = format!("hand {} over: nothing is attached yet", reservation.id);
            return Err(Refusal::new(Reason::NotAttached, &reservation.id, text)
                .with_resolve(vec![format!("berth attach {}", reservation.id)]));
        }
        if reservation.process.as_ref() == Some(process) {
            // It has them already: nothing changes, so nothing has to be on the disk first.
            return Ok(Vec::new());
        }
        let reservation = reservation.id.clone();
        Ok(vec![Event::Handed { reservation, process: process.clone() }])
    }

    /// Who has a context by itself may attach every device in it, so no other identity gets one.
    fn check_one_identity(&self, reservation: &Reservation) -> Result<(), Box<Refusal>> {
        let there = self.context(&reservation.context).into_iter().flat_map(|it| &it.reservations);
        let other = there
            .filter_map(|id| self.reservation(id))
            .filter(|other| other.is_handed_out())
            .find(|other| other.for_identity != reservation.for_identity);
        let Some(other) = other else { return Ok(()) };
        let text = format!(
            "hand {} over to {}: {} has {} with {}, and could attach every device in it",
            reservation.id,
            reservation.for_identity,
            other.for_identity,
            reservation.context,
            other.id
        );
        Err(Refusal::new(Reason::HolderOwnsDomain, &reservation.id, text).with_resolve(vec![
            other.release_command(),
            format!("reserve --for {}", other.for_identity),
        ]))
    }

    pub(super) fn decide_renew(
        &self,
        order: &OrderFor,
        ttl_ms: Option<u64>,
        now: &Time,
    ) -> Decision {
        let reservation = self.find_ordered(order)?;
        self.life(reservation, Order::Renew)?;
        // What is being given back has no lease that could go on.
        if reservation.pending.as_ref().is_some_and(|it| it.kind == OperationKind::Release) {
            return Err(self.refuse_life(reservation, Order::Renew, Reason::ReservationBusy));
        }
        Ok(vec![renewed(reservation, ttl_ms.or(reservation.ttl_ms), now)])
    }

    pub(super) fn decide_expire(&self, id: &ReservationId, now: &Time) -> Decision {
        let reservation = self.find(id)?;
        if self.life(reservation, Order::Expire)? == LifeChange::Stays {
            return Ok(Vec::new());
        }
        let Some(expires) = &reservation.expires else { return Ok(Vec::new()) };
        if expires.boot_id != now.boot_id {
            return Ok(vec![renewed(reservation, reservation.ttl_ms, now)]);
        }
        if !expires.is_past(now) {
            return Ok(Vec::new());
        }
        if reservation.claims > 0 {
            return Ok(vec![Event::Expired { reservation: id.clone() }]);
        }
        Ok(self.release_events(reservation, false, "lease ended", now))
    }

    pub(super) fn decide_release(&self, order: &OrderFor, force: bool, now: &Time) -> Decision {
        let reservation = self.find_ordered(order)?;
        let kind = if force { Order::ReleaseForce } else { Order::Release };
        self.life(reservation, kind)?;
        self.conditions_allow(reservation, ConditionOp::Release)?;
        self.ownership_allows(reservation, |_| Operation::Release, None)?;
        Ok(self.release_events(reservation, force, "request", now))
    }

    /// A mere entry ends at once; where a device was touched, kernel work comes first.
    fn release_events(
        &self,
        reservation: &Reservation,
        force: bool,
        cause: &str,
        now: &Time,
    ) -> Vec<Event> {
        if reservation.prepared || reservation.ever_claimed {
            let pending = Pending {
                kind: OperationKind::Release,
                domain: None,
                process: None,
                force,
                cause: cause.to_owned(),
                since_ms: now.unix_ms,
            };
            return vec![Event::Started { reservation: reservation.id.clone(), pending }];
        }
        self.released(reservation, Vec::new(), cause)
    }

    /// The end of a reservation, and of the context that was made for it.
    pub(super) fn released(
        &self,
        reservation: &Reservation,
        devices: Vec<DeviceLeft>,
        detail: &str,
    ) -> Vec<Event> {
        let mut events = vec![Event::Released {
            reservation: reservation.id.clone(),
            devices,
            detail: detail.to_owned(),
        }];
        let last = self.context(&reservation.context).filter(|context| {
            context.automatic && context.reservations.iter().all(|other| *other == reservation.id)
        });
        if let Some(context) = last {
            for domain in &context.domains {
                events.push(Event::DomainDeleted { domain: domain.clone() });
            }
            events.push(Event::ContextDeleted { context: context.id.clone() });
        }
        events
    }

    pub(super) fn decide_forget(&self, id: &ReservationId) -> Decision {
        let reservation = self.find(id)?;
        self.life(reservation, Order::Forget)?;
        Ok(vec![Event::Forgotten { reservation: id.clone() }])
    }

    /// Whether the order would be taken if it came now: `mayAttach` of a query.
    ///
    /// # Errors
    ///
    /// The refusal that it would get.
    pub fn may_hold(
        &self,
        group: &crate::GroupId,
        policy: Policy,
        label: &crate::Label,
    ) -> Result<(), Box<Refusal>> {
        let group = self.group(group).ok_or_else(|| {
            Refusal::new(Reason::NotFound, group, format!("no group is called {group}"))
        })?;
        self.condition_allows(group, ConditionOp::Reserve)?;
        let claimant = policy::Claimant {
            reservation: None,
            policy: Some(policy),
            domain: None,
            token: None,
            other_label: false,
            devices: &group.devices,
            flags: crate::Flags::default(),
            adopts: None,
        };
        policy::admit(self, group, &claimant).map_err(|denial| {
            self.refuse_ownership(group, &claimant, reserve_operation(policy), denial)
        })?;
        let bound = self
            .devices_of(group)
            .find(|device| device.only_label.as_ref().is_some_and(|only| only != label));
        match bound {
            None => Ok(()),
            Some(device) => Err(self.refuse_only_label(device, label)),
        }
    }
}

/// The plain reserving operation of a policy.
pub(super) fn reserve_operation(policy: Policy) -> Operation {
    match policy {
        Policy::Exclusive => Operation::ReserveExclusive,
        Policy::Shared => Operation::ReserveShared,
        Policy::Group => Operation::ReserveGroup,
    }
}

fn renewed(reservation: &Reservation, ttl_ms: Option<u64>, now: &Time) -> Event {
    Event::Renewed {
        reservation: reservation.id.clone(),
        ttl_ms,
        expires: ttl_ms.map(|ttl_ms| Expiry::after(now, ttl_ms)),
    }
}

fn check_daemon_attaches(reservation: &Reservation, verb: &str) -> Result<(), Box<Refusal>> {
    if !reservation.delivery.holder_owns_domain() {
        return Ok(());
    }
    let text = format!(
        "{verb} {}: with delivery {} the holder does that by itself",
        reservation.id, reservation.delivery
    );
    Err(Refusal::new(Reason::HolderOwnsDomain, &reservation.id, text))
}
