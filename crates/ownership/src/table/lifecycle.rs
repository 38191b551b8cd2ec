//! The table of the reservation axis.

use super::Cell;
use super::ownership::vocabulary;
use crate::model::ReservationState;
use crate::reason::Reason;
use crate::record::Reservation;

vocabulary!(
    /// How far a reservation has come.
    LifeRow {
        Busy "any state, an operation under way",
        Preparing "preparing",
        Reserved "reserved",
        Handed "handed",
        Held "held",
        Expired "expired",
        Draining "draining",
        Lost "lost",
        Released "released",
    }
);

vocabulary!(
    /// An order for a reservation, or a fact about it.
    Order {
        Attach "attach",
        Detach "detach",
        Replace "replace",
        HandOver "hand over",
        Release "release",
        ReleaseForce "release by force",
        Expire "the lease ends",
        Renew "renew",
        Join "another reservation joins it",
        Forget "forget",
        BindSeen "the holder has bound",
        HolderGone "the holder is gone",
        HolderMoved "another process has it open",
        HolderPassed "a process that came of the holder has it open",
        Restarted "the daemon or the host restarted",
        HoldLost "somebody else took the group",
    }
);

vocabulary!(
    /// What changes on the reservation axis.
    LifeChange {
        Stays "as it was",
        Reserved "reserved",
        Handed "handed (unbound, node); as it was (bound, held)",
        Held "held",
        Detached "reserved (exclusive, shared); held (group)",
        Expired "expired with claims; else as by release",
        Drains "draining with claims; else as it was",
        Resumes "as before the lease ended",
        Lost "lost",
        Released "released, once devices that were touched are given back",
        Forgotten "no longer on record",
    }
);

impl Order {
    /// Whether it is an order, which waits for kernel work, or a fact, which doesn't.
    fn waits(self) -> bool {
        match self {
            Self::Attach
            | Self::Detach
            | Self::Replace
            | Self::HandOver
            | Self::Release
            | Self::ReleaseForce
            | Self::Expire => true,
            Self::Renew
            | Self::Join
            | Self::Forget
            | Self::BindSeen
            | Self::HolderGone
            | Self::HolderMoved
            | Self::HolderPassed
            | Self::Restarted
            | Self::HoldLost => false,
        }
    }

    /// What the order does where it is allowed: what a flipped cell answers.
    pub(super) fn natural(self) -> LifeChange {
        match self {
            Self::Attach => LifeChange::Held,
            Self::Detach => LifeChange::Detached,
            Self::Replace | Self::Join | Self::HolderPassed => LifeChange::Stays,
            Self::HandOver => LifeChange::Handed,
            Self::Release | Self::ReleaseForce => LifeChange::Released,
            Self::Expire => LifeChange::Expired,
            Self::Renew => LifeChange::Resumes,
            Self::Forget => LifeChange::Forgotten,
            Self::BindSeen => LifeChange::Held,
            Self::HolderGone | Self::Restarted => LifeChange::Reserved,
            Self::HolderMoved => LifeChange::Drains,
            Self::HoldLost => LifeChange::Lost,
        }
    }
}

impl LifeRow {
    /// The row that an order meets.
    pub(crate) fn of(reservation: &Reservation, order: Order) -> Self {
        if order.waits() && reservation.pending.is_some() {
            return Self::Busy;
        }
        match reservation.state {
            ReservationState::Preparing => Self::Preparing,
            ReservationState::Reserved => Self::Reserved,
            ReservationState::Handed => Self::Handed,
            ReservationState::Held => Self::Held,
            ReservationState::Expired => Self::Expired,
            ReservationState::Draining => Self::Draining,
            ReservationState::Lost => Self::Lost,
            ReservationState::Released => Self::Released,
        }
    }
}

/// The standard cell, where the combination can come up.
pub(super) fn cell(row: LifeRow, order: Order) -> Option<Cell<LifeChange>> {
    match row {
        LifeRow::Busy => order.waits().then(|| Cell::refuse(Reason::ReservationBusy)),
        LifeRow::Preparing => preparing(order),
        LifeRow::Reserved => Some(reserved(order)),
        LifeRow::Handed => handed(order),
        LifeRow::Held => Some(held(order)),
        LifeRow::Expired => Some(expired(order)),
        LifeRow::Draining => Some(draining(order)),
        LifeRow::Lost => Some(lost(order)),
        LifeRow::Released => Some(released(order)),
    }
}

/// A reservation that is being prepared has an operation under way, always.
fn preparing(order: Order) -> Option<Cell<LifeChange>> {
    match order {
        Order::Forget => Some(Cell::refuse(Reason::ReservationBusy)),
        Order::Renew | Order::Join => Some(Cell::Next(LifeChange::Stays)),
        Order::BindSeen
        | Order::HolderGone
        | Order::HolderMoved
        | Order::HolderPassed
        | Order::Restarted => Some(Cell::Next(LifeChange::Stays)),
        Order::HoldLost => Some(Cell::Next(LifeChange::Lost)),
        Order::Attach
        | Order::Detach
        | Order::Replace
        | Order::HandOver
        | Order::Release
        | Order::ReleaseForce
        | Order::Expire => None,
    }
}

