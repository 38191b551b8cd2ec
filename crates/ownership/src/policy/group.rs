//! Policy 3, `iommu_group_set_dma_owner` and `iommu_replace_group_domain`: the claim presents an
//! owner token and needs no domain. The same token joins, another is refused. Its owner attaches,
//! detaches and replaces the whole group's domain; DMA is blocked while none is attached.

use crate::command::Reserve;
use crate::model::{Delivery, Policy};
use crate::policy::Claimant;
use crate::record::Reservation;
use crate::table::{Operation, OwnershipRow};

/// `bound` is left out: a bound descriptor could attach and detach behind the token's back.
pub(super) fn delivers(delivery: Delivery) -> bool {
    match delivery {
        Delivery::Held | Delivery::Unbound | Delivery::Node => true,
        Delivery::Bound => false,
    }
}

pub(super) fn malformed(_request: &Reserve) -> Option<&'static str> {
    None
}

pub(super) fn reserve_column() -> Operation {
    Operation::ReserveGroup
}

pub(super) fn attach_column() -> Operation {
    Operation::Attach
}

/// Whether the claimant presents the token that the other presented.
pub(super) fn is_same(claimant: &Claimant<'_>, other: &Reservation) -> bool {
    match other.policy {
        Policy::Group => claimant.token == Some(&other.token),
        Policy::Exclusive | Policy::Shared => false,
    }
}

pub(super) fn own_row(claimed: bool, others: bool, attached: bool) -> OwnershipRow {
    match (claimed, others, attached) {
        (true, _, true) => OwnershipRow::OwnGroupAttached,
        (true, _, false) => OwnershipRow::OwnGroupDetached,
        (false, true, true) => OwnershipRow::GroupSameAttached,
        (false, true, false) => OwnershipRow::GroupSameDetached,
        (false, false, _) => OwnershipRow::OwnHoldGroup,
    }
}

pub(super) fn other_row(claimed: bool, same: bool, attached: bool) -> OwnershipRow {
    match (claimed, same, attached) {
        (true, true, true) => OwnershipRow::GroupSameAttached,
        (true, true, false) => OwnershipRow::GroupSameDetached,
        (true, false, _) => OwnershipRow::GroupOther,
        (false, true, _) => OwnershipRow::HoldSameToken,
        (false, false, _) => OwnershipRow::HoldOther,
    }
}
