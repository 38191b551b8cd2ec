//! Adopting: a process that has groups open, unknown to us, becomes the holder of a reservation.
//!
//! Nothing is done to what the process has. The reservation begins as one that is being handed over
//! to it, which is the same from there on: the work asks the kernel whether it still has the groups.

use super::Decision;
use crate::command::{Adopt, Reserve};
use crate::event::Event;
use crate::ids::{ReservationId, Time};
use crate::model::{Delivery, OperationKind, Policy};
use crate::policy::{Claimant, Denial};
use crate::reason::Reason;
use crate::record::{Group, HolderProcess, Pending, Reservation, name_foreign};
use crate::refusal::Refusal;
use crate::state::State;
use crate::table::Operation;

impl State {
    pub(super) fn decide_adopt(&self, adopt: &Adopt, now: &Time) -> Decision {
        check_adopted(&adopt.request)?;
        self.grant(&adopt.request, Some(&adopt.process), now)
    }

    pub(super) fn refuse_adopt(
        &self,
        group: &Group,
        claimant: &Claimant<'_>,
        process: &HolderProcess,
        denial: Denial,
    ) -> Box<Refusal> {
        let mut refusal = self.refuse_ownership(group, claimant, Operation::Adopt, denial);
        let adopt = format!("berth adopt --group {} --pid {}", group.id, process.pid);
        match denial.reason {
            Reason::NotTheOwner => {
                refusal.message = format!(
                    "adopt {process}: it has nothing of {} open, nor has anybody",
                    group.id
                );
            }
            Reason::ForeignOwner => {
                let owners = name_foreign(&group.foreign_pids, &group.foreign).join(", ");
                let has = match group.foreign_pids.contains(&process.pid) {
                    true => "it is not alone there",
                    false => "it has nothing of the group open",
                };
                refusal.message =
                    format!("adopt {process} in {}: {has}: {owners} owns it", group.id);
            }
            Reason::GroupNotSingleton => {
                refusal.resolve = vec![format!("{adopt} --holder NAME --policy group")];
            }
            _ => {}
        }
        refusal
    }

    /// The claims end, and with them a reservation whose holder was adopted: nobody asked for more.
    pub(super) fn with_its_holder(
        &self,
        reservation: &Reservation,
        end: Option<Event>,
        now: &Time,
    ) -> Vec<Event> {
        let Some(end) = end else { return Vec::new() };
        let mut events = vec![end];
        if reservation.adopted && reservation.claims > 0 && reservation.pending.is_none() {
            events.push(release_of(&reservation.id, now));
        }
        events
    }
}

fn release_of(reservation: &ReservationId, now: &Time) -> Event {
    let pending = Pending {
        kind: OperationKind::Release,
        domain: None,
        process: None,
        force: false,
        cause: "the holder that was adopted has ended".to_owned(),
        since_ms: now.unix_ms,
    };
    Event::Started { reservation: reservation.clone(), pending }
}

/// What could not be adopted in any state.
fn check_adopted(request: &Reserve) -> Result<(), Box<Refusal>> {
    let text = if request.policy == Policy::Shared {
        "a process that opened a group by itself presents no domain: policy shared can't be adopted"
    } else if request.delivery != Delivery::Node {
        "a process that is adopted has opened nodes by itself: its delivery is node"
    } else if request.domain.is_some() || request.join.is_some() {
        "a process that is adopted presents neither a domain nor a token"
    } else if request.flags.take_from_host {
        "adopting takes nothing from the host"
    } else {
        return Ok(());
    };
    Err(Refusal::new(Reason::InvalidArgument, &request.id, text))
}

/// The work of an adoption: a hand-over to a process that has it all.
pub(super) fn pending(process: &HolderProcess, now: &Time) -> Pending {
    Pending {
        kind: OperationKind::HandOver,
        domain: None,
        process: Some(process.clone()),
        force: false,
        cause: "adopt".to_owned(),
        since_ms: now.unix_ms,
    }
}
