//! Reserve: from a request to a command.

use berth_host::{BackendKind, DeviceFacts, PciAddress};
use berth_ownership::{
    Backend, Command, ContextId, Delivery, DeviceId, DomainId, Flags, GroupId, Hold, Policy,
    Reason, ReservationId, Reserve, ResetPolicy, State, TargetRequest,
};
use berth_proto::v1;

use super::{
    Service, authorize::require, find, memory, parse, request, select, tenant, wait::Wait,
};
use crate::{
    model::{AnswerOf, ApiError, Call, Caller, Snapshot},
    view,
};

/// How often a choice by class is made anew when others were faster.
const TRIES: usize = 4;
/// The longest lease.
const MAX_TTL_MS: u64 = 10 * 365 * 24 * 3600 * 1000;
/// The shortest.
const MIN_TTL_MS: u64 = 1000;
/// How many groups or devices one request may name.
const MAX_TARGETS: usize = 256;

impl Service {
    /// Promises groups to a holder.
    ///
    /// # Errors
    /// What is wrong with the request; who stands in the way; why the kernel work failed.
    pub async fn reserve(
        &self,
        caller: &Caller,
        mut request: v1::ReserveRequest,
    ) -> Result<v1::Reservation, ApiError> {
        require(caller, Call::Reserve)?;
        let wait = Wait::take(&mut request.wait_ms, &mut request.no_wait);
        let request_id = std::mem::take(&mut request.request_id);
        let id = ReservationId::from(request::fresh("r-"));
        let about = AnswerOf::Reservation(id.clone());
        let meta = request::meta(caller, "reserve", &request_id, &request, about.clone())?;
        let mut template = self.template(caller, &request, id)?;
        if request.dry_run {
            self.place(caller, &request, &mut template)?;
            return self.reserve_tried(caller, template).await;
        }
        let mut tries = 0;
        let applied = loop {
            tries += 1;
            let snapshot = self.snapshot();
            if let Err(error) = self.place(caller, &request, &mut template) {
                // A repeated call finds its devices taken, by itself: its answer is on record. At a
                // start that can't write, no device is known.
                let unknown = error.reason() == Reason::NotFound;
                let degraded = self.ledger.degraded().filter(|_| unknown);
                let error = degraded.map_or(error, |it| it.refusal());
                break self.ledger.refuse(error, meta).await?;
            }
            // A disk may have been unmounted since the last look, or a node been closed.
            if template.flags.take_from_host || host_uses(&snapshot, &template) {
                self.look_at(&snapshot, &template).await?;
            }
            let command = Command::Reserve(Box::new(template.clone()));
            if request.class.is_none() {
                break self.ledger.submit(command, meta).await?;
            }
            match self.ledger.attempt(command, meta.clone()).await {
                Ok(applied) => break applied,
                Err(error) => {
                    if error.reason() != Reason::GroupOwned || tries >= TRIES {
                        break self.ledger.refuse(error, meta).await?;
                    }
                }
            }
        };
        self.answer(applied, wait, about, show).await
    }

