//! Small worlds that are searched whole: what there is, which commands come up, and when two
//! states are the same.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::fixture::{T0, TTL, assess, at, id, observe, order, process, returned};
use crate::*;

/// Which commands come up in a world.
#[derive(Clone, Copy, Debug)]
pub(super) struct World {
    pub name: &'static str,
    /// How many reservations there may be at a time.
    pub owners: usize,
    /// Labels of the owners.
    pub labels: [&'static str; 3],
    pub policies: &'static [Policy],
    pub deliveries: &'static [Delivery],
    pub backends: &'static [Backend],
    /// What may be reserved: groups, with devices named or not.
    pub targets: &'static [&'static [(&'static str, &'static [&'static str])]],
    /// Leases begin, end and are renewed.
    pub leases: bool,
    /// Holders go and move, the daemon restarts, holds are lost.
    pub holders: bool,
    /// Kernel work fails.
    pub failures: bool,
    /// Host drivers come and go, on purpose and not; foreign processes; uses by the host.
    pub host: bool,
    /// Devices are marked, vanish, can't be reset.
    pub conditions: bool,
    /// Groups have to be made viable first.
    pub prepare: bool,
    /// Kernel work is done at once: orders and their outcomes are one step.
    pub atomic: bool,
    /// Foreign processes are adopted.
    pub adopt: bool,
    /// Groups with facts of the host.
    pub host_groups: &'static [&'static str],
    /// Released reservations are kept until they are forgotten.
    pub tombstones: bool,
}

pub(super) const SINGLE: &str = "g-1";
pub(super) const DOUBLE: &str = "g-2";
pub(super) const D1: &str = "0000:01:00.0";
pub(super) const D2: &str = "0000:02:00.0";
pub(super) const D3: &str = "0000:02:00.1";

pub(super) fn plain_facts(group: &str) -> Vec<DeviceFacts> {
    let ids: &[&str] = if group == SINGLE { &[D1] } else { &[D2, D3] };
    ids.iter().map(|id| DeviceFacts::new(*id)).collect()
}

impl World {
    pub(super) fn start(&self) -> State {
        let mut state = State::new();
        for group in [SINGLE, DOUBLE] {
            let facts = observe(group, plain_facts(group));
            let events = state.decide(&facts, &at(T0)).expect("facts are taken");
            state.apply_all(&events);
        }
        state
    }

    /// Every command that comes up in the state, with its time.
    pub(super) fn commands(&self, state: &State) -> Vec<(Command, Time)> {
        let mut cmds = Vec::new();
        for n in 0..self.owners {
            match state.reservation(&id(n)) {
                None => self.reserves(n, &mut cmds),
                Some(record) if record.state == ReservationState::Released => {
                    if self.tombstones {
                        self.reserves(n, &mut cmds);
                        self.orders(state, n, &mut cmds);
                    }
                    cmds.push(Command::Forget { reservation: id(n) });
                }
                Some(_) => {
                    self.orders(state, n, &mut cmds);
                    self.outcomes(state, n, &mut cmds);
                }
            }
        }
        self.domains(&mut cmds);
        if self.host {
            self.host_facts(&mut cmds);
        }
        if self.conditions {
            self.marks(&mut cmds);
        }
        let mut timed: Vec<(Command, Time)> = cmds.into_iter().map(|cmd| (cmd, at(T0))).collect();
        if self.leases {
            for n in 0..self.owners {
                let cmd = Command::Expire { reservation: id(n) };
                timed.extend([(cmd.clone(), at(T0)), (cmd, at(T0 + TTL))]);
            }
        }
        timed
    }

    /// The foreign process of [`Self::host_facts`] is adopted, and one that has nothing.
    fn adopts(&self, n: usize, cmds: &mut Vec<Command>) {
        let policies = self.policies.iter().filter(|policy| **policy != Policy::Shared);
        for policy in policies {
            for targets in self.targets {
                for pid in [99, 98] {
                    let request = Reserve {
                        delivery: Delivery::Node,
                        targets: requests(targets),
                        ttl_ms: self.leases.then_some(TTL),
                        ..self.plain(n, *policy)
                    };
                    let adopt = Adopt { request, process: process(pid) };
                    cmds.push(Command::Adopt(Box::new(adopt)));
                }
            }
        }
    }

    fn reserves(&self, n: usize, cmds: &mut Vec<Command>) {
        if self.adopt {
            self.adopts(n, cmds);
        }
        for policy in self.policies {
            for delivery in self.deliveries {
                for backend in self.backends {
                    for targets in self.targets {
                        let base = Reserve {
                            delivery: *delivery,
                            backend: *backend,
                            targets: requests(targets),
                            ttl_ms: self.leases.then_some(TTL),
                            ..self.plain(n, *policy)
                        };
                        self.variants(n, base, cmds);
                    }
                }
            }
        }
    }

    fn plain(&self, n: usize, policy: Policy) -> Reserve {
        // Two domains and contexts in all: the third owner has those of the first.
        let slot = n % 2;
        Reserve {
            new_context: format!("c-{slot}").into(),
            new_domain: format!("d-{slot}").into(),
            prepare: self.prepare,
            ..super::fixture::reserve(n, policy, self.labels[n], SINGLE)
        }
    }

    fn variants(&self, n: usize, base: Reserve, cmds: &mut Vec<Command>) {
        if base.policy != Policy::Exclusive {
            for other in (0..self.owners).filter(|other| *other != n) {
                let join = Some(id(other));
                cmds.push(super::fixture::ask(Reserve { join, ..base.clone() }));
            }
            for domain in ["d-0", "d-1"] {
                let domain = Some(domain.into());
                cmds.push(super::fixture::ask(Reserve { domain, ..base.clone() }));
            }
        }
        if self.host {
            for anyway in [false, true] {
                let flags = Flags { take_from_host: true, host_uses_it_anyway: anyway };
                cmds.push(super::fixture::ask(Reserve { flags, ..base.clone() }));
            }
        }
        if self.host && self.labels[0] != self.labels[1] && base.policy != Policy::Exclusive {
            let flags = Flags { take_from_host: true, host_uses_it_anyway: true };
            let domain = Some("d-0".into());
            cmds.push(super::fixture::ask(Reserve { flags, domain, ..base.clone() }));
        }
        if self.conditions {
            let reset_policy = ResetPolicy::Require;
            cmds.push(super::fixture::ask(Reserve { reset_policy, ..base.clone() }));
        }
        cmds.push(super::fixture::ask(base));
    }

    fn orders(&self, state: &State, n: usize, cmds: &mut Vec<Command>) {
        let reservation = id(n);
        cmds.push(Command::Attach { order: order(n), domain: None });
        cmds.push(Command::Detach { order: order(n) });
        for domain in ["d-0", "d-1"] {
            cmds.push(Command::Replace { order: order(n), domain: domain.into() });
            cmds.push(Command::Attach { order: order(n), domain: Some(domain.into()) });
        }
        cmds.push(Command::HandOver { order: order(n), process: process(1) });
        cmds.push(Command::BindSeen { reservation: reservation.clone(), process: None });
        cmds.push(Command::Release { order: order(n), force: false });
        if let Some(record) = state.reservation(&reservation) {
            let stale = Order::at(reservation.clone(), Epoch(record.epoch.0.saturating_sub(1)));
            cmds.push(Command::Detach { order: stale });
        }
        cmds.push(Command::Forget { reservation: reservation.clone() });
        if self.leases {
            cmds.push(Command::Renew { order: order(n), ttl_ms: None });
        }
        if self.holders {
            cmds.push(Command::Release { order: order(n), force: true });
            cmds.push(Command::HolderGone { reservation: reservation.clone() });
            let moved = process(2);
            cmds.push(Command::HolderMoved { reservation: reservation.clone(), process: moved });
            let passed = process(2);
            cmds.push(Command::HolderPassed { reservation: reservation.clone(), process: passed });
            let why = "restart".to_owned();
            cmds.push(Command::DetachedByRestart { reservation: reservation.clone(), why });
            cmds.push(Command::HandOverUndone { reservation: reservation.clone() });
            cmds.push(Command::HoldLost { reservation, why: "taken".to_owned() });
        }
    }

    pub(super) fn outcomes(&self, state: &State, n: usize, cmds: &mut Vec<Command>) {
        let reservation = id(n);
        let why = "no".to_owned();
        let Some(record) = state.reservation(&reservation) else { return };
        let Some(pending) = &record.pending else { return };
        let (done, failed) = match pending.kind {
            OperationKind::Prepare => (
                Command::PrepareDone { reservation: reservation.clone(), hold: Hold::Ledger },
                Command::PrepareFailed {
                    reservation,
                    why,
                    returned: returned(state, n, ResetOutcome::NotNeeded),
                },
            ),
            OperationKind::Attach => (
                Command::AttachDone { reservation: reservation.clone() },
                Command::AttachFailed { reservation, why },
            ),
            OperationKind::Detach => (
                Command::DetachDone { reservation: reservation.clone() },
                Command::DetachFailed { reservation, why },
            ),
            OperationKind::Replace => (
                Command::ReplaceDone { reservation: reservation.clone() },
                Command::ReplaceFailed { reservation, why },
            ),
            OperationKind::HandOver => (
                Command::HandOverDone { reservation: reservation.clone() },
                Command::HandOverFailed { reservation, why },
            ),
            OperationKind::Release => {
                let resets: &[ResetOutcome] = if self.conditions {
                    &[ResetOutcome::Verified, ResetOutcome::NotPossible, ResetOutcome::Failed]
                } else {
                    &[ResetOutcome::Verified]
                };
                for reset in resets {
                    let returned = returned(state, n, *reset);
                    let reservation = reservation.clone();
                    cmds.push(Command::ReleaseDone { reservation, returned });
                }
                if self.failures {
                    cmds.push(Command::ReleaseFailed { reservation, why });
                }
                return;
            }
        };
        cmds.push(done);
        if self.failures {
            cmds.push(failed);
        }
    }

    fn domains(&self, cmds: &mut Vec<Command>) {
        if self.policies.contains(&Policy::Group) {
            for (domain, context) in [("d-0", "c-1"), ("d-1", "c-0")] {
                let create =
                    Command::CreateDomain { domain: domain.into(), context: context.into() };
                cmds.extend([create, Command::DeleteDomain { domain: domain.into() }]);
            }
        }
    }

    fn host_facts(&self, cmds: &mut Vec<Command>) {
        for group in self.host_groups {
            let plain = plain_facts(group);
            cmds.push(observe(group, plain.clone()));
            cmds.push(super::fixture::foreign(group, plain.clone(), 99));
            let mut driven = plain;
            driven[0].dma = DriverDma::Kernel("nvme".to_owned());
            cmds.push(observe(group, driven.clone()));
            let mut private = driven.clone();
            private[0].private_domain = true;
            cmds.push(observe(group, private));
            driven[0].uses = vec![HostUse { kind: "mount".to_owned(), what: "/".to_owned() }];
            cmds.push(observe(group, driven));
        }
        for group in self.host_groups {
            let device = plain_facts(group)[0].id.clone();
            cmds.push(Command::KernelDmaSet { device: device.clone(), driver: None });
            for host_uses_it_anyway in [false, true] {
                let device = device.clone();
                cmds.push(Command::KernelDmaRelease { device, host_uses_it_anyway });
            }
            let dma = DriverDma::Kernel("nvme".to_owned());
            cmds.push(Command::KernelDmaDone { device: device.clone(), dma });
            let dma = DriverDma::None;
            cmds.push(Command::KernelDmaDone { device: device.clone(), dma });
            cmds.push(Command::KernelDmaFailed { device, why: "no".to_owned() });
        }
    }

    fn marks(&self, cmds: &mut Vec<Command>) {
        let why = || "marked".to_owned();
        let device = DeviceId::from(D2);
        cmds.push(Command::Cordon { device: device.clone(), why: why(), ttl_ms: None });
        cmds.push(Command::Uncordon { device: device.clone() });
        cmds.push(Command::Wedge { device: device.clone(), why: why() });
        cmds.push(Command::Unwedge { device: device.clone() });
        cmds.push(Command::Quarantine { device: device.clone(), why: why() });
        cmds.push(Command::ClearQuarantine { device: device.clone(), why: why() });
        if self.owners < 2 {
            for codes in [&[][..], &[CauseCode::LinkWidth], &[CauseCode::ConfigGone]] {
                cmds.push(assess(device.clone(), codes));
            }
        }
        cmds.push(Command::KernelDmaSet { device: device.clone(), driver: None });
        cmds.push(Command::KernelDmaFailed { device, why: why() });
        cmds.push(Command::DeviceGone { device: D3.into() });
        if self.host {
            cmds.push(Command::KernelDmaSet { device: D3.into(), driver: None });
            cmds.push(Command::KernelDmaFailed { device: D3.into(), why: why() });
        } else {
            cmds.push(observe(DOUBLE, plain_facts(DOUBLE)));
        }
    }
}

fn requests(targets: &[(&str, &[&str])]) -> Vec<TargetRequest> {
    let request = |(group, devices): &(&str, &[&str])| TargetRequest {
        group: GroupId::from(*group),
        devices: devices.iter().map(|device| DeviceId::from(*device)).collect(),
    };
    targets.iter().map(request).collect()
}

/// Two states of one key behave alike: epochs count by their rank in each group, as they are
/// compared there only; words and processes don't count.
pub(super) fn key(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    for group in state.groups() {
        let mut holders = group.reservations.clone();
        holders.sort();
        (&group.id, &group.devices, &group.ownership, group.condition).hash(&mut hasher);
        let mut epochs: BTreeSet<Epoch> =
            state.reservations_of(group).map(|held| held.epoch).collect();
        epochs.insert(group.epoch);
        let rank = |epoch: Epoch| epochs.iter().position(|other| *other == epoch);
        rank(group.epoch).hash(&mut hasher);
        for held in holders.iter().filter_map(|id| state.reservation(id)) {
            rank(held.epoch).hash(&mut hasher);
        }
        (holders, &group.foreign_pids, &group.attached).hash(&mut hasher);
    }
    for device in state.devices().chain(state.absent.values().map(AsRef::as_ref)) {
        let facts = &device.facts;
        (&facts.id, &facts.dma, facts.private_domain, &facts.uses).hash(&mut hasher);
        let marks: Vec<_> = device.marks.keys().collect();
        (&device.group, marks, &device.only_label, &device.kernel_dma_op).hash(&mut hasher);
    }
    state.absent.len().hash(&mut hasher);
    for record in state.reservations() {
        let pending = record.pending.as_ref();
        let pending = pending.map(|pending| (pending.kind, &pending.domain, pending.force));
        (&record.id, record.policy, record.delivery, record.backend, pending).hash(&mut hasher);
        (record.state, record.resume, record.claims, record.ever_claimed).hash(&mut hasher);
        (record.prepared, &record.context, &record.domain, &record.token).hash(&mut hasher);
        (&record.label, &record.taken, &record.expires).hash(&mut hasher);
        (record.flags.take_from_host, record.flags.host_uses_it_anyway).hash(&mut hasher);
        for target in &record.targets {
            (&target.group, &target.devices).hash(&mut hasher);
        }
        (record.reset_policy, record.adopted).hash(&mut hasher);
    }
    for context in state.contexts() {
        let mut users = context.reservations.clone();
        users.sort();
        (&context.id, &context.label, context.policy, users, &context.domains).hash(&mut hasher);
        (context.backend, context.holder_owned, context.automatic).hash(&mut hasher);
    }
    hasher.finish()
}
