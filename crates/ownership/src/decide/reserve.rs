//! Reservations: all targets are granted, or none.

use std::collections::BTreeSet;

use super::{Decision, adopt};
use crate::command::{Reserve, TargetRequest};
use crate::event::Event;
use crate::ids::{ContextId, DeviceId, DomainId, Epoch, Expiry, Label, ReservationId, Time};
use crate::model::{Backend, Delivery, OperationKind, Policy, ReservationState};
use crate::policy::{self, Claimant, Denial};
use crate::reason::Reason;
use crate::record::{Context, Device, Domain, Group, HolderProcess, Pending, Reservation, Target};
use crate::refusal::Refusal;
use crate::state::State;
use crate::table::{ConditionOp, Order};

/// The context, domain and token that a request presents or gets.
struct Presented {
    context: ContextId,
    domain: DomainId,
    token: ReservationId,
    label: Label,
    /// They are made for this reservation.
    fresh: bool,
}

impl State {
    pub(super) fn decide_reserve(&self, request: &Reserve, now: &Time) -> Decision {
        self.grant(request, None, now)
    }

    /// Grants a reservation, whose holder may be a process that is to be adopted.
    pub(super) fn grant(
        &self,
        request: &Reserve,
        adopts: Option<&HolderProcess>,
        now: &Time,
    ) -> Decision {
        check_shape(request)?;
        self.check_id(request)?;
        let presented = self.presented(request)?;
        let mut targets = Vec::new();
        let mut taken = Vec::new();
        let mut epoch = Epoch(now.unix_ms.0).max(self.epoch_floor);
        for target in &request.targets {
            let group = self.group(&target.group).ok_or_else(|| {
                let id = &target.group;
                Refusal::new(Reason::NotFound, id, format!("no group is called {id}"))
            })?;
            let devices = self.devices_wanted(request, &presented, group, target)?;
            self.check_target(request, &presented, (group, &devices), adopts)?;
            taken.extend(
                self.devices_of(group)
                    .filter(|device| device.facts.uses_kernel_dma())
                    .map(|device| device.facts.id.clone()),
            );
            epoch = epoch.max(Epoch(group.epoch.0.saturating_add(1)));
            targets.push(Target { group: group.id.clone(), devices });
        }
        self.check_reset_scope(request, &targets)?;
        taken.iter().try_for_each(|id| self.functions_are_free(id, "reserve"))?;
        let mut events = fresh_events(request, &presented);
        let mut reservation = record(request, &presented, targets, taken, epoch, now);
        if let Some(process) = adopts {
            reservation.state = ReservationState::Reserved;
            reservation.prepared = false;
            reservation.adopted = true;
            reservation.pending = Some(adopt::pending(process, now));
        }
        events.push(Event::Reserved { reservation: Box::new(reservation) });
        Ok(events)
    }

    fn check_id(&self, request: &Reserve) -> Result<(), Box<Refusal>> {
        let id = &request.id;
        let Some(known) = self.reservation(id) else { return Ok(()) };
        let text = format!("a reservation is called {id} already ({})", known.state);
        Err(Refusal::new(Reason::AlreadyExists, id, text))
    }

    /// What the request presents: a reservation that it joins, a domain, or something new.
    fn presented(&self, request: &Reserve) -> Result<Presented, Box<Refusal>> {
        let presented = match (&request.join, &request.domain) {
            (Some(join), domain) => self.presented_by_join(request, join, domain.as_ref())?,
            (None, Some(domain)) => self.presented_by_domain(request, domain)?,
            (None, None) => return self.presented_anew(request),
        };
        let known = self.context(&presented.context).ok_or_else(|| {
            let id = &presented.context;
            Refusal::new(Reason::NotFound, id, format!("no context is called {id}"))
        })?;
        check_context(request, known)?;
        Ok(presented)
    }

    fn presented_anew(&self, request: &Reserve) -> Result<Presented, Box<Refusal>> {
        let taken = if self.contexts.contains_key(&request.new_context) {
            Some(request.new_context.to_string())
        } else if self.domains.contains_key(&request.new_domain) {
            Some(request.new_domain.to_string())
        } else {
            None
        };
        if let Some(id) = taken {
            return Err(Refusal::new(Reason::AlreadyExists, &id, format!("{id} exists already")));
        }
        Ok(Presented {
            context: request.new_context.clone(),
            domain: request.new_domain.clone(),
            token: request.id.clone(),
            label: request.label.clone(),
            fresh: true,
        })
    }