    /// All of the command but its targets, and what depends on them.
    fn template(
        &self,
        caller: &Caller,
        request: &v1::ReserveRequest,
        id: ReservationId,
    ) -> Result<Reserve, ApiError> {
        parse::name("holder", &request.holder)?;
        let policy = view::policy(request.policy).ok_or_else(|| {
            ApiError::invalid_argument(
                "policy",
                "policy is missing or unknown",
                "give policy as exclusive, shared or group",
            )
        })?;
        let for_identity = if request.for_identity.is_empty() {
            caller.identity.clone()
        } else {
            parse::identity("for_identity", &request.for_identity)?;
            request.for_identity.clone()
        };
        self.joins_what_it_sees(caller, request)?;
        let flags = flags(caller, request)?;
        let delivery = delivery(policy, request.delivery)?;
        memory::fits(request.memory_bytes, delivery, self.offers().memory_bytes)?;
        let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Reserve {
            id,
            new_context: ContextId::from(request::fresh("c-")),
            new_domain: DomainId::from(request::fresh("d-")),
            holder: request.holder.as_str().into(),
            label: tenant::label(caller, &request.label, &for_identity)?,
            requester: caller.identity.clone(),
            for_identity,
            policy,
            delivery,
            backend: self.backend_for(request)?,
            targets: Vec::new(),
            domain: named(&request.domain).map(DomainId::from),
            join: named(&request.join).map(ReservationId::from),
            memory_bytes: request.memory_bytes,
            ttl_ms: ttl(request.ttl_ms)?,
            flags,
            reset_policy: ResetPolicy::AllowSameLabel,
            hold: if self.offers().kernel_hold { Hold::Kernel } else { Hold::Ledger },
            prepare: true,
        })
    }

    /// What is under another label can't be joined, nor found out about so.
    fn joins_what_it_sees(
        &self,
        caller: &Caller,
        request: &v1::ReserveRequest,
    ) -> Result<(), ApiError> {
        if caller.tenant.is_none() {
            return Ok(());
        }
        let snapshot = self.snapshot();
        if !request.join.is_empty() {
            tenant::visible(caller, find::reservation(&snapshot, &request.join))?;
        }
        if !request.domain.is_empty() {
            let found = find::domain(&snapshot, &request.domain);
            tenant::visible_domain(caller, &snapshot.state, found)?;
        }
        Ok(())
    }

    /// Chooses the targets, and what must come of their reset.
    fn place(
        &self,
        caller: &Caller,
        request: &v1::ReserveRequest,
        template: &mut Reserve,
    ) -> Result<(), ApiError> {
        let snapshot = self.snapshot();
        let settings = self.config.get();
        template.targets = targets(&snapshot, request)?;
        if let Some(class) = &request.class {
            let now = self.ledger.clock().now();
            let rules = &settings.devices;
            template.targets = select::by_class(&snapshot, class, template, &now, rules)?;
        }
        let groups = template.targets.iter().filter_map(|it| snapshot.state.group(&it.group));
        for group in groups {
            settings.devices.check(&snapshot, group)?;
        }
        template.reset_policy = self.reset_policy(caller, request, &snapshot, &template.targets)?;
        Ok(())
    }

    /// Looks at the devices of the targets again: what the host does with them must be true now.
    async fn look_at(&self, snapshot: &Snapshot, template: &Reserve) -> Result<(), ApiError> {
        let devices = members_of(snapshot, template);
        self.ledger.refresh(devices, crate::model::Meta::internal("reserve")).await.map(drop)
    }

    /// The back end of a request: as named, as of what it joins, or the best one.
    fn backend_for(&self, request: &v1::ReserveRequest) -> Result<Backend, ApiError> {
        let snapshot = self.snapshot();
        let state: &State = &snapshot.state;
        if request.backend == i32::from(v1::Backend::Auto) {
            let joined = state
                .reservation(&ReservationId::new(&request.join))
                .map(|record| &record.context)
                .or_else(|| {
                    state.domain(&DomainId::new(&request.domain)).map(|domain| &domain.context)
                })
                .and_then(|context| state.context(context));
            if let Some(context) = joined {
                return Ok(context.backend);
            }
        }
        self.backend(request.backend)
    }

    /// A back end that this host has.
    pub(super) fn backend(&self, number: i32) -> Result<Backend, ApiError> {
        let has = &self.offers().backends;
        let wanted = match v1::Backend::try_from(number) {
            Ok(v1::Backend::Auto) => has.first().copied(),
            Ok(v1::Backend::Iommufd) => Some(BackendKind::Iommufd),
            Ok(v1::Backend::Type1) => Some(BackendKind::Type1),
            Err(_) => {
                return Err(ApiError::invalid_argument(
                    "backend",
                    format!("backend {number} is unknown"),
                    "give backend as auto, iommufd or type1",
                ));
            }
        };
        match wanted {
            Some(kind) if has.contains(&kind) => Ok(view::backend(kind)),
            Some(kind) => {
                let text =
                    format!("this host has no {kind:?} back end; it has {has:?}").to_lowercase();
                Err(ApiError::new(Reason::Unsupported, "backend", text))
            }
            None => Err(ApiError::new(
                Reason::Unsupported,
                "backend",
                "this host has neither iommufd nor type1: is the IOMMU on and vfio loaded?",
            )),
        }
    }

    /// What must come of the reset: as asked, where that isn't less than the configuration wants
    /// of any of the devices.
    fn reset_policy(
        &self,
        caller: &Caller,
        request: &v1::ReserveRequest,
        snapshot: &Snapshot,
        targets: &[TargetRequest],
    ) -> Result<ResetPolicy, ApiError> {
        let configured = self.configured_reset(snapshot, targets);
        let asked = match v1::ResetPolicy::try_from(request.reset_policy) {
            Ok(v1::ResetPolicy::Default) => return Ok(configured),
            Ok(v1::ResetPolicy::Require) => ResetPolicy::Require,
            Ok(v1::ResetPolicy::AllowSameLabel) => ResetPolicy::AllowSameLabel,
            Ok(v1::ResetPolicy::None) => ResetPolicy::None,
            Err(_) => {
                return Err(ApiError::invalid_argument(
                    "reset_policy",
                    format!("reset_policy {} is unknown", request.reset_policy),
                    "leave reset_policy out, or give REQUIRE, ALLOW_SAME_LABEL or NONE",
                ));
            }
        };
        if strictness(asked) < strictness(configured) {
            require(caller, Call::WeakerReset)?;
        }
        Ok(asked)
    }

    /// What the configuration wants of the resets of targets: the strictest of them all.
    pub(super) fn configured_reset(
        &self,
        snapshot: &Snapshot,
        targets: &[TargetRequest],
    ) -> ResetPolicy {
        targets
            .iter()
            .flat_map(|target| members(snapshot, target))
            .filter_map(|id| snapshot.device_by_id(&id))
            .map(|facts| self.reset_of(facts))
            .max_by_key(|policy| strictness(*policy))
            .unwrap_or(self.config.get().reset_default)
    }

    fn reset_of(&self, facts: &DeviceFacts) -> ResetPolicy {
        let class = format!("{:06x}", facts.class);
        let settings = self.config.get();
        settings
            .reset_by_class
            .iter()
            .filter(|(prefix, _)| class.starts_with(prefix.as_str()))
            .max_by_key(|(prefix, _)| prefix.len())
            .map_or(settings.reset_default, |(_, policy)| *policy)
    }
}

