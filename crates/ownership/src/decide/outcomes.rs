//! Outcomes of kernel work: each ends the intent that it belongs to.

use super::Decision;
use crate::command::{Command, DeviceReturn};
use crate::event::{DeviceLeft, Event};
use crate::ids::{DeviceId, ReservationId};
use crate::model::{OperationKind, ReservationState, ResetOutcome, ResetPolicy};
use crate::reason::Reason;
use crate::record::{Device, Pending, Reservation};
use crate::refusal::Refusal;
use crate::state::State;

impl State {
    pub(super) fn decide_outcome(&self, cmd: &Command) -> Decision {
        match cmd {
            Command::PrepareDone { reservation, hold } => {
                self.pending(reservation, OperationKind::Prepare)?;
                Ok(vec![Event::Prepared { reservation: reservation.clone(), hold: *hold }])
            }
            Command::PrepareFailed { reservation, why, returned } => {
                let (record, _) = self.pending(reservation, OperationKind::Prepare)?;
                let mut devices = self.left(record, returned);
                let touched = |left: &DeviceLeft| {
                    returned.iter().any(|outcome| outcome.device == left.device)
                };
                devices.retain(touched);
                Ok(self.released(record, devices, why))
            }
            Command::AttachDone { reservation } => {
                let (record, pending) = self.pending(reservation, OperationKind::Attach)?;
                let domain = pending.domain.clone().unwrap_or_else(|| record.domain.clone());
                Ok(vec![Event::Attached { reservation: reservation.clone(), domain }])
            }
            Command::DetachDone { reservation } => {
                self.pending(reservation, OperationKind::Detach)?;
                Ok(vec![Event::Detached { reservation: reservation.clone() }])
            }
            Command::ReplaceDone { reservation } => {
                let (record, pending) = self.pending(reservation, OperationKind::Replace)?;
                let domain = pending.domain.clone().unwrap_or_else(|| record.domain.clone());
                Ok(vec![Event::Replaced { reservation: reservation.clone(), domain }])
            }
            Command::HandOverDone { reservation } => {
                let (_, pending) = self.pending(reservation, OperationKind::HandOver)?;
                let nobody = || {
                    let text = format!("outcome of hand over for {reservation}: to no process");
                    Refusal::new(Reason::NoOperation, reservation, text)
                };
                let process = pending.process.clone().ok_or_else(nobody)?;
                Ok(vec![Event::Handed { reservation: reservation.clone(), process }])
            }
            Command::HandOverFailed { reservation, why } => {
                let (record, _) = self.pending(reservation, OperationKind::HandOver)?;
                // Of an adoption that failed nothing is left: nobody asked for a hold.
                if record.adopted && !record.ever_claimed {
                    return Ok(self.released(record, Vec::new(), why));
                }
                self.failed(reservation, OperationKind::HandOver, why)
            }
            Command::ReleaseDone { reservation, returned } => {
                let (record, pending) = self.pending(reservation, OperationKind::Release)?;
                let devices = self.left(record, returned);
                Ok(self.released(record, devices, &pending.cause))
            }
            Command::AttachFailed { reservation, why } => {
                self.failed(reservation, OperationKind::Attach, why)
            }
            Command::DetachFailed { reservation, why } => {
                self.failed(reservation, OperationKind::Detach, why)
            }
            Command::ReplaceFailed { reservation, why } => {
                self.failed(reservation, OperationKind::Replace, why)
            }
            Command::ReleaseFailed { reservation, why } => {
                self.failed(reservation, OperationKind::Release, why)
            }
            Command::HandOverUndone { reservation } => self.hand_over_undone(reservation),
            _ => Ok(Vec::new()),
        }
    }

    fn failed(&self, id: &ReservationId, kind: OperationKind, why: &str) -> Decision {
        self.pending(id, kind)?;
        Ok(vec![Event::Failed { reservation: id.clone(), why: why.to_owned() }])
    }

    /// Only a hand-over that began the claims can be undone, and only before the bind was seen.
    fn hand_over_undone(&self, id: &ReservationId) -> Decision {
        let reservation = self.find(id)?;
        if reservation.state != ReservationState::Handed || reservation.pending.is_some() {
            let text = format!("undo the hand-over of {id}: it is {}", reservation.state);
            return Err(Refusal::new(Reason::NoOperation, id, text));
        }
        Ok(vec![Event::HandOverUndone { reservation: id.clone() }])
    }

    /// The reservation and its intent, if that is of the given kind.
    fn pending(
        &self,
        id: &ReservationId,
        kind: OperationKind,
    ) -> Result<(&Reservation, &Pending), Box<Refusal>> {
        let reservation = self.find(id)?;
        match &reservation.pending {
            Some(pending) if pending.kind == kind => Ok((reservation, pending)),
            Some(pending) => Err(Refusal::new(
                Reason::NoOperation,
                id,
                format!("outcome of {kind} for {id}: {} is under way instead", pending.kind),
            )),
            None => Err(Refusal::new(
                Reason::NoOperation,
                id,
                format!("outcome of {kind} for {id}: nothing is under way"),
            )),
        }
    }

