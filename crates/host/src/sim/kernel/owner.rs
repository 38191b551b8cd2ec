//! Who owns the DMA of one IOMMU group: `owner_cnt`, the owner, the group's domain.
//!
//! # Source
//! `drivers/iommu/iommu.c`: `iommu_device_use_default_domain`, `iommu_group_claim_dma_owner`,
//! `iommu_device_claim_dma_owner`, `__iommu_attach_group`, `iommu_replace_group_handle`. States:
//! idle, kernel, private, owned and blocked, owned and attached, stray.

use rustix::io::Errno;

use crate::PciAddress;

/// Who claimed a group: what the kernel keeps as an opaque pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A VFIO group file in a container.
    VfioGroup(u64),
    /// An iommufd context.
    Iommufd(u64),
}

/// Where the DMA of a group goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupDomain {
    /// The kernel's own.
    Default,
    /// Nowhere.
    Blocking,
    /// A page table of user space: a container's or an HWPT's.
    Paging(u64),
    /// A page table that a host driver attached for its device.
    Private(PciAddress),
}

/// The ownership of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Host drivers, or claims of the owner.
    pub owner_cnt: u32,
    /// Who claimed it; nobody while the kernel uses it.
    pub owner: Option<Token>,
    /// The group's domain.
    pub domain: GroupDomain,
    /// Devices whose reset is under way.
    pub recovering: u32,
    /// Firmware asks for a 1:1 mapping of a member: it can't be blocked.
    pub firmware_1to1: bool,
}

impl Ownership {
    /// Nobody's.
    #[must_use]
    pub(crate) fn idle(firmware_1to1: bool) -> Self {
        Self {
            owner_cnt: 0,
            owner: None,
            domain: GroupDomain::Default,
            recovering: 0,
            firmware_1to1,
        }
    }

    /// A host driver that uses kernel DMA is about to probe a member.
    pub(crate) fn use_default_domain(&mut self) -> Result<(), Errno> {
        if self.owner_cnt != 0 && (self.domain != GroupDomain::Default || self.owner.is_some()) {
            return Err(Errno::BUSY);
        }
        self.owner_cnt += 1;
        Ok(())
    }

    /// That driver is gone.
    pub(crate) fn unuse_default_domain(&mut self) {
        self.owner_cnt = self.owner_cnt.saturating_sub(1);
    }

    /// `SET_CONTAINER`: the whole group at once; no token joins.
    pub(crate) fn claim_group(&mut self, token: Token) -> Result<(), Errno> {
        if self.owner_cnt != 0 {
            return Err(Errno::PERM);
        }
        self.take(token)
    }

    /// `BIND`: the same token joins.
    pub(crate) fn claim_device(&mut self, token: Token) -> Result<(), Errno> {
        if self.owner_cnt == 0 {
            return self.take(token);
        }
        if self.owner != Some(token) {
            return Err(Errno::PERM);
        }
        self.owner_cnt += 1;
        Ok(())
    }

    fn take(&mut self, token: Token) -> Result<(), Errno> {
        if self.domain != GroupDomain::Default {
            return Err(Errno::BUSY);
        }
        if self.recovering != 0 {
            return Err(Errno::BUSY);
        }
        if self.firmware_1to1 {
            return Err(Errno::INVAL);
        }
        self.domain = GroupDomain::Blocking;
        self.owner = Some(token);
        self.owner_cnt += 1;
        Ok(())
    }

    /// The group's owner gives it back, whatever is attached.
    pub(crate) fn release_group(&mut self) {
        if self.owner_cnt == 0 || self.owner.is_none() {
            return;
        }
        self.owner_cnt = 0;
        self.owner = None;
        self.domain = GroupDomain::Default;
    }

    /// One claim of the owner ends; the last one gives the group back.
    pub(crate) fn release_device(&mut self) {
        if self.owner_cnt > 1 {
            self.owner_cnt -= 1;
        } else {
            self.release_group();
        }
    }

    /// `iommu_attach_group` and `iommu_attach_group_handle`.
    pub(crate) fn attach_group(&mut self, domain: GroupDomain) -> Result<(), Errno> {
        if !matches!(self.domain, GroupDomain::Default | GroupDomain::Blocking) {
            return Err(Errno::BUSY);
        }
        if self.recovering != 0 {
            return Err(Errno::BUSY);
        }
        self.domain = domain;
        Ok(())
    }

    /// `iommu_attach_device`, as host drivers call it: counts devices, not owners.
    pub(crate) fn attach_device(
        &mut self,
        device: PciAddress,
        members: usize,
    ) -> Result<(), Errno> {
        if members != 1 {
            return Err(Errno::INVAL);
        }
        self.attach_group(GroupDomain::Private(device))
    }

    /// `iommu_replace_group_handle`: the whole group moves.
    pub(crate) fn replace(&mut self, domain: GroupDomain) -> Result<(), Errno> {
        if self.recovering != 0 {
            return Err(Errno::BUSY);
        }
        self.domain = domain;
        Ok(())
    }

    /// The domain is taken away: blocked while owned, else the kernel's.
    pub(crate) fn detach(&mut self) {
        self.domain =
            if self.owner.is_some() { GroupDomain::Blocking } else { GroupDomain::Default };
    }

    /// `iommu_group_dma_owner_claimed`.
    #[must_use]
    pub(crate) fn claimed(&self) -> bool {
        self.owner_cnt != 0
    }
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