    fn presented_by_join(
        &self,
        request: &Reserve,
        join: &ReservationId,
        domain: Option<&DomainId>,
    ) -> Result<Presented, Box<Refusal>> {
        let joined = self.find(join)?;
        self.life(joined, Order::Join)?;
        if joined.policy != request.policy && joined.label == request.label {
            return Err(invalid(
                join,
                format!("{join} is {}, the request is {}", joined.policy, request.policy),
            ));
        }
        let domain = domain.unwrap_or(&joined.domain);
        let record = self.find_domain(domain)?;
        if record.context != joined.context {
            return Err(invalid(
                domain,
                format!("{domain} is in {}, but {join} is in {}", record.context, joined.context),
            ));
        }
        Ok(Presented {
            context: joined.context.clone(),
            domain: domain.clone(),
            token: joined.token.clone(),
            label: joined.label.clone(),
            fresh: false,
        })
    }

    fn presented_by_domain(
        &self,
        request: &Reserve,
        domain: &DomainId,
    ) -> Result<Presented, Box<Refusal>> {
        let record = self.find_domain(domain)?;
        let first = self
            .context(&record.context)
            .and_then(|context| context.reservations.first())
            .and_then(|first| self.reservation(first));
        let token = match (request.policy, first) {
            (Policy::Group, Some(first)) if record.label == request.label => {
                return Err(Refusal::new(
                    Reason::GroupOwned,
                    &record.context,
                    format!("{} belongs to the token {}", record.context, first.token),
                )
                .with_resolve(vec![format!("present the token with --join {}", first.id)]));
            }
            _ => request.id.clone(),
        };
        Ok(Presented {
            context: record.context.clone(),
            domain: domain.clone(),
            token,
            label: record.label.clone(),
            fresh: false,
        })
    }

    pub(super) fn find_domain(&self, id: &DomainId) -> Result<&Domain, Box<Refusal>> {
        self.domain(id)
            .ok_or_else(|| Refusal::new(Reason::NotFound, id, format!("no domain is called {id}")))
    }

    /// The devices of a target: those that were named, or every member but bridges and those
    /// that the same domain or token has.
    fn devices_wanted(
        &self,
        request: &Reserve,
        presented: &Presented,
        group: &Group,
        target: &TargetRequest,
    ) -> Result<Vec<DeviceId>, Box<Refusal>> {
        let members: Vec<&Device> =
            self.devices_of(group).filter(|device| !device.facts.bridge).collect();
        if target.devices.is_empty() {
            let ids: Vec<DeviceId> = members.iter().map(|device| device.facts.id.clone()).collect();
            let same = |holder: &Reservation| match request.policy {
                Policy::Exclusive => false,
                Policy::Shared => holder.domain == presented.domain,
                Policy::Group => holder.token == presented.token,
            };
            let spare: Vec<DeviceId> = members
                .iter()
                .filter(|device| !self.device_reservation(device).is_some_and(same))
                .map(|device| device.facts.id.clone())
                .collect();
            let wanted = if spare.is_empty() { ids } else { spare };
            if wanted.is_empty() {
                return Err(invalid(&group.id, format!("{} has no device to claim", group.id)));
            }
            return Ok(wanted);
        }
        for id in &target.devices {
            let Some(device) = self.device(id).filter(|device| device.group == group.id) else {
                let text = format!("{id} is not a member of {}", group.id);
                return Err(Refusal::new(Reason::NotFound, id, text));
            };
            if device.facts.bridge {
                return Err(invalid(id, format!("{id} is a bridge; it is not claimed by itself")));
            }
        }
        Ok(target.devices.clone())
    }

    fn check_target(
        &self,
        request: &Reserve,
        presented: &Presented,
        (group, devices): (&Group, &[DeviceId]),
        adopts: Option<&HolderProcess>,
    ) -> Result<(), Box<Refusal>> {
        self.condition_allows(group, ConditionOp::Reserve)?;
        let claimant = Claimant {
            reservation: None,
            policy: Some(request.policy),
            domain: Some(&presented.domain),
            token: Some(&presented.token),
            other_label: presented.label != request.label,
            devices,
            flags: request.flags,
            adopts: adopts.map(|process| process.pid),
        };
        match adopts {
            Some(process) => policy::adopt(self, group, &claimant)
                .map_err(|denial| self.refuse_adopt(group, &claimant, process, denial))?,
            None => policy::admit(self, group, &claimant).map_err(|denial| {
                self.refuse_reserve(request, presented, group, &claimant, denial)
            })?,
        }
        for id in devices {
            let Some(device) = self.device(id) else { continue };
            if device.only_label.as_ref().is_some_and(|only| *only != request.label) {
                return Err(self.refuse_only_label(device, &request.label));
            }
        }
        Ok(())
    }
}

impl State {
    fn refuse_reserve(
        &self,
        request: &Reserve,
        presented: &Presented,
        group: &Group,
        claimant: &Claimant<'_>,
        denial: Denial,
    ) -> Box<Refusal> {
        let op = super::orders::reserve_operation(request.policy);
        let other_label = denial.reason == Reason::LabelMismatch;
        let mut refusal = self.refuse_ownership(group, claimant, op, denial);
        if other_label {
            refusal.message = format!(
                "{} in {}: {} is of label {}, the request of label {}",
                op.text(),
                group.id,
                presented.domain,
                presented.label,
                request.label
            );
        }
        refusal
    }
}

