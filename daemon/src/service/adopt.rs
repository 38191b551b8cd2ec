//! Adopt: from a process that has groups open to a command.

use berth_host::{BackendKind, Host, HostError, PciAddress, ProcessUse};
use berth_ownership::{
    Adopt, Backend, Command, ContextId, Delivery, DomainId, Flags, Hold, HolderProcess, Policy,
    Reason, Refusal, ReservationId, Reserve, TargetRequest,
};
use berth_proto::v1;

use super::{
    Service,
    authorize::require,
    memory, parse, request,
    reserve::{show, targets, ttl},
    wait::Wait,
};
use crate::{
    acts::kin,
    model::{AnswerOf, ApiError, Call, Caller, Meta, Snapshot},
};

impl Service {
    /// Records a process that has groups open as the holder of a reservation.
    ///
    /// # Errors
    /// What is wrong with the request; who else has the groups; that the process hasn't.
    pub async fn adopt(
        &self,
        caller: &Caller,
        mut request: v1::AdoptRequest,
    ) -> Result<v1::Reservation, ApiError> {
        require(caller, Call::Adopt)?;
        let wait = Wait::take(&mut request.wait_ms, &mut request.no_wait);
        let request_id = std::mem::take(&mut request.request_id);
        let id = ReservationId::from(request::fresh("r-"));
        let about = AnswerOf::Reservation(id.clone());
        let meta = request::meta(caller, "adopt", &request_id, &request, about.clone())?;
        let adopt = match self.adoption(caller, &request, id).await {
            Ok(adopt) => adopt,
            // A repeated call may find the process gone: its answer is on record.
            Err(error) if !request.dry_run => {
                let applied = self.ledger.refuse(error, meta).await?;
                return self.answer(applied, wait, about, show).await;
            }
            Err(error) => return Err(error),
        };
        if request.dry_run {
            self.within_quotas(caller, &adopt.request)?;
        }
        let command = Command::Adopt(Box::new(adopt));
        if request.dry_run {
            return self.dry_run(&command);
        }
        let applied = self.ledger.submit(command, meta).await?;
        self.answer(applied, wait, about, show).await
    }

    async fn adoption(
        &self,
        caller: &Caller,
        request: &v1::AdoptRequest,
        id: ReservationId,
    ) -> Result<Adopt, ApiError> {
        parse::name("holder", &request.holder)?;
        let pid = pid(request.pid)?;
        let (ttl_ms, machine) = (ttl(request.ttl_ms)?, self.offers().memory_bytes);
        memory::fits(request.memory_bytes, Delivery::Node, machine)?;
        let named = v1::ReserveRequest {
            groups: request.groups.clone(),
            devices: request.devices.clone(),
            ..v1::ReserveRequest::default()
        };
        targets(&self.snapshot(), &named)?;
        // Owners come and go unseen between two looks.
        self.ledger.rescan(Meta::internal("adopt")).await?;
        let snapshot = self.snapshot();
        let targets = targets(&snapshot, &named)?;
        let devices = devices_of(&snapshot, &targets);
        let found = self.on_host("adopt", move |host| uses_of(host, &devices, pid)).await??;
        let owner = found.first().ok_or_else(|| has_nothing(&snapshot, &targets, pid))?;
        let uid = owner.uid.ok_or_else(|| {
            let text = format!("{} ({pid}) shows no user", owner.name);
            ApiError::new(Reason::Unsupported, pid, text)
        })?;
        let identity = format!("uid:{uid}");
        let policy = policy(&snapshot, request.policy, &targets)?;
        let reset_policy = self.configured_reset(&snapshot, &targets);
        let request = Reserve {
            id,
            new_context: ContextId::from(request::fresh("c-")),
            new_domain: DomainId::from(request::fresh("d-")),
            holder: request.holder.as_str().into(),
            label: parse::label(&request.label, &identity)?,
            requester: caller.identity.clone(),
            for_identity: identity,
            policy,
            delivery: Delivery::Node,
            backend: backend_of(&found, &self.offers().backends),
            targets,
            domain: None,
            join: None,
            memory_bytes: request.memory_bytes,
            ttl_ms,
            flags: Flags::default(),
            reset_policy,
            hold: if self.offers().kernel_hold { Hold::Kernel } else { Hold::Ledger },
            prepare: false,
        };
        Ok(Adopt { request, process: holder(owner, pid) })
    }
}

