//! Reservations as the API has them.

use berth_ownership::{
    Device, HolderProcess, Reservation, ReservationState, ResetHit, ResetOutcome, State,
};
use berth_proto::v1;

use super::{refusal::refusal, words};
use crate::model::{Extra, GivenBack};

/// What turns boot time into wall time.
#[derive(Debug, Clone)]
pub struct Boot {
    /// This boot.
    pub id: std::sync::Arc<str>,
    /// Wall clock minus boot clock.
    ///
    /// # Units
    /// Milliseconds.
    pub offset_ms: i64,
}

/// A reservation as the API has it; it may be one that isn't in the state, as a dry run has it.
#[must_use]
pub fn reservation(
    state: &State,
    record: &Reservation,
    extra: Option<&Extra>,
    boot: &Boot,
) -> v1::Reservation {
    let expires_at = record.expires.as_ref().and_then(|expires| words::expiry(expires, boot));
    v1::Reservation {
        id: record.id.to_string(),
        holder: Some(v1::Holder {
            name: record.holder.to_string(),
            requester: record.requester.clone(),
            for_identity: record.for_identity.clone(),
        }),
        label: record.label.to_string(),
        policy: words::policy_word(record.policy).into(),
        delivery: words::delivery_word(record.delivery).into(),
        backend: words::backend_word(record.backend).into(),
        targets: record.targets.iter().map(target).collect(),
        state: state_word(record.state).into(),
        epoch: record.epoch.0,
        hold: hold(record.hold).into(),
        context: record.context.to_string(),
        domain: record.domain.to_string(),
        token: record.token.to_string(),
        claims: claims(record),
        memory_bytes: record.memory_bytes,
        ttl_ms: record.ttl_ms.unwrap_or(0),
        expires_at,
        created_at: Some(words::timestamp(record.created_ms.0)),
        pending: record
            .pending
            .as_ref()
            .map(|pending| pending.kind.to_string())
            .unwrap_or_default(),
        detail: record.detail.clone(),
        reset_policy: words::reset_policy(record.reset_policy).into(),
        given_back: extra
            .map(|extra| extra.given_back.iter().map(given_back).collect())
            .unwrap_or_default(),
        last_failure: extra.and_then(|extra| extra.last_failure.as_ref()).map(refusal),
        warnings: warnings(state, record),
        adopted: record.adopted,
        writes: Vec::new(),
        kills: Vec::new(),
    }
}

/// Which of its devices don't work as they should, and whose devices giving it back resets too.
fn warnings(state: &State, record: &Reservation) -> Vec<String> {
    if record.state == ReservationState::Released {
        return Vec::new();
    }
    let devices = record.devices().filter_map(|id| state.device(id));
    let mut warnings: Vec<String> = devices.filter_map(not_well).collect();
    warnings.extend(resets(state, record));
    warnings
}

fn not_well(device: &Device) -> Option<String> {
    let (id, health) = (&device.facts.id, &device.health);
    let word = words::condition_word(health.condition());
    (!health.causes.is_empty()).then(|| format!("{id} is {word}: {}", health.words()))
}

fn resets(state: &State, record: &Reservation) -> Vec<String> {
    let hits = state.reset_hits(&record.targets, record.reset_policy);
    hits.iter()
        .map(|hit| {
            let ResetHit { by, hits, group } = hit;
            format!(
                "releasing {by} resets {hits} of group {group} too, where that is on a VFIO driver and \
                 nobody has it open ({}): {by} has no reset of its own",
                whose(state, hit)
            )
        })
        .collect()
}

fn whose(state: &State, hit: &ResetHit) -> String {
    let Some(device) = state.device(&hit.hits) else { return "it is gone".to_owned() };
    if let Some(other) = state.device_reservation(device) {
        return format!("reserved by {} for {}", other.id, other.holder);
    }
    match device.facts.dma.driver() {
        Some(driver) => format!("on {driver}, reserved by nobody"),
        None => "reserved by nobody".to_owned(),
    }
}

fn target(target: &berth_ownership::Target) -> v1::Target {
    v1::Target {
        group: target.group.to_string(),
        devices: target.devices.iter().map(|device| words::address(device.as_str())).collect(),
    }
}

/// The live claims of a reservation.
#[must_use]
pub fn claims(record: &Reservation) -> Vec<v1::Claim> {
    if record.claims == 0 {
        return Vec::new();
    }
    let what = match record.state {
        ReservationState::Draining => "has it open",
        _ => "holder",
    };
    let shown = |process: &HolderProcess| {
        let (name, what) = (process.name.clone(), what.to_owned());
        let pid = i32::try_from(process.pid).ok()?;
        Some(v1::Process { pid, name, what, unit: String::new() })
    };
    let processes: Vec<v1::Process> = record.process.as_ref().and_then(shown).into_iter().collect();
    let mut claims = Vec::new();
    for target in &record.targets {
        for device in &target.devices {
            claims.push(v1::Claim {
                id: format!("{}/{device}", record.id),
                device: Some(words::address(device.as_str())),
                group: target.group.to_string(),
                domain: domain_of(record),
                processes: processes.clone(),
            });
        }
    }
    claims
}

/// The domain that claims are attached to; empty where the holder makes its own.
fn domain_of(record: &Reservation) -> String {
    if record.delivery.holder_owns_domain() { String::new() } else { record.domain.to_string() }
}

fn state_word(state: ReservationState) -> v1::reservation::State {
    use v1::reservation::State;
    match state {
        ReservationState::Preparing => State::Preparing,
        ReservationState::Reserved => State::Reserved,
        ReservationState::Handed => State::Handed,
        ReservationState::Held => State::Held,
        ReservationState::Expired => State::Expired,
        ReservationState::Draining => State::Draining,
        ReservationState::Lost => State::Lost,
        ReservationState::Released => State::Released,
    }
}

fn hold(hold: berth_ownership::Hold) -> v1::reservation::Hold {
    match hold {
        berth_ownership::Hold::Kernel => v1::reservation::Hold::Kernel,
        berth_ownership::Hold::Ledger => v1::reservation::Hold::Ledger,
    }
}

/// How one device was given back, as the API has it.
#[must_use]
pub fn given_back(given: &GivenBack) -> v1::GivenBack {
    use v1::given_back::Reset;
    let reset = match given.reset {
        ResetOutcome::Verified => Reset::Verified,
        ResetOutcome::NotPossible => Reset::NotPossible,
        ResetOutcome::Failed => Reset::Failed,
        ResetOutcome::NotNeeded => Reset::Unspecified,
    };
    v1::GivenBack {
        device: Some(words::address(given.device.as_str())),
        reset: reset.into(),
        reset_method: given.reset_method.clone(),
        baseline_restored: given.baseline_restored,
        driver: given.driver.clone(),
        note: given.note.clone(),
    }
}
