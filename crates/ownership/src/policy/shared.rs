//! Policy 2, `iommu_attach_device_shared`: the claim presents a domain. The same domain joins,
//! another is refused. The domain stays until the last leaves.
//!
//! A context of this policy holds exactly one domain: whoever has one device of it could attach to
//! any other.

use crate::command::Reserve;
use crate::model::{Delivery, Policy};
use crate::policy::Claimant;
use crate::record::Reservation;
use crate::table::{Operation, OwnershipRow};

/// A holder that makes its own domains could not be kept to the one that it presented.
pub(super) fn delivers(delivery: Delivery) -> bool {
    match delivery {
        Delivery::Held | Delivery::Bound => true,
        Delivery::Unbound | Delivery::Node => false,
    }
}

pub(super) fn malformed(request: &Reserve) -> Option<&'static str> {
    (request.domain.is_some() && request.join.is_some())
        .then_some("a shared claim presents a domain or joins a reservation, not both")
}

pub(super) fn reserve_column() -> Operation {
    Operation::ReserveShared
}

pub(super) fn attach_column() -> Operation {
    Operation::Attach
}

/// Whether the claimant presents the domain that the other presented.
pub(super) fn is_same(claimant: &Claimant<'_>, other: &Reservation) -> bool {
    match other.policy {
        Policy::Shared => claimant.domain == Some(&other.domain),
        Policy::Exclusive | Policy::Group => false,
    }
}

pub(super) fn own_row(claimed: bool, others: bool) -> OwnershipRow {
    match (claimed, others) {
        (true, false) => OwnershipRow::OwnShared,
        (true, true) => OwnershipRow::OwnSharedWithOthers,
        (false, false) => OwnershipRow::OwnHoldShared,
        (false, true) => OwnershipRow::SharedSameDomain,
    }
}

pub(super) fn other_row(claimed: bool, same: bool) -> OwnershipRow {
    match (claimed, same) {
        (true, true) => OwnershipRow::SharedSameDomain,
        (true, false) => OwnershipRow::SharedOtherDomain,
        (false, true) => OwnershipRow::HoldSameDomain,
        (false, false) => OwnershipRow::HoldOtherDomain,
    }
}
