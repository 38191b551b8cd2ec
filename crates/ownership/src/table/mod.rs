//! The transition tables, as data: what is looked up here is what happens.
//!
//! Three tables, one for each axis. A decision that depends on an axis looks its cell up, so that
//! a test that flips one cell sees another behaviour. Combinations that can't come up have no cell.

mod condition;
mod doc;
mod kernel;
mod lifecycle;
mod ownership;

use std::collections::BTreeMap;

pub use condition::ConditionOp;
pub use doc::render;
pub use kernel::merged_kernel;
pub use lifecycle::{LifeChange, LifeRow, Order};
pub use ownership::{Change, Operation, OwnershipRow};

use crate::model::Condition;
use crate::reason::{Errno, Reason};

/// The answer to one operation in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<N = Change> {
    /// It is done, and this is what changes on the axis.
    Next(N),
    /// It is refused, with this errno.
    Refuse(Reason, Errno),
}

impl<N> Cell<N> {
    /// A refusal with the reason's own errno.
    pub(crate) fn refuse(reason: Reason) -> Self {
        Self::Refuse(reason, reason.errno())
    }
}

/// The place of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CellRef {
    /// In the table of the ownership axis.
    Ownership(OwnershipRow, Operation),
    /// In the table of the reservation axis.
    Lifecycle(LifeRow, Order),
    /// In the table of the condition axis.
    Condition(Condition, ConditionOp),
}

/// The three tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    ownership: BTreeMap<(OwnershipRow, Operation), Cell>,
    lifecycle: BTreeMap<(LifeRow, Order), Cell<LifeChange>>,
    condition: BTreeMap<(Condition, ConditionOp), Cell<()>>,
}

impl Table {
    /// The tables that Berth follows.
    pub fn standard() -> Self {
        let mut table = Self {
            ownership: BTreeMap::new(),
            lifecycle: BTreeMap::new(),
            condition: BTreeMap::new(),
        };
        for row in OwnershipRow::ALL {
            for op in Operation::ALL {
                if let Some(cell) = ownership::cell(*row, *op) {
                    table.ownership.insert((*row, *op), cell);
                }
            }
        }
        for row in LifeRow::ALL {
            for order in Order::ALL {
                if let Some(cell) = lifecycle::cell(*row, *order) {
                    table.lifecycle.insert((*row, *order), cell);
                }
            }
        }
        for condition in Condition::ALL {
            for op in ConditionOp::ALL {
                table.condition.insert((condition, *op), condition::cell(condition, *op));
            }
        }
        table
    }

    /// The same tables with one cell of the ownership axis turned round.
    #[must_use]
    pub fn flipped(&self, row: OwnershipRow, op: Operation) -> Self {
        self.flipped_at(CellRef::Ownership(row, op))
    }

    /// The same tables with one cell turned round: what was done is refused, what was refused is
    /// done. A place without a cell changes nothing.
    #[must_use]
    pub fn flipped_at(&self, at: CellRef) -> Self {
        let mut table = self.clone();
        match at {
            CellRef::Ownership(row, op) => {
                if let Some(cell) = table.ownership.get_mut(&(row, op)) {
                    *cell = flip(*cell, op.natural());
                }
            }
            CellRef::Lifecycle(row, order) => {
                if let Some(cell) = table.lifecycle.get_mut(&(row, order)) {
                    *cell = flip(*cell, order.natural());
                }
            }
            CellRef::Condition(condition, op) => {
                if let Some(cell) = table.condition.get_mut(&(condition, op)) {
                    *cell = flip(*cell, ());
                }
            }
        }
        table
    }

    /// The same tables with what a site says of new reservations of devices that are degraded or
    /// failed.
    #[must_use]
    pub fn with_conditions(mut self, refuse_degraded: bool, refuse_failed: bool) -> Self {
        for (condition, refuse, reason) in [
            (Condition::Degraded, refuse_degraded, Reason::DeviceDegraded),
            (Condition::Failed, refuse_failed, Reason::DeviceFailed),
        ] {
            let cell = if refuse { Cell::refuse(reason) } else { Cell::Next(()) };
            self.condition.insert((condition, ConditionOp::Reserve), cell);
        }
        self
    }

    /// All cells.
    pub fn cells(&self) -> impl Iterator<Item = CellRef> + '_ {
        let ownership = self.ownership.keys().map(|(row, op)| CellRef::Ownership(*row, *op));
        let lifecycle = self.lifecycle.keys().map(|(row, order)| CellRef::Lifecycle(*row, *order));
        let condition = self.condition.keys().map(|(row, op)| CellRef::Condition(*row, *op));
        ownership.chain(lifecycle).chain(condition)
    }

    /// A cell of the ownership axis.
    pub fn ownership(&self, row: OwnershipRow, op: Operation) -> Option<Cell> {
        self.ownership.get(&(row, op)).copied()
    }

    /// A cell of the reservation axis.
    pub fn lifecycle(&self, row: LifeRow, order: Order) -> Option<Cell<LifeChange>> {
        self.lifecycle.get(&(row, order)).copied()
    }

    /// A cell of the condition axis.
    pub fn condition(&self, condition: Condition, op: ConditionOp) -> Option<Cell<()>> {
        self.condition.get(&(condition, op)).copied()
    }
}

fn flip<N>(cell: Cell<N>, natural: N) -> Cell<N> {
    match cell {
        Cell::Next(_) => Cell::refuse(Reason::Internal),
        Cell::Refuse(..) => Cell::Next(natural),
    }
}
