//! iommufd contexts: ids, IOAS, automatic HWPTs, and the domain of a group in a context.
//!
//! # Source
//! `drivers/iommu/iommufd/`: `main.c`, `ioas.c`, `device.c`.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;

use super::{Kernel, files::FileId, owner::GroupDomain};
use crate::sim::{rule::Rule, space::Space};

/// An open `/dev/iommu`.
#[derive(Debug, Default)]
pub(crate) struct Iommufd {
    /// A user's descriptor is open.
    pub(crate) open: bool,
    pub(crate) objects: BTreeMap<u32, Object>,
    /// Bound devices; they hold the context open.
    pub(crate) bound: BTreeSet<FileId>,
    /// What each group is attached to.
    pub(crate) groups: BTreeMap<u32, Attachment>,
}

/// An object with an id.
#[derive(Debug)]
pub(crate) enum Object {
    Ioas(Space),
    /// Made by an attach to `ioas`, gone with its last device.
    Hwpt {
        ioas: u32,
        domain: u64,
    },
    Device,
}

/// The HWPT of one group in one context, and the devices attached to it.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub(crate) hwpt: u32,
    pub(crate) devices: BTreeSet<FileId>,
}

impl Iommufd {
    /// The lowest id that is free.
    fn free_id(&self) -> u32 {
        let mut id = 1;
        for used in self.objects.keys() {
            if *used != id {
                break;
            }
            id += 1;
        }
        id
    }

    pub(crate) fn insert(&mut self, object: Object) -> u32 {
        let id = self.free_id();
        self.objects.insert(id, object);
        id
    }

    fn hwpt_of(&self, ioas: u32) -> Option<u32> {
        self.objects.iter().find_map(|(id, object)| match object {
            Object::Hwpt { ioas: of, .. } if *of == ioas => Some(*id),
            _ => None,
        })
    }

    fn hwpt_domain(&self, hwpt: u32) -> Option<GroupDomain> {
        match self.objects.get(&hwpt) {
            Some(Object::Hwpt { domain, .. }) => Some(GroupDomain::Paging(*domain)),
            _ => None,
        }
    }

    fn ioas_of(&self, hwpt: u32) -> Option<u32> {
        match self.objects.get(&hwpt) {
            Some(Object::Hwpt { ioas, .. }) => Some(*ioas),
            _ => None,
        }
    }

    pub(crate) fn space(&self, ioas: u32) -> Result<&Space, Errno> {
        match self.objects.get(&ioas) {
            Some(Object::Ioas(space)) => Ok(space),
            _ => Err(Errno::NOENT),
        }
    }

    /// How many devices are bound to it.
    pub(crate) fn devices(&self) -> usize {
        self.objects.values().filter(|object| matches!(object, Object::Device)).count()
    }

    /// All its address spaces.
    pub(crate) fn spaces(&self) -> Vec<Space> {
        let space = |object: &Object| match object {
            Object::Ioas(space) => Some(space.clone()),
            Object::Hwpt { .. } | Object::Device => None,
        };
        self.objects.values().filter_map(space).collect()
    }

    fn attachments_of(&self, hwpt: u32) -> usize {
        self.groups.values().filter(|group| group.hwpt == hwpt).count()
    }
}

impl Kernel {
    /// Opens `/dev/iommu`.
    pub(crate) fn open_iommufd(&mut self) -> Result<FileId, Errno> {
        if !self.features.iommufd {
            return Err(Errno::NOENT);
        }
        let id = self.fresh();
        self.iommufds.insert(id, Iommufd { open: true, ..Iommufd::default() });
        Ok(id)
    }

    /// `IOAS_ALLOC`.
    pub(crate) fn ioas_alloc(&mut self, id: FileId) -> Result<u32, Errno> {
        let iommufd = self.iommufds.get_mut(&id).ok_or(Errno::BADF)?;
        Ok(iommufd.insert(Object::Ioas(Space::iommufd())))
    }

    /// `DESTROY`.
    pub(crate) fn destroy(&mut self, id: FileId, object: u32) -> Result<(), Errno> {
        let checks = self.follows(Rule::UsedStays);
        let iommufd = self.iommufds.get_mut(&id).ok_or(Errno::BADF)?;
        let busy = match iommufd.objects.get(&object) {
            None => return Err(Errno::NOENT),
            Some(Object::Ioas(_)) => iommufd.hwpt_of(object).is_some(),
            Some(Object::Hwpt { .. } | Object::Device) => true,
        };
        if busy && checks {
            return Err(Errno::BUSY);
        }
        iommufd.objects.remove(&object);
        Ok(())
    }

    /// `ATTACH_PT`: a first attach, or a replace for the whole group. An IOAS brings its automatic
    /// HWPT, of which there is one; naming that HWPT is the same.
    pub(crate) fn attach_pt(&mut self, file: FileId, pt: u32) -> Result<(), Errno> {
        let bound = self.device_file(file)?.bound().ok_or(Errno::INVAL)?;
        let iommufd = self.iommufds.get(&bound.iommufd).ok_or(Errno::INVAL)?;
        let ioas = match iommufd.objects.get(&pt) {
            None => return Err(Errno::NOENT),
            Some(Object::Ioas(_)) => pt,
            Some(Object::Hwpt { ioas, .. }) => *ioas,
            Some(Object::Device) => return Err(Errno::INVAL),
        };
        if bound.attached {
            self.replace_hwpt(bound.iommufd, bound.group, ioas)
        } else {
            self.join_hwpt(bound.iommufd, bound.group, ioas, file)
        }
    }

