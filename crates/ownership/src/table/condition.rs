//! The table of the condition axis.

use super::Cell;
use super::ownership::vocabulary;
use crate::model::Condition;
use crate::reason::Reason;

vocabulary!(
    /// An operation, as far as conditions tell operations apart.
    ConditionOp {
        Reserve "reserve",
        Attach "attach, or hand over unbound",
        Detach "detach",
        Replace "replace the domain",
        Release "release",
        KernelDmaSet "set kernel DMA",
        KernelDmaRelease "release kernel DMA",
    }
);

/// The standard cell.
pub(super) fn cell(condition: Condition, op: ConditionOp) -> Cell<()> {
    match condition {
        Condition::Ok | Condition::Degraded => Cell::Next(()),
        Condition::Failed => match op {
            ConditionOp::Reserve => Cell::refuse(Reason::DeviceFailed),
            ConditionOp::Attach
            | ConditionOp::Detach
            | ConditionOp::Replace
            | ConditionOp::Release
            | ConditionOp::KernelDmaSet
            | ConditionOp::KernelDmaRelease => Cell::Next(()),
        },
        Condition::Cordoned => match op {
            ConditionOp::Reserve => Cell::refuse(Reason::Cordoned),
            ConditionOp::Attach
            | ConditionOp::Detach
            | ConditionOp::Replace
            | ConditionOp::Release
            | ConditionOp::KernelDmaSet
            | ConditionOp::KernelDmaRelease => Cell::Next(()),
        },
        Condition::Wedged => match op {
            ConditionOp::Release => Cell::Next(()),
            ConditionOp::Reserve
            | ConditionOp::Attach
            | ConditionOp::Detach
            | ConditionOp::Replace
            | ConditionOp::KernelDmaSet
            | ConditionOp::KernelDmaRelease => Cell::refuse(Reason::Wedged),
        },
        Condition::Quarantined => match op {
            ConditionOp::Reserve | ConditionOp::Attach | ConditionOp::KernelDmaSet => {
                Cell::refuse(Reason::Quarantined)
            }
            ConditionOp::Detach
            | ConditionOp::Replace
            | ConditionOp::Release
            | ConditionOp::KernelDmaRelease => Cell::Next(()),
        },
    }
}
