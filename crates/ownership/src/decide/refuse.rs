//! Refusals in words: who stands in the way, with what, and what would resolve it.

use crate::health::CauseCode;
use crate::ids::{DeviceId, Label};
use crate::model::Ownership;
use crate::policy::{Claimant, Denial};
use crate::reason::{Errno, Reason};
use crate::record::{Device, Group, Reservation, UNSEEN, name_foreign};
use crate::refusal::{Blocker, OwnerInfo, Refusal};
use crate::state::State;
use crate::table::{ConditionOp, Operation, Order};

impl State {
    /// A refusal by the ownership axis.
    pub(crate) fn refuse_ownership(
        &self,
        group: &Group,
        claimant: &Claimant<'_>,
        op: Operation,
        denial: Denial,
    ) -> Box<Refusal> {
        let owner = self.owner_of(group, claimant);
        let blockers = self.blockers_of(group, claimant, denial.reason);
        let why = self.why(group, denial, owner.as_ref(), &blockers);
        let message = format!("{} in {}: {why}", op.text(), group.id);
        let resolve = self.resolve(group, denial.reason, owner.as_ref(), &blockers);
        Refusal::new(denial.reason, &group.id, message)
            .with_cell_errno(denial.errno)
            .with_owner(owner)
            .with_blockers(blockers)
            .with_resolve(resolve)
    }

    /// A refusal by the reservation axis.
    pub(crate) fn refuse_life(
        &self,
        reservation: &Reservation,
        order: Order,
        reason: Reason,
    ) -> Box<Refusal> {
        let id = &reservation.id;
        let state = reservation.state;
        let what = match &reservation.pending {
            Some(pending) => format!("{id} is {state}, and {} is under way", pending.kind),
            None if reservation.detail.is_empty() => format!("{id} is {state}"),
            None => format!("{id} is {state}: {}", reservation.detail),
        };
        let resolve = match reason {
            Reason::LeaseExpired => {
                vec![format!("berth reservation renew {id}"), format!("berth release {id} --force")]
            }
            Reason::HolderDraining => vec![format!("berth release {id} --force")],
            Reason::HoldLost => vec![format!("berth release {id}")],
            _ => vec![reason.row().way_out.to_owned()],
        };
        let message = format!("{} {id}: {what}", order.text());
        let owner = owner_info(reservation, reservation.claims);
        Refusal::new(reason, id, message).with_owner(Some(owner)).with_resolve(resolve)
    }

    /// A refusal by the condition axis.
    pub(crate) fn refuse_condition(
        &self,
        group: &Group,
        op: ConditionOp,
        reason: Reason,
    ) -> Box<Refusal> {
        let bad: Vec<&Device> =
            self.devices_of(group).filter(|device| device.condition() == group.condition).collect();
        let resolve = bad.iter().flat_map(|device| ways_out(device, reason)).collect();
        let message =
            format!("{} in {}: {} ({})", op.text(), group.id, reason.row().title, group.note);
        let blockers = bad
            .iter()
            .map(|device| {
                let note = device.marks.get(&group.condition).cloned().unwrap_or_default();
                blocker(device, format!("{}: {note}", group.condition))
            })
            .collect();
        Refusal::new(reason, &group.id, message).with_blockers(blockers).with_resolve(resolve)
    }

    /// A refusal to unbind a host driver whose own domain processes keep.
    pub(crate) fn refuse_kept(&self, device: &Device) -> Box<Refusal> {
        let id = &device.facts.id;
        let kept = blocker(device, kernel_text(device));
        let text = format!("release kernel DMA of {id}: to unbind it would wait ({})", kept.text);
        let resolve = keepers_end(&kept);
        Refusal::new(Reason::KernelDma, id, text)
            .with_cell_errno(Errno::EBUSY)
            .with_blockers(vec![kept])
            .with_resolve(resolve)
    }

    /// A refusal of a device that could not be reset after another label had it.
    pub(crate) fn refuse_only_label(&self, device: &Device, label: &Label) -> Box<Refusal> {
        let id = &device.facts.id;
        let last = device.only_label.as_ref().map(Label::as_str).unwrap_or_default();
        let text = format!(
            "reserve {id}: it could not be reset after label {last} had it; label {label} may not have it"
        );
        Refusal::new(Reason::LabelMismatch, id, text)
            .with_blockers(vec![blocker(device, format!("not reset since label {last}"))])
            .with_resolve(vec![format!("berth quarantine clear {id} --reason TEXT")])
    }

