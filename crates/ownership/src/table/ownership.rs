//! The table of the ownership axis.
//!
//! A row says what an operation meets in a group, seen by the one who asks: the reservation whose
//! order it is, the one that is being made, or nobody (host drivers).

use super::Cell;
use crate::reason::{Errno, Reason};

macro_rules! vocabulary {
    ($(#[$doc:meta])* $name:ident { $($variant:ident $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $(#[doc = concat!($text, ".")] $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The words for it in the docs.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}
pub(super) use vocabulary;

vocabulary!(
    /// What an operation meets in a group.
    OwnershipRow {
        Free "free: nobody holds or owns it",
        HostUses "in use by the host: a member is mounted, routes, is the console",
        Kernel "kernel(n): host drivers",
        KernelTaken "kernel(n) or private, given up on purpose",
        KernelBusy "a host driver is being bound or unbound on purpose",
        Private "private: a host driver's own domain",
        Foreign "foreign: a process that is not ours",
        ForeignAdopted "foreign: the process that is to be adopted, and no other",
        HoldOther "held by another reservation",
        HoldOtherDomain "held by another reservation for another domain",
        HoldSameDomain "held by another reservation for the same domain",
        HoldSameToken "held by another reservation of the same token",
        DeviceTaken "same domain or token, but another reservation has this very device",
        ExclusiveOther "exclusive, another's",
        SharedOtherDomain "shared(n), another domain",
        SharedSameDomain "shared(n), same domain, not a member yet",
        GroupOther "group(token, n), another token",
        GroupSameAttached "group(token, n), same token, attached, not a member yet",
        GroupSameDetached "group(token, n), same token, DMA blocked, not a member yet",
        OwnHoldExclusive "held by itself, to be exclusive",
        OwnHoldShared "held by itself, to be shared",
        OwnHoldGroup "held by itself, to be owned by token",
        OwnExclusive "exclusive, its own",
        OwnShared "shared(n), its own alone",
        OwnSharedWithOthers "shared(n), its own and others'",
        OwnGroupAttached "group(token, n), its own, attached",
        OwnGroupDetached "group(token, n), its own, DMA blocked",
    }
);

vocabulary!(
    /// An operation on a group.
    Operation {
        ReserveExclusive "reserve exclusive, group of one device",
        ReserveExclusiveCrowded "reserve exclusive, group of several devices",
        ReserveShared "reserve shared",
        ReserveGroup "reserve group",
        ReserveOtherLabel "reserve, presenting a domain or token of another label",
        Attach "attach, or hand over unbound",
        AttachCrowded "attach exclusive, group of several devices by now",
        Detach "detach",
        Replace "replace the domain",
        Release "release",
        KernelDmaSet "set kernel DMA (bind a host driver)",
        KernelDmaRelease "release kernel DMA (unbind a host driver)",
        Adopt "adopt the process that has it",
    }
);

vocabulary!(
    /// What an operation changes on the ownership axis.
    Change {
        Stays "as it was",
        HoldBegins "free, and held by it",
        HoldJoins "as it was, and held by it too",
        HoldTakes "held by it; free once the host drivers are unbound",
        ExclusiveBegins "exclusive",
        SharedBegins "shared(its devices)",
        SharedJoins "shared(n + its devices)",
        GroupBegins "group(its token, its devices), attached",
        GroupJoins "group(token, n + its devices), attached",
        GroupAttaches "group(token, n), attached",
        GroupBlocks "group(token, n), DMA blocked",
        Replaces "group(token, n), the new domain",
        AdoptBegins "exclusive, or group(its token, its devices), attached: by that process",
        ClaimsEnd "free, and still held by it",
        SharedLeaves "shared(n - its devices), and still held by it",
        HoldEnds "its claims and its hold end",
        KernelGains "kernel(n + 1)",
        KernelLoses "kernel(n - 1), at 0 free",
    }
);

impl Operation {
    /// What the operation does where it is allowed: what a flipped cell answers.
    pub(super) fn natural(self) -> Change {
        match self {
            Self::ReserveExclusive
            | Self::ReserveExclusiveCrowded
            | Self::ReserveShared
            | Self::ReserveGroup
            | Self::ReserveOtherLabel => Change::HoldJoins,
            Self::Attach | Self::AttachCrowded => Change::SharedJoins,
            Self::Detach => Change::ClaimsEnd,
            Self::Replace => Change::Replaces,
            Self::Release => Change::HoldEnds,
            Self::KernelDmaSet => Change::KernelGains,
            Self::KernelDmaRelease => Change::KernelLoses,
            Self::Adopt => Change::AdoptBegins,
        }
    }
}

/// The standard cell, where the combination can come up.
pub(super) fn cell(row: OwnershipRow, op: Operation) -> Option<Cell> {
    match op {
        Operation::ReserveExclusive => reserve_exclusive(row),
        Operation::ReserveExclusiveCrowded => reserve_exclusive(row).map(|cell| match own(row) {
            true => cell,
            false => Cell::refuse(Reason::GroupNotSingleton),
        }),
        Operation::ReserveShared => reserve_shared(row),
        Operation::ReserveGroup => reserve_group(row),
        Operation::ReserveOtherLabel => reserve_other_label(row),
        Operation::Attach => attach(row),
        Operation::AttachCrowded => attach_crowded(row),
        Operation::Detach => detach(row),
        Operation::Replace => replace(row),
        Operation::Release => release(row),
        Operation::KernelDmaSet => kernel_dma_set(row),
        Operation::KernelDmaRelease => kernel_dma_release(row),
        Operation::Adopt => adopt(row),
    }
}

/// Whether the row is one of the asker's own.
fn own(row: OwnershipRow) -> bool {
    use OwnershipRow as R;
    match row {
        R::OwnHoldExclusive
        | R::OwnHoldShared
        | R::OwnHoldGroup
        | R::OwnExclusive
        | R::OwnShared
        | R::OwnSharedWithOthers
        | R::OwnGroupAttached
        | R::OwnGroupDetached => true,
        R::Free
        | R::HostUses
        | R::Kernel
        | R::KernelTaken
        | R::KernelBusy
        | R::Private
        | R::Foreign
        | R::ForeignAdopted
        | R::HoldOther
        | R::HoldOtherDomain
        | R::HoldSameDomain
        | R::HoldSameToken
        | R::DeviceTaken
        | R::ExclusiveOther
        | R::SharedOtherDomain
        | R::SharedSameDomain
        | R::GroupOther
        | R::GroupSameAttached
        | R::GroupSameDetached => false,
    }
}

/// What every reservation meets alike; none where the policies differ.
fn reserve_any(row: OwnershipRow) -> Option<Cell> {
    use OwnershipRow as R;
    Some(match row {
        R::Free => Cell::Next(Change::HoldBegins),
        R::HostUses => Cell::refuse(Reason::HostUsesDevice),
        R::Kernel | R::Private => Cell::refuse(Reason::KernelDma),
        R::KernelTaken => Cell::Next(Change::HoldTakes),
        R::KernelBusy => Cell::refuse(Reason::ReservationBusy),
        R::Foreign => Cell::refuse(Reason::ForeignOwner),
        R::HoldOther => Cell::Refuse(Reason::GroupOwned, Errno::EBUSY),
        R::DeviceTaken => Cell::Refuse(Reason::GroupOwned, Errno::EBUSY),
        R::ExclusiveOther | R::GroupOther => Cell::refuse(Reason::GroupOwned),
        R::ForeignAdopted
        | R::HoldOtherDomain
        | R::HoldSameDomain
        | R::HoldSameToken
        | R::SharedOtherDomain
        | R::SharedSameDomain
        | R::GroupSameAttached
        | R::GroupSameDetached
        | R::OwnHoldExclusive
        | R::OwnHoldShared
        | R::OwnHoldGroup
        | R::OwnExclusive
        | R::OwnShared
        | R::OwnSharedWithOthers
        | R::OwnGroupAttached
        | R::OwnGroupDetached => return None,
    })
}

/// An exclusive claim presents nothing, so that it never meets its own domain or token.
fn reserve_exclusive(row: OwnershipRow) -> Option<Cell> {
    use OwnershipRow as R;
    match row {
        R::HoldOtherDomain => Some(Cell::Refuse(Reason::GroupOwned, Errno::EBUSY)),
        R::SharedOtherDomain => Some(Cell::refuse(Reason::GroupOwned)),
        R::DeviceTaken => None,
        other => reserve_any(other),
    }
}

fn reserve_shared(row: OwnershipRow) -> Option<Cell> {
    use OwnershipRow as R;
    match row {
        R::HoldSameDomain | R::SharedSameDomain => Some(Cell::Next(Change::HoldJoins)),
        R::HoldOtherDomain | R::SharedOtherDomain => Some(Cell::refuse(Reason::DomainMismatch)),
        other => reserve_any(other),
    }
}

fn reserve_group(row: OwnershipRow) -> Option<Cell> {
    use OwnershipRow as R;
    match row {
        R::HoldSameToken | R::GroupSameAttached | R::GroupSameDetached => {
            Some(Cell::Next(Change::HoldJoins))
        }
        R::HoldOtherDomain => Some(Cell::Refuse(Reason::GroupOwned, Errno::EBUSY)),
        R::SharedOtherDomain => Some(Cell::refuse(Reason::GroupOwned)),
        other => reserve_any(other),
    }
}

fn reserve_other_label(row: OwnershipRow) -> Option<Cell> {
    let asked = !own(row) && row != OwnershipRow::ForeignAdopted;
    asked.then(|| Cell::refuse(Reason::LabelMismatch))
}

/// A reservation that lost its hold has no orders, so that only its own holds and those that it
/// joined come up, and what the host does.
fn attach(row: OwnershipRow) -> Option<Cell> {
    use OwnershipRow as R;
    Some(match row {
        R::OwnHoldExclusive => Cell::Next(Change::ExclusiveBegins),
        R::OwnHoldShared => Cell::Next(Change::SharedBegins),
        R::SharedSameDomain => Cell::Next(Change::SharedJoins),
        R::OwnHoldGroup => Cell::Next(Change::GroupBegins),
        R::GroupSameAttached | R::GroupSameDetached => Cell::Next(Change::GroupJoins),
        R::OwnGroupDetached => Cell::Next(Change::GroupAttaches),
        R::OwnExclusive | R::OwnShared | R::OwnSharedWithOthers | R::OwnGroupAttached => {
            Cell::refuse(Reason::AlreadyAttached)
        }
        R::HostUses => Cell::refuse(Reason::HostUsesDevice),
        R::Kernel | R::KernelTaken | R::Private => Cell::refuse(Reason::KernelDma),
        R::KernelBusy => Cell::refuse(Reason::ReservationBusy),
        R::Foreign => Cell::refuse(Reason::ForeignOwner),
        R::Free
        | R::ForeignAdopted
        | R::HoldOther
        | R::HoldOtherDomain
        | R::HoldSameDomain
        | R::HoldSameToken
        | R::DeviceTaken
        | R::ExclusiveOther
        | R::SharedOtherDomain
        | R::GroupOther => return None,
    })
}

/// Only an exclusive reservation asks this; its own row refuses before the host's is asked.
fn attach_crowded(row: OwnershipRow) -> Option<Cell> {
    match row {
        OwnershipRow::OwnExclusive => Some(Cell::refuse(Reason::AlreadyAttached)),
        OwnershipRow::OwnHoldExclusive => Some(Cell::refuse(Reason::GroupNotSingleton)),
        _ => None,
    }
}

/// Whether the asker holds the group, and may have joined it.
fn member(row: OwnershipRow) -> Option<OwnershipRow> {
    use OwnershipRow as R;
    let joined = match row {
        R::SharedSameDomain | R::GroupSameAttached | R::GroupSameDetached => true,
        other => own(other),
    };
    joined.then_some(row)
}

/// Whoever holds the group is refused by that row, or has claims that the host can't be beside.
fn detach(row: OwnershipRow) -> Option<Cell> {
    use OwnershipRow as R;
    match row {
        R::OwnExclusive | R::OwnShared => Some(Cell::Next(Change::ClaimsEnd)),
        R::OwnSharedWithOthers => Some(Cell::Next(Change::SharedLeaves)),
        R::OwnGroupAttached => Some(Cell::Next(Change::GroupBlocks)),
        other => member(other).map(|_| Cell::refuse(Reason::NotAttached)),
    }
}

fn replace(row: OwnershipRow) -> Option<Cell> {
    use OwnershipRow as R;
    match row {
        R::OwnGroupAttached => Some(Cell::Next(Change::Replaces)),
        R::OwnExclusive | R::OwnShared | R::OwnSharedWithOthers => {
            Some(Cell::refuse(Reason::ReplaceRefused))
        }
        other => member(other).map(|_| Cell::refuse(Reason::NotAttached)),
    }
}

/// A release is never refused here.
fn release(row: OwnershipRow) -> Option<Cell> {
    use OwnershipRow as R;
    Some(match row {
        R::ForeignAdopted => return None,
        R::OwnHoldExclusive
        | R::OwnHoldShared
        | R::OwnHoldGroup
        | R::OwnExclusive
        | R::OwnShared
        | R::OwnSharedWithOthers
        | R::OwnGroupAttached
        | R::OwnGroupDetached
        | R::SharedSameDomain
        | R::GroupSameAttached
        | R::GroupSameDetached => Cell::Next(Change::HoldEnds),
        R::Free
        | R::HostUses
        | R::Kernel
        | R::KernelTaken
        | R::KernelBusy
        | R::Private
        | R::Foreign
        | R::HoldOther
        | R::HoldOtherDomain
        | R::HoldSameDomain
        | R::HoldSameToken
        | R::DeviceTaken
        | R::ExclusiveOther
        | R::SharedOtherDomain
        | R::GroupOther => Cell::Next(Change::Stays),
    })
}

/// Nobody's operation: what is the asker's own, or the same as the asker's, never comes up.
fn kernel_dma_set(row: OwnershipRow) -> Option<Cell> {
    use OwnershipRow as R;
    match row {
        R::Free | R::Kernel | R::HostUses | R::KernelBusy => Some(Cell::Next(Change::KernelGains)),
        R::Private => Some(Cell::Refuse(Reason::KernelDma, Errno::EBUSY)),
        R::Foreign => Some(Cell::Refuse(Reason::ForeignOwner, Errno::EBUSY)),
        R::HoldOther
        | R::HoldOtherDomain
        | R::ExclusiveOther
        | R::SharedOtherDomain
        | R::GroupOther => Some(Cell::Refuse(Reason::GroupOwned, Errno::EBUSY)),
        R::KernelTaken
        | R::ForeignAdopted
        | R::HoldSameDomain
        | R::HoldSameToken
        | R::DeviceTaken
        | R::SharedSameDomain
        | R::GroupSameAttached
        | R::GroupSameDetached
        | R::OwnHoldExclusive
        | R::OwnHoldShared
        | R::OwnHoldGroup
        | R::OwnExclusive
        | R::OwnShared
        | R::OwnSharedWithOthers
        | R::OwnGroupAttached
        | R::OwnGroupDetached => None,
    }
}

fn kernel_dma_release(row: OwnershipRow) -> Option<Cell> {
    use OwnershipRow as R;
    match row {
        R::HostUses => Some(Cell::refuse(Reason::HostUsesDevice)),
        R::Kernel | R::KernelTaken | R::KernelBusy | R::Private => {
            Some(Cell::Next(Change::KernelLoses))
        }
        // Beside an owner a host driver is drift; to unbind it resolves that.
        R::Foreign
        | R::HoldOther
        | R::HoldOtherDomain
        | R::ExclusiveOther
        | R::SharedOtherDomain
        | R::GroupOther => Some(Cell::Next(Change::Stays)),
        R::Free => Some(Cell::refuse(Reason::NotAttached)),
        R::ForeignAdopted
        | R::HoldSameDomain
        | R::HoldSameToken
        | R::DeviceTaken
        | R::SharedSameDomain
        | R::GroupSameAttached
        | R::GroupSameDetached
        | R::OwnHoldExclusive
        | R::OwnHoldShared
        | R::OwnHoldGroup
        | R::OwnExclusive
        | R::OwnShared
        | R::OwnSharedWithOthers
        | R::OwnGroupAttached
        | R::OwnGroupDetached => None,
    }
}

/// Only a foreign owner is adopted. It presents nothing and takes nothing from the host.
fn adopt(row: OwnershipRow) -> Option<Cell> {
    use OwnershipRow as R;
    Some(match row {
        R::ForeignAdopted => Cell::Next(Change::AdoptBegins),
        R::Free => Cell::refuse(Reason::NotTheOwner),
        R::Foreign => Cell::refuse(Reason::ForeignOwner),
        R::HostUses => Cell::refuse(Reason::HostUsesDevice),
        R::Kernel | R::Private => Cell::refuse(Reason::KernelDma),
        R::KernelBusy => Cell::refuse(Reason::ReservationBusy),
        R::HoldOther | R::HoldOtherDomain => Cell::Refuse(Reason::GroupOwned, Errno::EBUSY),
        R::ExclusiveOther | R::SharedOtherDomain | R::GroupOther => {
            Cell::refuse(Reason::GroupOwned)
        }
        R::KernelTaken
        | R::HoldSameDomain
        | R::HoldSameToken
        | R::DeviceTaken
        | R::SharedSameDomain
        | R::GroupSameAttached
        | R::GroupSameDetached
        | R::OwnHoldExclusive
        | R::OwnHoldShared
        | R::OwnHoldGroup
        | R::OwnExclusive
        | R::OwnShared
        | R::OwnSharedWithOthers
        | R::OwnGroupAttached
        | R::OwnGroupDetached => return None,
    })
}