fn pid(pid: i32) -> Result<u32, ApiError> {
    u32::try_from(pid).ok().filter(|pid| *pid > 1).ok_or_else(|| {
        ApiError::invalid_argument(
            "pid",
            format!("{pid} is not the pid of a process that could be adopted"),
            "name the process that `berth group show` names",
        )
    })
}

/// Devices that the targets claim: all but bridges where none are named.
fn devices_of(snapshot: &Snapshot, targets: &[TargetRequest]) -> Vec<PciAddress> {
    let members = targets.iter().flat_map(|target| {
        let group = snapshot.state.group(&target.group);
        let all = group.map(|group| group.devices.clone()).unwrap_or_default();
        if target.devices.is_empty() { all } else { target.devices.clone() }
    });
    let wanted =
        members.filter(|id| snapshot.state.device(id).is_some_and(|device| !device.facts.bridge));
    wanted.filter_map(|id| id.as_str().parse().ok()).collect()
}

/// What a process has open of some devices.
fn uses_of(host: &dyn Host, devices: &[PciAddress], pid: u32) -> Result<Vec<ProcessUse>, ApiError> {
    let mut found = Vec::new();
    for device in devices {
        match host.users_of(*device) {
            Ok(users) => {
                found.extend(users.into_iter().filter(|user| u32::try_from(user.pid) == Ok(pid)))
            }
            Err(HostError::NoDevice(_)) => {}
            Err(error) => {
                return Err(ApiError::new(Reason::HelperFailed, device, error.to_string()));
            }
        }
    }
    Ok(found)
}

fn holder(owner: &ProcessUse, pid: u32) -> HolderProcess {
    HolderProcess {
        pid,
        start_ticks: owner.start_time,
        name: owner.name.clone(),
        cgroup: kin::cgroup_of(owner.pid),
    }
}

/// Why a process can't be adopted that has none of the devices open.
fn has_nothing(snapshot: &Snapshot, targets: &[TargetRequest], pid: u32) -> ApiError {
    let groups: Vec<_> =
        targets.iter().filter_map(|target| snapshot.state.group(&target.group)).collect();
    let named: Vec<&str> = groups.iter().map(|group| group.id.as_str()).collect();
    let named = named.join(", ");
    let owners: Vec<String> = groups
        .iter()
        .flat_map(|group| berth_ownership::name_foreign(&group.foreign_pids, &group.foreign))
        .collect();
    let (name, there) = i32::try_from(pid).map_or_else(
        |_| (String::new(), false),
        |pid| (kin::name_of(pid), std::path::Path::new(&format!("/proc/{pid}")).exists()),
    );
    if !there {
        let text = format!("adopt process {pid} in {named}: no such process runs");
        return ApiError::not_found(pid, text);
    }
    let has = match owners.as_slice() {
        [] => "nobody has".to_owned(),
        owners => format!("{} has", owners.join(", ")),
    };
    let text = format!("adopt {name} ({pid}): it has nothing of {named} open; {has}");
    let reason = if owners.is_empty() { Reason::NotTheOwner } else { Reason::ForeignOwner };
    Refusal::new(reason, &named, text)
        .with_resolve(vec![Reason::NotTheOwner.row().way_out.to_owned()])
        .into()
}

/// The policy: as asked, or exclusive where it can be.
fn policy(snapshot: &Snapshot, number: i32, targets: &[TargetRequest]) -> Result<Policy, ApiError> {
    match v1::Policy::try_from(number) {
        Ok(v1::Policy::Unspecified) => {
            let alone = targets.iter().all(|target| {
                snapshot.state.group(&target.group).is_some_and(|group| group.devices.len() == 1)
            });
            Ok(if alone { Policy::Exclusive } else { Policy::Group })
        }
        Ok(v1::Policy::Exclusive) => Ok(Policy::Exclusive),
        Ok(v1::Policy::Group) => Ok(Policy::Group),
        Ok(v1::Policy::Shared) | Err(_) => Err(ApiError::invalid_argument(
            "policy",
            "a process that opened nodes by itself presents no domain that could be shared",
            "give policy as exclusive or group, or leave it out",
        )),
    }
}

/// By what the process has open: cdevs belong to an iommufd, everything else to a container.
fn backend_of(found: &[ProcessUse], there: &[BackendKind]) -> Backend {
    let cdev = found.iter().any(|user| user.what.starts_with("/dev/vfio/devices/"));
    let only = there == [BackendKind::Iommufd];
    if cdev || only { Backend::Iommufd } else { Backend::Type1 }
}
