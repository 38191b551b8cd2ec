//! Why a group or device can or can't be given away, device by device.

use std::collections::HashMap;

use berth_host::{Answer, DeviceFacts, DmaKind, Feature, PciAddress, PrivateDomain, ProcessUse};
use berth_ownership::{
    Backend, Cell, Command, Condition, Delivery, Device, DeviceId, Flags, Group, GroupId, Hold,
    Label, Policy, Refusal, ReservationState, Reserve, ResetPolicy, State, Target, TargetRequest,
    Time, table::ConditionOp,
};
use berth_proto::v1;

use super::{
    device::{device, kernel_dma, process, user},
    doctor,
    group::group,
    refusal::refusal,
    words,
};
use crate::model::{DeviceRules, Snapshot};

/// What an explanation needs beside the snapshot.
#[derive(Debug)]
pub struct Asked<'a> {
    /// For which label; nobody in particular when empty.
    pub label: &'a str,
    /// Now.
    pub now: &'a Time,
    /// Processes that have devices open.
    pub processes: &'a HashMap<PciAddress, Vec<ProcessUse>>,
    /// What the host can do.
    pub features: &'a [Feature],
    /// The devices that are meant, where a single one was asked about.
    pub only: Option<&'a DeviceId>,
    /// Which devices may be given away.
    pub rules: &'a DeviceRules,
}

/// Explains a group.
#[must_use]
pub fn explain(snapshot: &Snapshot, record: &Group, asked: &Asked<'_>) -> v1::Explanation {
    let devices: Vec<v1::DeviceVerdict> = record
        .devices
        .iter()
        .filter_map(|id| Some((id, snapshot.device_by_id(id)?)))
        .map(|(id, facts)| verdict(snapshot, record, snapshot.state.device(id), facts, asked))
        .collect();
    let policies: Vec<v1::PolicyVerdict> = Policy::ALL
        .into_iter()
        .map(|policy| {
            let allowed = asked.rules.check(snapshot, record);
            let could = || probe(&snapshot.state, record, policy, asked.label, asked.now);
            let refused = allowed.and_then(|()| could()).err();
            v1::PolicyVerdict {
                policy: words::policy_word(policy).into(),
                may: refused.is_none(),
                refusal: refused.as_deref().map(refusal),
            }
        })
        .collect();
    v1::Explanation {
        summary: summary(record, &devices, &policies, asked.only),
        group: Some(group(snapshot, record)),
        devices,
        policies,
        host_notes: host_notes(asked.features),
        memory_notes: Vec::new(),
        findings: Vec::new(),
    }
}

/// Whether a policy could be used on a group now, by a decision that is thrown away.
///
/// # Errors
/// The refusal that a real reservation would get.
pub(super) fn probe(
    state: &State,
    record: &Group,
    policy: Policy,
    label: &str,
    now: &Time,
) -> Result<(), Box<Refusal>> {
    let delivery = match policy {
        Policy::Exclusive | Policy::Shared => Delivery::Bound,
        Policy::Group => Delivery::Held,
    };
    let command = Command::Reserve(Box::new(Reserve {
        id: "r-000000000000".into(),
        new_context: "c-000000000000".into(),
        new_domain: "d-000000000000".into(),
        holder: "nobody".into(),
        label: Label::new(if label.is_empty() { "-" } else { label }),
        requester: "berthd".to_owned(),
        for_identity: "berthd".to_owned(),
        policy,
        delivery,
        backend: Backend::Iommufd,
        targets: vec![TargetRequest { group: record.id.clone(), devices: Vec::new() }],
        domain: None,
        join: None,
        memory_bytes: 0,
        ttl_ms: None,
        flags: Flags::default(),
        reset_policy: ResetPolicy::AllowSameLabel,
        hold: Hold::Ledger,
        prepare: true,
    }));
    state.decide(&command, now).map(drop)
}

/// What a device's driver does with kernel DMA, and which policies may attach now.
#[must_use]
pub fn kernel_dma_of(snapshot: &Snapshot, facts: &DeviceFacts, now: &Time) -> v1::KernelDma {
    let group: Option<&Group> = facts
        .group
        .and_then(|number| snapshot.group_by_number(number))
        .and_then(|group| snapshot.state.group(&GroupId::new(&group.stable_id)));
    let Some(group) = group else {
        let because = format!("{} has no IOMMU group, so nothing may attach it", facts.address);
        return kernel_dma(facts, [false; 3], because);
    };
    let answers = Policy::ALL.map(|policy| probe(&snapshot.state, group, policy, "", now));
    let because = answers
        .iter()
        .find_map(|answer| answer.as_ref().err())
        .map(|refusal| format!("{}: {}", refusal.reason.name(), refusal.message))
        .unwrap_or_default();
    kernel_dma(facts, answers.map(|answer| answer.is_ok()), because)
}