    /// Who owns or holds the group beside the claimant.
    pub(crate) fn owner_of(&self, group: &Group, claimant: &Claimant<'_>) -> Option<OwnerInfo> {
        let own = claimant.reservation.map(|own| &own.id);
        let mut others: Vec<&Reservation> =
            self.reservations_of(group).filter(|other| Some(&other.id) != own).collect();
        others.sort_by_key(|other| other.claims == 0);
        if let Some(other) = others.first() {
            return Some(owner_info(other, claims_in(other, group)));
        }
        match self.observed(group) {
            Ownership::Free => None,
            ownership => Some(OwnerInfo {
                kind: ownership.word().to_owned(),
                holder: None,
                label: None,
                reservation: None,
                claims: ownership.owner_cnt(),
            }),
        }
    }

    fn blockers_of(&self, group: &Group, claimant: &Claimant<'_>, reason: Reason) -> Vec<Blocker> {
        let own = claimant.reservation.map(|own| &own.id);
        self.devices_of(group)
            .filter_map(|device| {
                let facts = &device.facts;
                match reason {
                    Reason::KernelDma if facts.uses_kernel_dma() => {
                        Some(blocker(device, kernel_text(device)))
                    }
                    Reason::HostUsesDevice if !facts.uses.is_empty() => {
                        Some(blocker(device, kernel_text(device)))
                    }
                    Reason::ReservationBusy if self.is_busy(device) => {
                        Some(blocker(device, self.busy_text(device)))
                    }
                    Reason::GroupNotSingleton => Some(blocker(device, member_text(device))),
                    Reason::ForeignOwner => {
                        let text = format!("its group is owned by {}", pids(group));
                        Some(Blocker { processes: foreign(group), ..blocker(device, text) })
                    }
                    Reason::GroupOwned | Reason::DomainMismatch => self
                        .device_reservation(device)
                        .filter(|holder| Some(&holder.id) != own)
                        .map(|holder| {
                            let text = format!("reserved by {} for {}", holder.id, holder.holder);
                            blocker(device, text)
                        }),
                    _ => None,
                }
            })
            .collect()
    }

    fn why(
        &self,
        group: &Group,
        denial: Denial,
        owner: Option<&OwnerInfo>,
        blockers: &[Blocker],
    ) -> String {
        let named = |blockers: &[Blocker]| {
            let texts: Vec<String> = blockers
                .iter()
                .map(|blocker| format!("{} ({})", blocker.device, blocker.text))
                .collect();
            texts.join(", ")
        };
        match denial.reason {
            Reason::GroupOwned | Reason::LabelMismatch => {
                format!("{}: {}", denial.reason.row().title, owner_text(owner))
            }
            Reason::DomainMismatch => {
                let first = self.first_domain(group);
                format!("{first} was presented first by {}", owner_text(owner))
            }
            Reason::ForeignOwner => format!("{} owns it", pids(group)),
            Reason::GroupNotSingleton => {
                format!("it has {} devices: {}", group.devices.len(), named(blockers))
            }
            Reason::KernelDma | Reason::HostUsesDevice | Reason::ReservationBusy => {
                format!("{}: {}", denial.reason.row().title, named(blockers))
            }
            reason => format!("{} ({})", reason.row().title, denial.row.text()),
        }
    }

    fn resolve(
        &self,
        group: &Group,
        reason: Reason,
        owner: Option<&OwnerInfo>,
        blockers: &[Blocker],
    ) -> Vec<String> {
        let release = |blocker: &Blocker| format!("berth kernel-dma release {}", blocker.device);
        match reason {
            Reason::KernelDma => {
                let mut ways: Vec<String> = blockers.iter().flat_map(keepers_end).collect();
                ways.extend(blockers.iter().map(release));
                ways.push("pass --take-from-host".to_owned());
                ways
            }
            Reason::HostUsesDevice => {
                let uses = blockers.iter().flat_map(|blocker| {
                    blocker
                        .mounts
                        .iter()
                        .map(|what| format!("end the use of {}: {what}", blocker.device))
                });
                let mut ways: Vec<String> = uses.collect();
                ways.push("pass --take-from-host --host-uses-it-anyway".to_owned());
                ways
            }
            Reason::GroupNotSingleton => {
                vec![format!("berth reserve --holder NAME --group {} --policy group", group.id)]
            }
            Reason::GroupOwned => {
                let id = owner.and_then(|owner| owner.reservation.as_ref());
                let owner = id.and_then(|id| self.reservation(id));
                owner.map(Reservation::release_command).into_iter().collect()
            }
            Reason::DomainMismatch => {
                vec![format!("present {} with --domain", self.first_domain(group))]
            }
            Reason::ForeignOwner => foreign_ways(group),
            _ => vec![reason.row().way_out.to_owned()],
        }
    }

    /// The domain that the group is shared through.
    fn first_domain(&self, group: &Group) -> String {
        self.reservations_of(group)
            .next()
            .map_or_else(|| "no domain".to_owned(), |first| first.domain.to_string())
    }
}

/// How a driver's own domain ends, one line for each process that keeps it.
fn keepers_end(blocker: &Blocker) -> Vec<String> {
    let driver = blocker.driver.as_deref().unwrap_or("the driver");
    let of = format!("the domain that {driver} has on {}", blocker.device);
    let end = |process: &String| format!("first end {process}, which keeps {of}");
    blocker.processes.iter().map(end).collect()
}

