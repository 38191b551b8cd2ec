//! Which cells this thread's decisions looked up.

use std::cell::RefCell;

use crate::model::Condition;
use crate::table::{CellRef, ConditionOp, LifeRow, Operation, Order, OwnershipRow};

thread_local! {
    static SEEN: RefCell<Vec<CellRef>> = const { RefCell::new(Vec::new()) };
}

fn insert(cell: CellRef) {
    SEEN.with_borrow_mut(|seen| seen.push(cell));
}

pub(crate) fn note(row: OwnershipRow, op: Operation) {
    insert(CellRef::Ownership(row, op));
}

pub(crate) fn note_life(row: LifeRow, order: Order) {
    insert(CellRef::Lifecycle(row, order));
}

pub(crate) fn note_condition(condition: Condition, op: ConditionOp) {
    insert(CellRef::Condition(condition, op));
}

/// The cells that were looked up since the last call.
pub(crate) fn take() -> Vec<CellRef> {
    SEEN.take()
}