/// What stands in the way of one device: text, and the command that would resolve it.
pub(super) struct Finding {
    blocks: bool,
    pub(super) text: String,
    pub(super) resolve: String,
}

fn verdict(
    snapshot: &Snapshot,
    group: &Group,
    record: Option<&Device>,
    facts: &DeviceFacts,
    asked: &Asked<'_>,
) -> v1::DeviceVerdict {
    let finding = record
        .and_then(|record| by_condition(&snapshot.state, record, facts, asked.label))
        .or_else(|| by_rule(facts, asked.rules))
        .or_else(|| by_reservation(&snapshot.state, group, facts))
        .or_else(|| record.and_then(|record| by_reset(&snapshot.state, record)))
        .unwrap_or_else(|| by_driver(snapshot, facts));
    let resets = record.map(|record| reset_text(&snapshot.state, record)).unwrap_or_default();
    v1::DeviceVerdict {
        device: Some(device(snapshot, facts)),
        blocks: finding.blocks,
        text: finding.text
            + &resets
            + &record.map(|it| health_text(&snapshot.state, it)).unwrap_or_default(),
        processes: users(facts, asked),
        resolve: finding.resolve,
    }
}

/// Who has the device open, and who keeps a domain of its host driver's own.
fn users(facts: &DeviceFacts, asked: &Asked<'_>) -> Vec<v1::Process> {
    let open = asked.processes.get(&facts.address).into_iter().flatten().map(user);
    let keepers = facts.private_domain.iter().flat_map(|domain| {
        let what = domain.node.clone().unwrap_or_default();
        let keeper = move |text: String| v1::Process { what: what.clone(), ..process(&text) };
        domain.keepers().into_iter().map(keeper)
    });
    open.chain(keepers).collect()
}

/// Whether the site has new reservations refused of a device that shows this.
fn is_refused(state: &State, condition: Condition) -> bool {
    matches!(state.table().condition(condition, ConditionOp::Reserve), Some(Cell::Refuse(..)))
}

/// What stands against a device and keeps nobody away.
fn health_text(state: &State, record: &Device) -> String {
    let condition = record.health.condition();
    if condition == Condition::Ok || is_refused(state, condition) {
        return String::new();
    }
    format!("; it is {}: {}", words::condition_word(condition), record.health.words())
}

fn by_condition(
    state: &State,
    record: &Device,
    facts: &DeviceFacts,
    label: &str,
) -> Option<Finding> {
    let at = facts.address;
    let condition = record.condition();
    let why = record.marks.get(&condition).map(String::as_str).unwrap_or_default();
    let word = words::condition_word(condition);
    let resolve = match condition {
        Condition::Degraded | Condition::Failed if is_refused(state, condition) => {
            format!("berth device show {at}")
        }
        Condition::Ok | Condition::Degraded | Condition::Failed => {
            let only = record.only_label.as_ref().filter(|only| only.as_str() != label)?;
            return Some(Finding {
                blocks: true,
                text: format!("{at} could not be reset since label {only} had it: only {only} may"),
                resolve: format!("berth quarantine clear {at} --reason TEXT"),
            });
        }
        Condition::Cordoned => format!("berth uncordon {at}"),
        Condition::Wedged => String::new(),
        Condition::Quarantined => format!("berth quarantine clear {at} --reason TEXT"),
    };
    Some(Finding { blocks: true, text: format!("{at} is {word}: {why}"), resolve })
}

pub(super) fn by_rule(facts: &DeviceFacts, rules: &DeviceRules) -> Option<Finding> {
    let rule = rules.denies(facts).filter(|_| !facts.bridge)?;
    Some(Finding {
        blocks: true,
        text: format!("{} is not given away: the rule at {rule}", facts.address),
        resolve: format!("change the rule at {}", rule.place),
    })
}

fn by_reservation(state: &State, group: &Group, facts: &DeviceFacts) -> Option<Finding> {
    let id = DeviceId::from(facts.address.to_string());
    let owner = state
        .reservations_of(group)
        .find(|reservation| reservation.devices().any(|device| *device == id))?;
    let what = match owner.state {
        ReservationState::Held => "is attached for",
        ReservationState::Handed => "is handed over, and not bound yet, to",
        ReservationState::Draining => "is still open after the end of",
        ReservationState::Preparing
        | ReservationState::Reserved
        | ReservationState::Expired
        | ReservationState::Lost
        | ReservationState::Released => "is reserved for",
    };
    let mut text = format!(
        "{} {what} {} ({}, {}, label {})",
        facts.address, owner.holder, owner.id, owner.policy, owner.label
    );
    if owner.state == ReservationState::Handed {
        let process = owner.process.as_ref().map(|process| format!(" {}", process.pid));
        text = format!(
            "{text}: until process{} binds it the record and the permissions of its nodes keep \
             others out, not the kernel",
            process.unwrap_or_default()
        );
    }
    Some(Finding { blocks: true, text, resolve: owner.release_command() })
}