pub(super) fn claims_in(reservation: &Reservation, group: &Group) -> u32 {
    if reservation.claims == 0 {
        return 0;
    }
    let here = reservation.targets.iter().filter(|target| target.group == group.id);
    u32::try_from(here.map(|target| target.devices.len()).sum::<usize>()).unwrap_or(u32::MAX)
}

pub(super) fn owner_info(reservation: &Reservation, claims: u32) -> OwnerInfo {
    let kind = if claims == 0 { "hold".to_owned() } else { reservation.policy.to_string() };
    OwnerInfo {
        kind,
        holder: Some(reservation.holder.clone()),
        label: Some(reservation.label.clone()),
        reservation: Some(reservation.id.clone()),
        claims,
    }
}

fn owner_text(owner: Option<&OwnerInfo>) -> String {
    let Some(owner) = owner else { return "nobody".to_owned() };
    match (&owner.reservation, &owner.holder) {
        (Some(id), Some(holder)) => {
            format!("{id} for {holder} ({}, {} claims)", owner.kind, owner.claims)
        }
        _ => format!("{} ({} claims)", owner.kind, owner.claims),
    }
}

fn foreign(group: &Group) -> Vec<String> {
    name_foreign(&group.foreign_pids, &group.foreign)
}

fn pids(group: &Group) -> String {
    if group.foreign_pids.is_empty() {
        return "a process that could not be found".to_owned();
    }
    foreign(group).join(", ")
}

/// Whoever has the group ends, or is given what it has.
fn foreign_ways(group: &Group) -> Vec<String> {
    let end = format!("end {}", pids(group));
    let adopt = match group.foreign_pids.as_slice() {
        [pid] if *pid != UNSEEN => {
            Some(format!("berth adopt --group {} --pid {pid} --holder NAME", group.id))
        }
        _ => None,
    };
    [end].into_iter().chain(adopt).collect()
}

pub(crate) fn blocker(device: &Device, text: String) -> Blocker {
    let facts = &device.facts;
    Blocker {
        device: facts.id.clone(),
        driver: facts.dma.driver().map(ToOwned::to_owned),
        processes: facts.processes.clone(),
        mounts: facts.uses.iter().map(|used| format!("{} {}", used.kind, used.what)).collect(),
        text,
    }
}

fn kernel_text(device: &Device) -> String {
    let facts = &device.facts;
    let driver = facts.dma.driver().unwrap_or("no driver");
    let bridge = if facts.bridge { "bridge, " } else { "" };
    let kind = match (&facts.dma, facts.private_domain) {
        (_, true) => "with a domain of its own",
        (crate::DriverDma::Assumed(_), false) => "unknown, counted as using kernel DMA",
        (crate::DriverDma::Kernel(_), false) => "uses kernel DMA",
        (crate::DriverDma::None | crate::DriverDma::Managed(_), false) => "no kernel DMA",
    };
    let mut text = format!("{bridge}{driver}, {kind}");
    if !facts.processes.is_empty() {
        text.push_str(&format!(", for {}", facts.processes.join(", ")));
    }
    for used in &facts.uses {
        text.push_str(&format!(", {} {}", used.kind, used.what));
    }
    text
}

fn member_text(device: &Device) -> String {
    let bridge = if device.facts.bridge { "bridge, " } else { "" };
    format!("{bridge}{}", device.facts.dma.driver().unwrap_or("no driver"))
}

/// What would let a device be reserved again.
fn ways_out(device: &Device, reason: Reason) -> Vec<String> {
    let id = &device.facts.id;
    match reason {
        Reason::Quarantined => vec![format!("berth quarantine clear {id} --reason TEXT")],
        Reason::Cordoned => vec![format!("berth uncordon {id}")],
        Reason::DeviceDegraded | Reason::DeviceFailed => {
            device.health.causes.iter().map(|cause| repair(id, cause.code)).collect()
        }
        _ => vec![format!("berth explain {id}")],
    }
}

/// What ends a cause.
fn repair(id: &DeviceId, code: CauseCode) -> String {
    match code {
        CauseCode::ConfigGone | CauseCode::PowerState => {
            format!(
                "see the kernel's log of {id}; power-cycle or replace it: it counts again once it answers"
            )
        }
        CauseCode::AerFatal | CauseCode::AerNonfatal => format!(
            "see the kernel's log of {id}; it counts again after quiet_ms of [condition] without new \
             errors, or after a reboot"
        ),
        CauseCode::LinkWidth | CauseCode::LinkSpeed => {
            format!(
                "reseat {id} or its cable: it counts again once its link has all that both ends can do"
            )
        }
        CauseCode::ResetFailed => format!("{id} counts again once a reset of it has worked"),
    }
}
