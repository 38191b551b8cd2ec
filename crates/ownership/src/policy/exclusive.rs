//! Policy 1, `iommu_attach_device`: a device attaches its own private domain and is the only DMA
//! user of its group.
//!
//! Every device in the group counts, bridges included, as the kernel counts them. A second claim
//! of any kind is refused. It presents nothing, so that nothing ever joins it.

use crate::command::Reserve;
use crate::model::Delivery;
use crate::record::Group;
use crate::table::{Operation, OwnershipRow};

/// A private domain can be driven by anyone: all deliveries.
pub(super) fn delivers(delivery: Delivery) -> bool {
    match delivery {
        Delivery::Held | Delivery::Bound | Delivery::Unbound | Delivery::Node => true,
    }
}

pub(super) fn malformed(request: &Reserve) -> Option<&'static str> {
    if request.domain.is_some() {
        return Some("an exclusive claim makes its own private domain and presents none");
    }
    request.join.is_some().then_some("an exclusive claim joins nothing")
}

pub(super) fn reserve_column(group: &Group) -> Operation {
    if is_single(group) { Operation::ReserveExclusive } else { Operation::ReserveExclusiveCrowded }
}

pub(super) fn attach_column(group: &Group) -> Operation {
    if is_single(group) { Operation::Attach } else { Operation::AttachCrowded }
}

pub(super) fn is_single(group: &Group) -> bool {
    group.devices.len() == 1
}

pub(super) fn own_row(claimed: bool) -> OwnershipRow {
    if claimed { OwnershipRow::OwnExclusive } else { OwnershipRow::OwnHoldExclusive }
}

pub(super) fn other_row(claimed: bool) -> OwnershipRow {
    if claimed { OwnershipRow::ExclusiveOther } else { OwnershipRow::HoldOther }
}