/// Somebody has a device that is only reset together with this one.
pub(super) fn by_reset(state: &State, record: &Device) -> Option<Finding> {
    let (id, mine) = (&record.facts.id, record.facts.resets_peers);
    let peers = record.facts.reset_peers.iter().filter_map(|peer| state.device(peer));
    peers.filter(|peer| peer.group != record.group).find_map(|peer| {
        let other = state.device_reservation(peer)?;
        let theirs = peer.facts.resets_peers && other.reset_policy != ResetPolicy::None;
        (mine || theirs).then(|| Finding {
            blocks: true,
            text: format!(
                "{id} is reset together with {} of group {}, which {} for {} has (label {})",
                peer.facts.id, peer.group, other.id, other.holder, other.label
            ),
            resolve: other.release_command(),
        })
    })
}

/// What giving a device back resets beside its group.
fn reset_text(state: &State, record: &Device) -> String {
    let target = Target { group: record.group.clone(), devices: vec![record.facts.id.clone()] };
    let hits = state.reset_hits(&[target], ResetPolicy::AllowSameLabel);
    if hits.is_empty() {
        return String::new();
    }
    let named: Vec<String> =
        hits.iter().map(|hit| format!("{} of group {}", hit.hits, hit.group)).collect();
    format!(
        "; it has no reset of its own: releasing it resets {} too, where that is on a VFIO driver \
         and nobody has it open",
        named.join(", ")
    )
}

fn by_driver(snapshot: &Snapshot, facts: &DeviceFacts) -> Finding {
    let at = facts.address;
    let driver = facts.driver.as_deref().unwrap_or("none");
    let kind = if facts.bridge { "bridge" } else { "device" };
    let blocks = match facts.dma {
        DmaKind::None => {
            let text = format!("{kind} {at} has no driver: it doesn't block");
            return Finding { blocks: false, text, resolve: String::new() };
        }
        DmaKind::Managed => {
            let text = format!(
                "{kind} {at} is on {driver}, which leaves DMA to its user: it doesn't block"
            );
            return Finding { blocks: false, text, resolve: String::new() };
        }
        DmaKind::Kernel => format!("{kind} {at} is on host driver {driver}, which uses kernel DMA"),
        DmaKind::Assumed => {
            format!("{kind} {at} is on {driver}, an unknown driver: it counts as using kernel DMA")
        }
    };
    let keepers = facts.private_domain.as_ref().map(PrivateDomain::keepers).unwrap_or_default();
    if !keepers.is_empty() {
        let who = keepers.join(", ");
        let text = format!("{kind} {at} is on {driver}, with a domain of its own for {who}");
        return Finding { blocks: true, text, resolve: format!("first end {who}") };
    }
    let uses = snapshot.uses_of(at);
    let resolve = doctor::release(at, uses);
    if uses.is_empty() {
        return Finding { blocks: true, text: blocks, resolve };
    }
    let listed: Vec<String> =
        uses.iter().map(|host_use| format!("{} {}", host_use.kind, host_use.detail)).collect();
    let text = format!("{blocks}; the host is using it: {}", listed.join(", "));
    Finding { blocks: true, text, resolve }
}

fn summary(
    record: &Group,
    devices: &[v1::DeviceVerdict],
    policies: &[v1::PolicyVerdict],
    only: Option<&DeviceId>,
) -> String {
    let what = only.map_or_else(
        || format!("group {}", record.id),
        |device| format!("{device} (group {})", record.id),
    );
    let may: Vec<&str> = policies
        .iter()
        .filter(|verdict| verdict.may)
        .map(|verdict| match verdict.policy() {
            v1::Policy::Exclusive => "exclusive",
            v1::Policy::Shared => "shared",
            v1::Policy::Group => "group",
            v1::Policy::Unspecified => "no",
        })
        .collect();
    if !may.is_empty() {
        return format!("{what} can be reserved under: {}", may.join(", "));
    }
    let blocking = devices.iter().filter(|verdict| verdict.blocks).count();
    let first = policies
        .iter()
        .rev()
        .find_map(|verdict| verdict.refusal.as_ref())
        .map(|refusal| refusal.message.as_str())
        .unwrap_or_default();
    format!("{what} can't be reserved: {first} ({blocking} of {} devices block)", devices.len())
}

/// What the whole host lacks.
fn host_notes(features: &[Feature]) -> Vec<String> {
    features
        .iter()
        .filter(|feature| feature.answer != Answer::Yes)
        .map(|feature| {
            let lack = match feature.answer {
                Answer::No => "no",
                Answer::CouldNotTell | Answer::Yes => "could not tell about",
            };
            let what = feature.name.replace('-', " ");
            if feature.note.is_empty() {
                format!("{lack} {what}")
            } else {
                format!("{lack} {what}: {}", feature.note)
            }
        })
        .collect()
}