    /// The first attached member brings the domain; the others must bring the same.
    fn join_hwpt(&mut self, ctx: FileId, group: u32, ioas: u32, file: FileId) -> Result<(), Errno> {
        let fresh = self.fresh();
        let strict = self.follows(Rule::SiblingsShareDomain);
        let iommufd = self.iommufds.get_mut(&ctx).ok_or(Errno::INVAL)?;
        let group_state = self.groups.get_mut(&group).ok_or(Errno::NODEV)?;
        let current = iommufd.groups.get(&group).map(|attachment| attachment.hwpt);
        if let Some(current) = current
            && strict
            && iommufd.ioas_of(current) != Some(ioas)
        {
            return Err(Errno::INVAL);
        }
        let space = iommufd.space(ioas)?.clone();
        if space.overlaps(&group_state.model.reserved) {
            return Err(Errno::ADDRINUSE);
        }
        let hwpt = match current.or_else(|| iommufd.hwpt_of(ioas)) {
            Some(hwpt) => hwpt,
            None => iommufd.insert(Object::Hwpt { ioas, domain: fresh }),
        };
        if current.is_none() {
            let domain = iommufd.hwpt_domain(hwpt).ok_or(Errno::NOENT)?;
            if let Err(errno) = group_state.ownership.attach_group(domain) {
                self.reap_hwpt(ctx, hwpt);
                return Err(errno);
            }
        }
        space.reserve(group, &group_state.model.reserved);
        let attachment = iommufd
            .groups
            .entry(group)
            .or_insert_with(|| Attachment { hwpt, devices: BTreeSet::new() });
        attachment.devices.insert(file);
        self.set_attached(file, true);
        Ok(())
    }

    /// The whole group moves, whoever asked.
    fn replace_hwpt(&mut self, ctx: FileId, group: u32, ioas: u32) -> Result<(), Errno> {
        let fresh = self.fresh();
        let moves = self.follows(Rule::ReplaceMovesGroup);
        let iommufd = self.iommufds.get_mut(&ctx).ok_or(Errno::INVAL)?;
        let group_state = self.groups.get_mut(&group).ok_or(Errno::NODEV)?;
        let old = iommufd.groups.get(&group).ok_or(Errno::INVAL)?.hwpt;
        if iommufd.ioas_of(old) == Some(ioas) {
            return Ok(());
        }
        let space = iommufd.space(ioas)?.clone();
        if space.overlaps(&group_state.model.reserved) {
            return Err(Errno::ADDRINUSE);
        }
        let hwpt = match iommufd.hwpt_of(ioas) {
            Some(hwpt) => hwpt,
            None => iommufd.insert(Object::Hwpt { ioas, domain: fresh }),
        };
        let domain = iommufd.hwpt_domain(hwpt).ok_or(Errno::NOENT)?;
        if let Err(errno) = group_state.ownership.replace(domain) {
            self.reap_hwpt(ctx, hwpt);
            return Err(errno);
        }
        space.reserve(group, &group_state.model.reserved);
        if let Some(old) = iommufd.ioas_of(old)
            && let Ok(space) = iommufd.space(old)
        {
            space.release(group);
        }
        if moves && let Some(attachment) = iommufd.groups.get_mut(&group) {
            attachment.hwpt = hwpt;
        }
        self.reap_hwpt(ctx, old);
        Ok(())
    }

    /// `DETACH_PT`: nothing to do when not attached; DMA of the group stops with the last member.
    pub(crate) fn detach_ioas(&mut self, file: FileId) -> Result<(), Errno> {
        let bound = self.device_file(file)?.bound().ok_or(Errno::INVAL)?;
        if !bound.attached {
            return Ok(());
        }
        self.set_attached(file, false);
        let Some(iommufd) = self.iommufds.get_mut(&bound.iommufd) else { return Ok(()) };
        let Some(attachment) = iommufd.groups.get_mut(&bound.group) else { return Ok(()) };
        attachment.devices.remove(&file);
        if !attachment.devices.is_empty() {
            return Ok(());
        }
        let hwpt = attachment.hwpt;
        iommufd.groups.remove(&bound.group);
        if let Some(ioas) = iommufd.ioas_of(hwpt)
            && let Ok(space) = iommufd.space(ioas)
        {
            space.release(bound.group);
        }
        if let Ok(group) = self.group_mut(bound.group) {
            group.ownership.detach();
        }
        self.reap_hwpt(bound.iommufd, hwpt);
        Ok(())
    }

    /// An automatic HWPT dies with its last group.
    fn reap_hwpt(&mut self, ctx: FileId, hwpt: u32) {
        if let Some(iommufd) = self.iommufds.get_mut(&ctx)
            && iommufd.attachments_of(hwpt) == 0
        {
            iommufd.objects.remove(&hwpt);
        }
    }

    /// Forgets a context that nothing refers to, with its objects.
    pub(crate) fn reap_iommufd(&mut self, id: FileId) {
        if self.iommufds.get(&id).is_some_and(|ctx| !ctx.open && ctx.bound.is_empty())
            && let Some(ctx) = self.iommufds.remove(&id)
        {
            for object in ctx.objects.values() {
                if let Object::Ioas(space) = object {
                    space.clear();
                }
            }
        }
    }
}