/// All devices of the groups that are asked for.
pub(super) fn members_of(snapshot: &Snapshot, template: &Reserve) -> Vec<PciAddress> {
    let groups = template.targets.iter().filter_map(|target| snapshot.state.group(&target.group));
    groups.flat_map(|group| &group.devices).filter_map(|id| id.as_str().parse().ok()).collect()
}

/// Whether somebody on the host used a member of the targets when it was last looked at.
pub(super) fn host_uses(snapshot: &Snapshot, template: &Reserve) -> bool {
    let groups = template.targets.iter().filter_map(|target| snapshot.state.group(&target.group));
    let mut devices = groups.flat_map(|group| &group.devices);
    let used =
        |facts: &berth_ownership::DeviceFacts| !facts.uses.is_empty() || facts.private_domain;
    devices.any(|id| snapshot.state.device(id).is_some_and(|device| used(&device.facts)))
}

/// A reservation as the API has it, by what an answer is about.
pub(super) fn show(snapshot: &Snapshot, about: &AnswerOf) -> Result<v1::Reservation, ApiError> {
    let AnswerOf::Reservation(id) = about else {
        return Err(ApiError::internal("request_ids", "the answer is about something else"));
    };
    let record = find::reservation(snapshot, id.as_str())?;
    let extra = snapshot.extras.get(id).map(AsRef::as_ref);
    Ok(view::reservation(&snapshot.state, record, extra, &snapshot.boot))
}

