//! Dry runs: what a call would decide and write to sysfs, with nothing of it done.

use std::sync::Arc;

use berth_host::PciAddress;
use berth_ownership::{Command, DeviceId, Event, Reserve};
use berth_proto::v1;

use super::{
    Service,
    reserve::{host_uses, members_of},
};
use crate::{
    acts::rehearsal::{Rehearsed, rehearse},
    ledger,
    model::{ApiError, Caller, Snapshot},
    view,
};

/// What the real call looks at again before it is decided.
#[derive(Debug)]
pub(super) enum Look {
    /// Nothing.
    Nothing,
    /// Some devices.
    Devices(Vec<PciAddress>),
    /// All of the machine.
    Machine,
}

impl Service {
    /// What would come of a command. What is looked at again is so for this answer alone.
    ///
    /// # Errors
    /// The refusal, or why the kernel work would fail.
    pub(super) async fn rehearse(
        &self,
        look: Look,
        command: Command,
    ) -> Result<Rehearsed, ApiError> {
        let (host, ledger) = (Arc::clone(&self.host), self.ledger.clone());
        let tried = tokio::task::spawn_blocking(move || {
            let trial = ledger.trial()?;
            match look {
                Look::Nothing => {}
                Look::Devices(devices) => match ledger::look(&*host, &devices) {
                    Ok(looked) => trial.refresh(looked),
                    Err(error) => tracing::warn!(%error, "looking at devices for a dry run"),
                },
                Look::Machine => trial.observe(ledger.look_at_all()?),
            }
            rehearse(host, trial, &command).map_err(ApiError::from)
        });
        tried.await.map_err(|error| {
            ApiError::internal("dry run", format!("the dry run ended early: {error}"))
        })?
    }

    /// What a dry run answers: the reservation as it would be, and what would be written.
    pub(super) async fn reserve_tried(
        &self,
        caller: &Caller,
        template: Reserve,
    ) -> Result<v1::Reservation, ApiError> {
        self.within_quotas(caller, &template)?;
        let snapshot = self.snapshot();
        let again = template.flags.take_from_host || host_uses(&snapshot, &template);
        let look = match again {
            true => Look::Devices(members_of(&snapshot, &template)),
            false => Look::Nothing,
        };
        let tried = self.rehearse(look, Command::Reserve(Box::new(template))).await?;
        let shown = planned(&tried.before, &tried.events)?;
        Ok(v1::Reservation { writes: view::writes(tried.writes), ..shown })
    }

    /// What would come of it, decided on a copy that is thrown away.
    pub(super) fn dry_run(&self, command: &Command) -> Result<v1::Reservation, ApiError> {
        let snapshot = self.snapshot();
        let events = snapshot.state.decide(command, &self.ledger.clock().now())?;
        planned(&snapshot, &events)
    }
}

/// The reservation that would be made.
fn planned(snapshot: &Snapshot, events: &[Event]) -> Result<v1::Reservation, ApiError> {
    let record = events.iter().find_map(|event| match event {
        Event::Reserved { reservation } => Some(reservation),
        _ => None,
    });
    let record =
        record.ok_or_else(|| ApiError::internal("dry_run", "a dry run led to no reservation"))?;
    let mut shown = view::reservation(&snapshot.state, record, None, &snapshot.boot);
    shown.detail = taken_text(&record.taken);
    Ok(shown)
}

fn taken_text(taken: &[DeviceId]) -> String {
    if taken.is_empty() {
        return "dry run".to_owned();
    }
    let names: Vec<&str> = taken.iter().map(DeviceId::as_str).collect();
    format!("dry run: would take {} from host drivers", names.join(", "))
}