    /// How each device of a reservation is left. One that somebody else has by now, as the
    /// reservation was lost, is left alone.
    fn left(&self, reservation: &Reservation, returned: &[DeviceReturn]) -> Vec<DeviceLeft> {
        let mut ids: Vec<&DeviceId> = reservation.devices().collect();
        ids.extend(
            reservation.taken.iter().filter(|id| !reservation.devices().any(|own| own == *id)),
        );
        let mut left = Vec::new();
        for id in ids {
            let Some(device) = self.device(id) else { continue };
            let holder = self.device_reservation(device);
            if holder.is_some_and(|holder| holder.id != reservation.id) {
                continue;
            }
            let outcome = returned.iter().find(|outcome| outcome.device == *id);
            left.push(self.device_left(reservation, device, outcome));
        }
        left
    }

    fn device_left(
        &self,
        reservation: &Reservation,
        device: &Device,
        outcome: Option<&DeviceReturn>,
    ) -> DeviceLeft {
        let id = &device.facts.id;
        let claimed = reservation.ever_claimed && reservation.devices().any(|own| own == id);
        let reset = effective_reset(claimed, outcome);
        let reported = outcome.map_or(!reservation.prepared, |outcome| outcome.baseline_restored);
        let restored = reported || self.baseline_waits(reservation, device);
        let words = outcome.map(|outcome| outcome.note.as_str()).unwrap_or_default();
        let by_reset = quarantine_by_reset(reservation.reset_policy, reset);
        let quarantined = match (by_reset, restored) {
            (Some(why), _) => Some(with_words(why, words)),
            (None, false) => Some(with_words("its driver could not be restored", words)),
            (None, true) => None,
        };
        let only_label = match (reset, reservation.reset_policy) {
            (ResetOutcome::Verified, _) => None,
            (ResetOutcome::NotPossible, ResetPolicy::AllowSameLabel) => {
                Some(reservation.label.clone())
            }
            (ResetOutcome::NotPossible | ResetOutcome::Failed | ResetOutcome::NotNeeded, _) => {
                device.only_label.clone()
            }
        };
        DeviceLeft {
            device: id.clone(),
            quarantined,
            only_label,
            note: reset_words(reset, words),
            reset_worked: match reset {
                ResetOutcome::Verified => Some(true),
                // Silence counts as unclean, and says nothing of the device.
                ResetOutcome::Failed => outcome.map(|_| false),
                ResetOutcome::NotPossible | ResetOutcome::NotNeeded => None,
            },
        }
    }

    /// No host driver can be bound while others hold the group: the last of them gives the
    /// device back to the host.
    fn baseline_waits(&self, reservation: &Reservation, device: &Device) -> bool {
        let others = self
            .group(&device.group)
            .is_some_and(|group| group.reservations.iter().any(|other| *other != reservation.id));
        others && reservation.taken.contains(&device.facts.id)
    }
}

/// A device that did DMA needs a reset that was reported; silence counts as failure.
fn effective_reset(claimed: bool, outcome: Option<&DeviceReturn>) -> ResetOutcome {
    match (outcome.map(|outcome| outcome.reset), claimed) {
        (None | Some(ResetOutcome::NotNeeded), true) => ResetOutcome::Failed,
        (None, false) => ResetOutcome::NotNeeded,
        (Some(reset), _) => reset,
    }
}

fn quarantine_by_reset(policy: ResetPolicy, reset: ResetOutcome) -> Option<&'static str> {
    match (policy, reset) {
        (ResetPolicy::None, _) => None,
        (_, ResetOutcome::Verified | ResetOutcome::NotNeeded) => None,
        (ResetPolicy::AllowSameLabel, ResetOutcome::NotPossible) => None,
        (ResetPolicy::Require, ResetOutcome::NotPossible) => {
            Some("it can't be reset, and a reset is required")
        }
        (ResetPolicy::Require | ResetPolicy::AllowSameLabel, ResetOutcome::Failed) => {
            Some("its reset failed")
        }
    }
}

fn with_words(why: &str, words: &str) -> String {
    if words.is_empty() { why.to_owned() } else { format!("{why}: {words}") }
}

fn reset_words(reset: ResetOutcome, words: &str) -> String {
    let outcome = match reset {
        ResetOutcome::Verified => "reset verified",
        ResetOutcome::NotPossible => "reset not possible",
        ResetOutcome::Failed => "reset failed",
        ResetOutcome::NotNeeded => "no reset needed",
    };
    with_words(outcome, words)
}