fn strictness(policy: ResetPolicy) -> u8 {
    match policy {
        ResetPolicy::None => 0,
        ResetPolicy::AllowSameLabel => 1,
        ResetPolicy::Require => 2,
    }
}

fn members(snapshot: &Snapshot, target: &TargetRequest) -> Vec<DeviceId> {
    if !target.devices.is_empty() {
        return target.devices.clone();
    }
    snapshot.state.group(&target.group).map(|group| group.devices.clone()).unwrap_or_default()
}

fn flags(caller: &Caller, request: &v1::ReserveRequest) -> Result<Flags, ApiError> {
    if request.host_uses_it_anyway {
        require(caller, Call::HostUsesItAnyway)?;
        if !request.take_from_host {
            return Err(ApiError::invalid_argument(
                "host_uses_it_anyway",
                "host_uses_it_anyway means nothing without take_from_host",
                "give both, or neither",
            ));
        }
    }
    Ok(Flags {
        take_from_host: request.take_from_host,
        host_uses_it_anyway: request.host_uses_it_anyway,
    })
}

/// A lease as it is asked for; 0 is none.
pub(super) fn ttl(ttl_ms: u64) -> Result<Option<u64>, ApiError> {
    if ttl_ms == 0 {
        return Ok(None);
    }
    if (MIN_TTL_MS..=MAX_TTL_MS).contains(&ttl_ms) {
        return Ok(Some(ttl_ms));
    }
    Err(ApiError::invalid_argument(
        "ttl_ms",
        format!("ttl_ms {ttl_ms} is not between {MIN_TTL_MS} and {MAX_TTL_MS}"),
        "give at least a second, or 0 for no end",
    ))
}

/// The delivery: as asked, or what the policy can do.
fn delivery(policy: Policy, number: i32) -> Result<Delivery, ApiError> {
    if number == i32::from(v1::Delivery::Unspecified) {
        return Ok(match policy {
            Policy::Exclusive | Policy::Shared => Delivery::Bound,
            Policy::Group => Delivery::Held,
        });
    }
    view::delivery(number).ok_or_else(|| {
        ApiError::invalid_argument(
            "delivery",
            format!("delivery {number} is unknown"),
            "give delivery as held, bound, unbound or node",
        )
    })
}

/// The targets that a request names by groups or devices; none when it names a class.
pub(super) fn targets(
    snapshot: &Snapshot,
    request: &v1::ReserveRequest,
) -> Result<Vec<TargetRequest>, ApiError> {
    let kinds = [!request.groups.is_empty(), !request.devices.is_empty(), request.class.is_some()];
    if kinds.iter().filter(|given| **given).count() != 1 {
        return Err(ApiError::invalid_argument(
            "groups",
            "exactly one of groups, devices and class must be given",
            "name what you want by --group, by --device or by --class",
        ));
    }
    if request.groups.len().max(request.devices.len()) > MAX_TARGETS {
        return Err(ApiError::invalid_argument(
            "groups",
            format!("one reservation takes at most {MAX_TARGETS} groups or devices"),
            "split it into several reservations",
        ));
    }
    let mut targets: Vec<TargetRequest> = Vec::new();
    for text in &request.groups {
        let group = find::group(snapshot, text)?;
        targets.push(TargetRequest { group: group.id.clone(), devices: Vec::new() });
    }
    for address in &request.devices {
        let address = parse::device("devices", Some(address))?;
        let facts = find::device(snapshot, address)?;
        add(&mut targets, &find::group_of(snapshot, facts)?.id, facts);
    }
    Ok(targets)
}

/// Adds a device to the target of its group.
pub(super) fn add(targets: &mut Vec<TargetRequest>, group: &GroupId, facts: &DeviceFacts) {
    let device = DeviceId::from(facts.address.to_string());
    match targets.iter_mut().find(|target| target.group == *group) {
        Some(target) => target.devices.push(device),
        None => targets.push(TargetRequest { group: group.clone(), devices: vec![device] }),
    }
}
