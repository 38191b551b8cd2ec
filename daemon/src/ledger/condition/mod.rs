//! The condition of devices: what they show is looked at again and again, outside the task, and what
//! is otherwise than before is recorded.

mod assess;
#[cfg(test)]
mod assess_tests;
mod look;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use berth_host::{Health, HostError, PciAddress};
use berth_ownership::{CauseCode, Command, Condition, Device, Health as Recorded, State, Time};
use tokio::time::{MissedTickBehavior, interval};

use super::{LedgerHandle, message::Message};
use crate::model::{ApiError, ConditionRules, Meta, ShownHealth, Snapshot};
use assess::{Evidence, assess, notes};
use look::{Busy, look};

/// What looking at one device may take before another thread goes on with the others.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
struct Watch {
    suspects: BTreeMap<PciAddress, BTreeSet<CauseCode>>,
    busy: Busy,
    /// Nobody ever looked at this machine.
    first: bool,
}

/// What a look found that is otherwise than before.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What devices show.
    pub(super) shown: Vec<(PciAddress, Arc<ShownHealth>)>,
    /// What is to be recorded, and why.
    pub(super) assessed: Vec<(Command, Meta)>,
}

impl LedgerHandle {
    /// Looks at the condition of devices again and again, for as long as it is polled. `first` says
    /// that this machine was never looked at before: what it counted until now is held against nobody.
    pub async fn watch_condition(self, rules: ConditionRules, first: bool) {
        let mut watch = Watch { first, ..Watch::default() };
        let mut ticks = interval(rules.poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.degraded().is_some() {
                continue;
            }
            match self.look_at_condition(&mut watch, &rules).await {
                Ok(()) => watch.first = false,
                Err(error) => tracing::warn!(%error, "recording the condition of devices"),
            }
        }
    }

    async fn look_at_condition(
        &self,
        watch: &mut Watch,
        rules: &ConditionRules,
    ) -> Result<(), ApiError> {
        let devices: Vec<PciAddress> = {
            let snapshot = self.snapshot();
            let all = snapshot.state.devices().filter(|it| may_be_asked(&snapshot, it));
            let all = all.filter_map(|device| device.facts.id.as_str().parse().ok());
            all.filter(|device| !watch.busy.has(*device)).collect()
        };
        let host = Arc::clone(&self.shared.host);
        let seen = look(devices, &watch.busy, PATIENCE, move |it| host.health(it)).await;
        // What was decided meanwhile counts.
        let found = watch.judge(seen, &self.snapshot(), rules, &self.clock().now());
        if found.shown.is_empty() && found.assessed.is_empty() {
            return Ok(());
        }
        let found = Box::new(found);
        self.ask(|reply| Message::Condition { found, reply }).await
    }
}

/// Whether a device may be asked now: while kernel work is under way it may be in reset, where it
/// doesn't answer and whoever asks waits.
fn may_be_asked(snapshot: &Snapshot, device: &Device) -> bool {
    !device.facts.bridge
        && !device.marks.contains_key(&Condition::Wedged)
        && device.kernel_dma_op.is_none()
        && !is_worked_on(&snapshot.state, device)
}

fn is_worked_on(state: &State, device: &Device) -> bool {
    let peers = device.facts.reset_peers.iter().filter_map(|peer| state.device(peer));
    let groups = std::iter::once(device).chain(peers).map(|it| &it.group);
    let mut reservations =
        groups.filter_map(|group| state.group(group)).flat_map(|it| state.reservations_of(it));
    reservations.any(|reservation| reservation.pending.is_some())
}

impl Watch {
    fn judge(
        &mut self,
        seen: Vec<(PciAddress, Result<Health, HostError>)>,
        snapshot: &Snapshot,
        rules: &ConditionRules,
        now: &Time,
    ) -> Found {
        let quiet_ms = u64::try_from(rules.quiet.as_millis()).unwrap_or(u64::MAX);
        let mut found = Found::default();
        let there: BTreeSet<PciAddress> = seen.iter().map(|(device, _)| *device).collect();
        self.suspects.retain(|device, _| there.contains(device));
        for (address, health) in seen {
            // One that is gone is seen to be so by a scan.
            let Ok(health) = health else { continue };
            let id = address.to_string().into();
            let known = snapshot.state.device(&id).filter(|it| may_be_asked(snapshot, it));
            let Some(known) = known else { continue };
            let evidence = Evidence {
                shown: &health,
                class: snapshot.device(address).map_or(0, |facts| facts.class),
                failed_resets: known.failed_resets,
                first: self.first,
            };
            let suspects = self.suspects.entry(address).or_default();
            let after = assess(&known.health, suspects, &evidence, quiet_ms, now);
            let notes = notes(&evidence);
            let shown = ShownHealth { health, notes };
            if snapshot.health.get(&address).is_none_or(|known| **known != shown) {
                found.shown.push((address, Arc::new(shown)));
            }
            if after != known.health {
                let meta = Meta::internal(cause(&known.health, &after));
                found.assessed.push((Command::Assess { device: id, health: after }, meta));
            }
        }
        found
    }
}

/// Why a condition is otherwise than before, for the history.
fn cause(before: &Recorded, after: &Recorded) -> String {
    match (before.words(), after.words()) {
        (before, after) if after.is_empty() && before.is_empty() => "errors counted".to_owned(),
        (before, after) if after.is_empty() => format!("no more {before}"),
        (_, after) => after,
    }
}
