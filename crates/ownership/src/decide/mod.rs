//! Decisions: what a command does to the state, or why it is refused. Nothing is changed here.

mod adopt;
mod condition;
mod facts;
mod kernel_dma;
mod objects;
mod orders;
mod outcomes;
mod refuse;
mod reserve;
mod reset_scope;
mod sriov;

pub use kernel_dma::KernelDmaUse;
pub use reset_scope::ResetHit;

use crate::command::{Command, Order as OrderFor};
use crate::event::Event;
use crate::ids::{ReservationId, Time};
use crate::model::{Condition, OperationKind};
use crate::policy::{self, Claimant, Denial};
use crate::reason::Reason;
use crate::record::{Group, Pending, Reservation};
use crate::refusal::Refusal;
use crate::state::State;
use crate::table::{Cell, ConditionOp, LifeChange, LifeRow, Operation, Order};

/// Events, or a refusal.
pub(crate) type Decision = Result<Vec<Event>, Box<Refusal>>;

impl State {
    /// Decides a command: events to record and apply, or a refusal. No events: nothing changes.
    ///
    /// # Errors
    ///
    /// A [`Refusal`]: why, who stands in the way, what would resolve it.
    pub fn decide(&self, cmd: &Command, now: &Time) -> Decision {
        match cmd {
            Command::Observe(facts) => Ok(self.decide_observe(facts)),
            Command::GroupGone { group } => Ok(self.decide_group_gone(group)),
            Command::DeviceGone { device } => Ok(self.decide_device_gone(device)),
            Command::Reserve(request) => self.decide_reserve(request, now),
            Command::Adopt(adopt) => self.decide_adopt(adopt, now),
            Command::Attach { order, domain } => self.decide_attach(order, domain.as_ref(), now),
            Command::Detach { order } => self.decide_detach(order, now),
            Command::Replace { order, domain } => self.decide_replace(order, domain, now),
            Command::HandOver { order, process } => self.decide_hand_over(order, process, now),
            Command::Renew { order, ttl_ms } => self.decide_renew(order, *ttl_ms, now),
            Command::Release { order, force } => self.decide_release(order, *force, now),
            Command::Expire { reservation } => self.decide_expire(reservation, now),
            Command::Forget { reservation } => self.decide_forget(reservation),
            Command::PrepareDone { .. }
            | Command::PrepareFailed { .. }
            | Command::AttachDone { .. }
            | Command::AttachFailed { .. }
            | Command::DetachDone { .. }
            | Command::DetachFailed { .. }
            | Command::ReplaceDone { .. }
            | Command::ReplaceFailed { .. }
            | Command::HandOverDone { .. }
            | Command::HandOverFailed { .. }
            | Command::ReleaseDone { .. }
            | Command::ReleaseFailed { .. }
            | Command::HandOverUndone { .. } => self.decide_outcome(cmd),
            Command::BindSeen { .. }
            | Command::HolderGone { .. }
            | Command::HolderMoved { .. }
            | Command::HolderPassed { .. }
            | Command::DetachedByRestart { .. }
            | Command::HoldLost { .. } => self.decide_fact(cmd, now),
            Command::KernelDmaSet { .. }
            | Command::KernelDmaRelease { .. }
            | Command::KernelDmaDone { .. }
            | Command::KernelDmaFailed { .. } => self.decide_kernel_dma(cmd),
            Command::SriovSet { .. } | Command::SriovDone { .. } | Command::SriovFailed { .. } => {
                self.decide_sriov(cmd, now)
            }
            Command::CreateContext { .. }
            | Command::DeleteContext { .. }
            | Command::CreateDomain { .. }
            | Command::DeleteDomain { .. } => self.decide_object(cmd),
            Command::Cordon { device, why, ttl_ms } => self.cordon(device, why, *ttl_ms, now),
            Command::EndCordon { device } => Ok(self.end_cordon(device, now)),
            Command::Wedge { device, why } => self.mark(device, Condition::Wedged, why),
            Command::Quarantine { device, why } => self.mark(device, Condition::Quarantined, why),
            Command::Uncordon { device } => self.unmark_device(device, Condition::Cordoned, ""),
            Command::Unwedge { device } => self.unmark_device(device, Condition::Wedged, ""),
            Command::Assess { device, health } => self.assess(device, health),
            Command::ClearQuarantine { device, why } => {
                self.unmark_device(device, Condition::Quarantined, why)
            }
        }
    }