fn reserved(order: Order) -> Cell<LifeChange> {
    match order {
        Order::Attach => Cell::Next(LifeChange::Held),
        Order::Detach | Order::Replace => Cell::Next(LifeChange::Stays),
        Order::HandOver => Cell::Next(LifeChange::Handed),
        Order::Release | Order::ReleaseForce => Cell::Next(LifeChange::Released),
        Order::Expire => Cell::Next(LifeChange::Expired),
        Order::Renew | Order::Join => Cell::Next(LifeChange::Stays),
        Order::Forget => Cell::refuse(Reason::ReservationBusy),
        Order::BindSeen
        | Order::HolderGone
        | Order::HolderMoved
        | Order::HolderPassed
        | Order::Restarted => Cell::Next(LifeChange::Stays),
        Order::HoldLost => Cell::Next(LifeChange::Lost),
    }
}

/// Only a holder that makes its own domains comes here; it is not ours to attach.
fn handed(order: Order) -> Option<Cell<LifeChange>> {
    Some(match order {
        Order::Attach | Order::Detach | Order::Replace => return None,
        Order::HandOver => Cell::Next(LifeChange::Stays),
        Order::Release | Order::ReleaseForce => Cell::Next(LifeChange::Released),
        Order::Expire => Cell::Next(LifeChange::Expired),
        Order::Renew | Order::Join => Cell::Next(LifeChange::Stays),
        Order::Forget => Cell::refuse(Reason::ReservationBusy),
        Order::BindSeen => Cell::Next(LifeChange::Held),
        Order::HolderGone | Order::Restarted => Cell::Next(LifeChange::Reserved),
        Order::HolderMoved => Cell::Next(LifeChange::Drains),
        Order::HolderPassed => Cell::Next(LifeChange::Stays),
        Order::HoldLost => Cell::Next(LifeChange::Lost),
    })
}

fn held(order: Order) -> Cell<LifeChange> {
    match order {
        Order::Attach => Cell::Next(LifeChange::Held),
        Order::Detach => Cell::Next(LifeChange::Detached),
        Order::Replace | Order::HandOver => Cell::Next(LifeChange::Stays),
        Order::Release | Order::ReleaseForce => Cell::Next(LifeChange::Released),
        Order::Expire => Cell::Next(LifeChange::Expired),
        Order::Renew | Order::Join => Cell::Next(LifeChange::Stays),
        Order::Forget => Cell::refuse(Reason::ReservationBusy),
        Order::BindSeen => Cell::Next(LifeChange::Stays),
        Order::HolderGone | Order::Restarted => Cell::Next(LifeChange::Reserved),
        Order::HolderMoved => Cell::Next(LifeChange::Drains),
        Order::HolderPassed => Cell::Next(LifeChange::Stays),
        Order::HoldLost => Cell::Next(LifeChange::Lost),
    }
}

fn expired(order: Order) -> Cell<LifeChange> {
    match order {
        Order::Attach
        | Order::Detach
        | Order::Replace
        | Order::HandOver
        | Order::Release
        | Order::Join => Cell::refuse(Reason::LeaseExpired),
        Order::ReleaseForce => Cell::Next(LifeChange::Released),
        Order::Expire | Order::BindSeen => Cell::Next(LifeChange::Stays),
        Order::Renew => Cell::Next(LifeChange::Resumes),
        Order::Forget => Cell::refuse(Reason::ReservationBusy),
        Order::HolderGone | Order::Restarted => Cell::Next(LifeChange::Reserved),
        Order::HolderMoved => Cell::Next(LifeChange::Drains),
        Order::HolderPassed => Cell::Next(LifeChange::Stays),
        Order::HoldLost => Cell::Next(LifeChange::Lost),
    }
}

fn draining(order: Order) -> Cell<LifeChange> {
    match order {
        Order::Attach
        | Order::Detach
        | Order::Replace
        | Order::HandOver
        | Order::Renew
        | Order::Join => Cell::refuse(Reason::HolderDraining),
        Order::Release | Order::ReleaseForce => Cell::Next(LifeChange::Released),
        Order::Expire | Order::BindSeen => Cell::Next(LifeChange::Stays),
        Order::Forget => Cell::refuse(Reason::ReservationBusy),
        Order::HolderGone | Order::Restarted => Cell::Next(LifeChange::Reserved),
        Order::HolderMoved => Cell::Next(LifeChange::Drains),
        Order::HolderPassed => Cell::Next(LifeChange::Stays),
        Order::HoldLost => Cell::Next(LifeChange::Lost),
    }
}

fn lost(order: Order) -> Cell<LifeChange> {
    match order {
        Order::Attach
        | Order::Detach
        | Order::Replace
        | Order::HandOver
        | Order::Renew
        | Order::Join => Cell::refuse(Reason::HoldLost),
        Order::Release | Order::ReleaseForce => Cell::Next(LifeChange::Released),
        Order::Forget => Cell::refuse(Reason::ReservationBusy),
        Order::Expire
        | Order::BindSeen
        | Order::HolderGone
        | Order::HolderMoved
        | Order::HolderPassed
        | Order::Restarted
        | Order::HoldLost => Cell::Next(LifeChange::Stays),
    }
}

fn released(order: Order) -> Cell<LifeChange> {
    match order {
        Order::Attach
        | Order::Detach
        | Order::Replace
        | Order::HandOver
        | Order::Release
        | Order::ReleaseForce
        | Order::Renew
        | Order::Join => Cell::refuse(Reason::NotFound),
        Order::Forget => Cell::Next(LifeChange::Forgotten),
        Order::Expire
        | Order::BindSeen
        | Order::HolderGone
        | Order::HolderMoved
        | Order::HolderPassed
        | Order::Restarted
        | Order::HoldLost => Cell::Next(LifeChange::Stays),
    }
}
