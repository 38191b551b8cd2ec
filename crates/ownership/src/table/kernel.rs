//! What the merged kernel does where it differs from the table.

use super::ownership::{Operation as Op, OwnershipRow as Row};

/// What the merged kernel does in the place of a cell, where it differs; else nothing.
///
/// # Source
///
/// `drivers/iommu/iommu.c`, `drivers/iommu/iommufd/device.c`, `drivers/vfio/` of Linux 7.3.
pub fn merged_kernel(row: Row, op: Op) -> &'static str {
    match op {
        Op::ReserveExclusive | Op::ReserveShared | Op::ReserveGroup => reserve(row),
        Op::ReserveExclusiveCrowded => match row {
            Row::Free => "has no reservation; iommu_attach_device is EINVAL, a cdev BIND succeeds",
            _ => "",
        },
        Op::ReserveOtherLabel => "knows no labels: whoever has the iommufd joins",
        Op::Attach => attach(row),
        Op::AttachCrowded => match row {
            Row::OwnHoldExclusive => {
                "iommu_attach_device is EINVAL; a cdev ATTACH succeeds and takes the whole group"
            }
            _ => "",
        },
        Op::Detach => detach(row),
        Op::Replace => replace(row),
        Op::Release => release(row),
        Op::KernelDmaSet => match row {
            Row::HoldOther | Row::HoldOtherDomain => {
                "EBUSY with the kernel's hold; succeeds with the ledger's"
            }
            Row::Private => "EBUSY as well: the current domain is not the default one",
            _ => "",
        },
        Op::KernelDmaRelease => match row {
            Row::HostUses => "unbinds without asking: mounts and routes break",
            _ => "",
        },
        Op::Adopt => match row {
            Row::ForeignAdopted => "knows no holders: the process' own claim goes on as it is",
            _ => "",
        },
    }
}

fn reserve(row: Row) -> &'static str {
    match row {
        Row::Free => "has no reservation; Berth's hold is a container without an IOMMU type",
        Row::HostUses => "knows nothing of mounts or routes; the claim is EPERM",
        Row::HoldOther | Row::HoldOtherDomain | Row::DeviceTaken => {
            "EBUSY with the kernel's hold (bind, BIND, open); succeeds with the ledger's"
        }
        Row::ExclusiveOther | Row::GroupOther => {
            "EPERM from BIND, EBUSY from opening the group: the cause is not told apart"
        }
        Row::SharedOtherDomain => {
            "another iommufd is EPERM from BIND; another domain of the same one is EINVAL from ATTACH"
        }
        Row::Private => "EPERM, as for any host driver",
        Row::KernelTaken => "EPERM until the drivers are unbound",
        _ => "",
    }
}

fn attach(row: Row) -> &'static str {
    match row {
        Row::OwnHoldExclusive => {
            "iommu_attach_device looks at neither owner nor owner_cnt, only at the device count and the current domain"
        }
        Row::OwnHoldShared | Row::SharedSameDomain => {
            "iommu_attach_device_shared was never merged; iommufd's group join does it. Type1 counts 1 for the group"
        }
        Row::OwnHoldGroup => {
            "the owner is the iommufd or the vfio_group; the claim comes with BIND or SET_CONTAINER"
        }
        Row::GroupSameAttached | Row::GroupSameDetached => {
            "a second group claim is EPERM even for the same token; a device claim nests"
        }
        Row::OwnExclusive | Row::OwnShared | Row::OwnSharedWithOthers => {
            "ATTACH of the same domain succeeds again; of another one it replaces, for all members"
        }
        Row::OwnGroupAttached => "ATTACH on an attached member replaces the whole group's domain",
        Row::Private => "iommu_attach_device is EBUSY",
        _ => "",
    }
}

fn detach(row: Row) -> &'static str {
    match row {
        Row::OwnSharedWithOthers => {
            "DETACH of one of several leaves its DMA running; only the last close of the device ends it"
        }
        Row::OwnExclusive | Row::OwnShared | Row::OwnGroupAttached => {
            "the domain becomes the blocking one; type1 has no detach, it is unmap-all"
        }
        _ => "",
    }
}

fn replace(row: Row) -> &'static str {
    match row {
        Row::OwnShared | Row::OwnSharedWithOthers => {
            "moves every sibling silently, for any holder of one member"
        }
        Row::OwnExclusive => "succeeds within the iommufd",
        Row::OwnGroupAttached => "the same for iommufd (iommu_replace_group_handle); type1 cannot",
        _ => "",
    }
}

fn release(row: Row) -> &'static str {
    match row {
        Row::OwnExclusive | Row::OwnShared | Row::OwnGroupAttached | Row::OwnGroupDetached => {
            "with the last close: the default domain, owner_cnt 0"
        }
        _ => "",
    }
}