    /// The reservation of that id.
    fn find(&self, id: &ReservationId) -> Result<&Reservation, Box<Refusal>> {
        self.reservation(id).ok_or_else(|| {
            Refusal::new(Reason::NotFound, id, format!("no reservation is called {id}"))
        })
    }

    /// The reservation of an order, if the order is of its epoch.
    fn find_ordered(&self, order: &OrderFor) -> Result<&Reservation, Box<Refusal>> {
        let reservation = self.find(&order.reservation)?;
        match order.epoch {
            Some(epoch) if epoch != reservation.epoch => Err(Refusal::new(
                Reason::StaleEpoch,
                &reservation.id,
                format!(
                    "the order is of epoch {epoch}, but {} has epoch {}",
                    reservation.id, reservation.epoch
                ),
            )),
            _ => Ok(reservation),
        }
    }

    /// Looks the order up on the reservation axis.
    fn life(&self, reservation: &Reservation, order: Order) -> Result<LifeChange, Box<Refusal>> {
        let row = LifeRow::of(reservation, order);
        #[cfg(test)]
        crate::tests::coverage::note_life(row, order);
        match self.table.lifecycle(row, order) {
            Some(Cell::Next(change)) => Ok(change),
            Some(Cell::Refuse(reason, errno)) => {
                Err(self.refuse_life(reservation, order, reason).with_cell_errno(errno))
            }
            None => Err(self.refuse_life(reservation, order, Reason::Internal)),
        }
    }

    /// Looks the operation up on the condition axis.
    fn condition_allows(&self, group: &Group, op: ConditionOp) -> Result<(), Box<Refusal>> {
        #[cfg(test)]
        crate::tests::coverage::note_condition(group.condition, op);
        match self.table.condition(group.condition, op) {
            Some(Cell::Next(())) => Ok(()),
            Some(Cell::Refuse(reason, errno)) => {
                Err(self.refuse_condition(group, op, reason).with_cell_errno(errno))
            }
            None => Err(self.refuse_condition(group, op, Reason::Internal)),
        }
    }

    /// Looks an order up on the ownership axis, in each group of its reservation. A group where
    /// the order has nothing left to do (`idle`) is passed over, unless all of them are like that.
    fn ownership_allows(
        &self,
        reservation: &Reservation,
        op: impl Fn(&Group) -> Operation,
        idle: Option<Reason>,
    ) -> Result<(), Box<Refusal>> {
        let mut first_idle: Option<(&Group, Denial)> = None;
        let mut acted = false;
        for target in &reservation.targets {
            let Some(group) = self.group(&target.group) else { continue };
            let claimant = claimant_of(reservation, &target.devices);
            match policy::ask(self, group, &claimant, op(group)) {
                Ok(_) => acted = true,
                Err(denial) if Some(denial.reason) == idle => {
                    first_idle.get_or_insert((group, denial));
                }
                Err(denial) => {
                    return Err(self.refuse_ownership(group, &claimant, op(group), denial));
                }
            }
        }
        match first_idle {
            Some((group, denial)) if !acted => {
                let claimant = claimant_of(reservation, &[]);
                Err(self.refuse_ownership(group, &claimant, op(group), denial))
            }
            _ => Ok(()),
        }
    }

    /// Looks an order up on the condition axis, in each group of its reservation.
    fn conditions_allow(
        &self,
        reservation: &Reservation,
        op: ConditionOp,
    ) -> Result<(), Box<Refusal>> {
        reservation
            .targets
            .iter()
            .filter_map(|target| self.group(&target.group))
            .try_for_each(|group| self.condition_allows(group, op))
    }
}

/// A reservation as a claimant in one of its groups.
pub(crate) fn claimant_of<'a>(
    reservation: &'a Reservation,
    devices: &'a [crate::DeviceId],
) -> Claimant<'a> {
    Claimant {
        reservation: Some(reservation),
        policy: Some(reservation.policy),
        domain: Some(&reservation.domain),
        token: Some(&reservation.token),
        other_label: false,
        devices,
        flags: reservation.flags,
        adopts: None,
    }
}

/// The intent of kernel work.
fn start(reservation: &Reservation, kind: OperationKind, now: &Time) -> (ReservationId, Pending) {
    let pending = Pending {
        kind,
        domain: None,
        process: None,
        force: false,
        cause: "request".to_owned(),
        since_ms: now.unix_ms,
    };
    (reservation.id.clone(), pending)
}