fn invalid(object: impl ToString, message: String) -> Box<Refusal> {
    Refusal::new(Reason::InvalidArgument, object, message)
}

/// What could not succeed in any state.
fn check_shape(request: &Reserve) -> Result<(), Box<Refusal>> {
    let id = &request.id;
    if request.targets.is_empty() {
        return Err(invalid(id, "a reservation needs at least one group".to_owned()));
    }
    let mut seen = BTreeSet::new();
    for target in &request.targets {
        let names = target.devices.iter().map(DeviceId::as_str).chain([target.group.as_str()]);
        for name in names {
            if !seen.insert(name) {
                return Err(invalid(name, format!("{name} is named twice")));
            }
        }
    }
    if let Some(text) = policy::malformed(request) {
        return Err(invalid(id, text.to_owned()));
    }
    if !policy::delivers(request.policy, request.delivery) {
        return Err(invalid(
            id,
            format!("policy {} has no delivery {}", request.policy, request.delivery),
        ));
    }
    if request.backend == Backend::Type1 && request.delivery == Delivery::Unbound {
        return Err(Refusal::new(
            Reason::BackendCannot,
            id,
            "delivery unbound needs a cdev and an iommufd; type1 has neither",
        )
        .with_resolve(vec![
            "reserve with --delivery node: the holder opens the group's node by itself".to_owned(),
            "reserve with --backend iommufd, where `berth capabilities` lists it".to_owned(),
        ]));
    }
    Ok(())
}

/// Whether the context that is presented takes such a reservation.
fn check_context(request: &Reserve, context: &Context) -> Result<(), Box<Refusal>> {
    let id = &context.id;
    if context.label != request.label {
        // The table refuses it, whatever else it is: nobody is told how another label's context is.
        return Ok(());
    }
    if context.policy != request.policy {
        let text = format!("{id} is for policy {}, not {}", context.policy, request.policy);
        return Err(invalid(id, text));
    }
    if context.backend != request.backend {
        return Err(Refusal::new(
            Reason::BackendCannot,
            id,
            format!("{id} is on {}, the request is for {}", context.backend, request.backend),
        ));
    }
    if context.holder_owned != request.delivery.holder_owns_domain() {
        return Err(Refusal::new(
            Reason::HolderOwnsDomain,
            id,
            format!("in {id} domains are made otherwise than delivery {} does", request.delivery),
        ));
    }
    Ok(())
}

fn fresh_events(request: &Reserve, presented: &Presented) -> Vec<Event> {
    if !presented.fresh {
        return Vec::new();
    }
    let context = Context {
        id: presented.context.clone(),
        label: request.label.clone(),
        policy: request.policy,
        backend: request.backend,
        holder_owned: request.delivery.holder_owns_domain(),
        automatic: true,
        domains: Vec::new(),
        reservations: Vec::new(),
    };
    let domain = Domain {
        id: presented.domain.clone(),
        context: presented.context.clone(),
        label: request.label.clone(),
    };
    vec![Event::ContextCreated { context }, Event::DomainCreated { domain }]
}

fn record(
    request: &Reserve,
    presented: &Presented,
    targets: Vec<Target>,
    taken: Vec<DeviceId>,
    epoch: Epoch,
    now: &Time,
) -> Reservation {
    let prepare = request.prepare || !taken.is_empty();
    let pending = prepare.then(|| Pending {
        kind: OperationKind::Prepare,
        domain: None,
        process: None,
        force: false,
        cause: "request".to_owned(),
        since_ms: now.unix_ms,
    });
    Reservation {
        id: request.id.clone(),
        holder: request.holder.clone(),
        label: request.label.clone(),
        requester: request.requester.clone(),
        for_identity: request.for_identity.clone(),
        policy: request.policy,
        delivery: request.delivery,
        backend: request.backend,
        targets,
        context: presented.context.clone(),
        domain: presented.domain.clone(),
        token: presented.token.clone(),
        epoch,
        memory_bytes: request.memory_bytes,
        ttl_ms: request.ttl_ms,
        expires: request.ttl_ms.map(|ttl_ms| Expiry::after(now, ttl_ms)),
        state: if prepare { ReservationState::Preparing } else { ReservationState::Reserved },
        resume: None,
        claims: 0,
        ever_claimed: false,
        prepared: prepare,
        flags: request.flags,
        taken,
        reset_policy: request.reset_policy,
        pending,
        hold: request.hold,
        process: None,
        adopted: false,
        detail: String::new(),
        created_ms: now.unix_ms,
    }
}
