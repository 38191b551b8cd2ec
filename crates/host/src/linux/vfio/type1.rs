//! A context on a container; devices through their groups.
//!
//! The kernel lets one process open a group, once. So the context keeps the descriptors of the
//! groups that are in its container, and counts what needs each: holds and open devices. The
//! last of them takes the group out and closes it.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use berth_dma::AddressSpace;
use berth_uapi::{Device, Errno, VfToken, VfioContainer, VfioGroup};

use super::{duplicate, kept::check_group_device, lock, no_domain, open_new_group};
use crate::{
    AttachedDevice, BackendKind, Context, DomainHandle, GroupHold, IovaRange, PciAddress,
    VfioError, linux::tree::Root,
};

/// The container's only domain.
const ONLY: DomainHandle = DomainHandle(0);

/// One container.
#[derive(Debug)]
pub(in crate::linux) struct Type1Context {
    root: Root,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// After the groups: they hold the container in the kernel anyway.
    container: VfioContainer,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeMap<u32, Member>,
    /// `VFIO_SET_IOMMU` was done. The kernel forgets it when the last group leaves.
    iommu_set: bool,
}

#[derive(Debug)]
struct Member {
    group: VfioGroup,
    holds: usize,
    devices: usize,
}

impl Type1Context {
    /// Opens an empty container.
    pub(in crate::linux) fn open(root: Root) -> Result<Self, VfioError> {
        Ok(Self::new(root, VfioContainer::open()?, false))
    }

    /// Takes over a container that came back. Its groups are held by whoever has them open.
    pub(in crate::linux) fn adopt(root: Root, fd: OwnedFd) -> Self {
        let container = VfioContainer::from(fd);
        // Without an IOMMU set there is nobody who could answer this.
        let iommu_set = container.get_info().is_ok();
        Self::new(root, container, iommu_set)
    }

    fn new(root: Root, container: VfioContainer, iommu_set: bool) -> Self {
        let state = Mutex::new(State { iommu_set, ..State::default() });
        Self { root, shared: Arc::new(Shared { state, container }) }
    }

    /// Puts a group into the container without setting an IOMMU, for as long as the hold lives.
    pub(in crate::linux) fn hold(&self, group: u32) -> Result<Box<dyn GroupHold>, VfioError> {
        self.shared.enter(group, |member| member.holds += 1)?;
        Ok(Box::new(ContextHold { group, shared: Arc::clone(&self.shared) }))
    }

    /// Takes over a group that is in the container already, for as long as the hold lives.
    pub(in crate::linux) fn adopt_hold(
        &self,
        number: u32,
        group: VfioGroup,
    ) -> Result<Box<dyn GroupHold>, VfioError> {
        let mut state = lock(&self.shared.state);
        state.groups.insert(number, Member { group, holds: 1, devices: 0 });
        Ok(Box::new(ContextHold { group: number, shared: Arc::clone(&self.shared) }))
    }

    fn group_of(&self, device: PciAddress) -> Result<u32, VfioError> {
        let link = std::fs::read_link(self.root.device(device).join("iommu_group")).ok();
        link.as_deref()
            .and_then(|target| target.file_name()?.to_str()?.parse().ok())
            .ok_or_else(|| VfioError::new("find group", device.to_string(), Errno::NODEV))
    }

    fn enter_and_open(
        &self,
        device: PciAddress,
        token: Option<&VfToken>,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        let group = self.group_of(device)?;
        self.shared.enter(group, |member| member.devices += 1)?;
        let opened = self.shared.set_iommu().and_then(|()| self.shared.open(group, device, token));
        match opened {
            Ok(opened) => Ok(Box::new(GroupDevice {
                address: device,
                attached: None,
                device: Some(opened),
                group,
                shared: Arc::clone(&self.shared),
            })),
            Err(error) => {
                self.shared.leave(group, |member| member.devices -= 1);
                Err(error)
            }
        }
    }
}

impl Shared {
    /// Opens a group and puts it into the container where it isn't yet, and counts a use.
    fn enter(&self, number: u32, count: impl FnOnce(&mut Member)) -> Result<(), VfioError> {
        let mut state = lock(&self.state);
        if let Some(member) = state.groups.get_mut(&number) {
            count(member);
            return Ok(());
        }
        let group = open_new_group(number)?;
        group.set_container(&self.container)?;
        let mut member = Member { group, holds: 0, devices: 0 };
        count(&mut member);
        state.groups.insert(number, member);
        Ok(())
    }

    /// Counts a use less; the last one takes the group out of the container.
    fn leave(&self, number: u32, count: impl FnOnce(&mut Member)) {
        let mut state = lock(&self.state);
        let Some(member) = state.groups.get_mut(&number) else { return };
        count(member);
        if member.holds > 0 || member.devices > 0 {
            return;
        }
        if let Some(member) = state.groups.remove(&number)
            && let Err(error) = member.group.unset_container()
        {
            // A duplicate of a device's descriptor lives elsewhere; then closing has to do.
            tracing::debug!(group = number, %error, "group stays in its container");
        }
        state.iommu_set &= !state.groups.is_empty();
    }

    /// Takes the group out and puts it back, which the kernel refuses while a device is open.
    fn prove_unused(&self, number: u32) -> Result<(), VfioError> {
        let mut state = lock(&self.state);
        let missing = || VfioError::new("find group", format!("group {number}"), Errno::NODEV);
        let member = state.groups.get(&number).ok_or_else(missing)?;
        member.group.unset_container()?;
        // The container forgets its IOMMU with its last group.
        let set_again = member.group.set_container(&self.container);
        state.iommu_set &= state.groups.len() > 1;
        Ok(set_again?)
    }

    fn set_iommu(&self) -> Result<(), VfioError> {
        let mut state = lock(&self.state);
        if !state.iommu_set {
            self.container.set_iommu_type1v2()?;
            state.iommu_set = true;
        }
        Ok(())
    }

    fn open(
        &self,
        number: u32,
        device: PciAddress,
        token: Option<&VfToken>,
    ) -> Result<Device, VfioError> {
        let state = lock(&self.state);
        let name = device.to_string();
        let member = state.groups.get(&number);
        let member =
            member.ok_or_else(|| VfioError::new("find group", name.as_str(), Errno::NODEV))?;
        Ok(member.group.get_device_fd(&name, token.map(VfToken::text).as_deref())?)
    }
}

impl Context for Type1Context {
    fn backend(&self) -> BackendKind {
        BackendKind::Type1
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn new_domain(&self) -> Result<DomainHandle, VfioError> {
        Ok(ONLY)
    }

    fn delete_domain(&self, domain: DomainHandle) -> Result<(), VfioError> {
        if domain != ONLY {
            return Err(no_domain("delete domain", domain));
        }
        let (used, set) = {
            let state = lock(&self.shared.state);
            (state.groups.values().any(|member| member.devices > 0), state.iommu_set)
        };
        if used {
            return Err(VfioError::new("delete domain", "vfio container", Errno::BUSY));
        }
        if set { self.unmap_all(domain).map(drop) } else { Ok(()) }
    }

    fn open_device(&self, device: PciAddress) -> Result<Box<dyn AttachedDevice>, VfioError> {
        self.enter_and_open(device, None)
    }

    fn open_by_token(
        &self,
        device: PciAddress,
        token: &VfToken,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        self.enter_and_open(device, Some(token))
    }

    fn adopt_device(
        &self,
        device: PciAddress,
        _device_id: u32,
        domain: Option<DomainHandle>,
        fd: OwnedFd,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        check_group_device(device, &fd)?;
        let group = self.group_of(device)?;
        let opened = Device::from_fd(fd, &device.to_string());
        opened.get_info()?;
        let mut state = lock(&self.shared.state);
        let member = state.groups.get_mut(&group);
        let missing = || VfioError::new("adopt", device.to_string(), Errno::NOENT);
        member.ok_or_else(missing)?.devices += 1;
        drop(state);
        Ok(Box::new(GroupDevice {
            address: device,
            attached: Some(domain.is_some()),
            device: Some(opened),
            group,
            shared: Arc::clone(&self.shared),
        }))
    }

    fn fd(&self) -> Result<OwnedFd, VfioError> {
        duplicate(&self.shared.container, "vfio container")
    }

    fn address_space(&self, domain: DomainHandle) -> Result<AddressSpace, VfioError> {
        if domain != ONLY {
            return Err(no_domain("use domain", domain));
        }
        self.shared.set_iommu()?;
        Ok(AddressSpace::type1(VfioContainer::from(self.fd()?)))
    }

    fn ranges(&self, domain: DomainHandle) -> Result<Vec<IovaRange>, VfioError> {
        if domain != ONLY {
            return Err(no_domain("use domain", domain));
        }
        self.shared.set_iommu()?;
        let info = self.shared.container.get_info()?;
        Ok(info.iova_ranges.into_iter().map(super::range).collect())
    }

    fn unmap_all(&self, domain: DomainHandle) -> Result<u64, VfioError> {
        if domain != ONLY {
            return Err(no_domain("use domain", domain));
        }
        if !lock(&self.shared.state).iommu_set {
            return Ok(0);
        }
        Ok(self.shared.container.unmap_all()?)
    }

    fn bound_devices(&self, _most: usize) -> Result<usize, VfioError> {
        Err(VfioError::new("IOMMU_GET_HW_INFO", "vfio container", Errno::OPNOTSUPP))
    }

    fn unmap_everything(&self) -> Result<u64, VfioError> {
        self.unmap_all(ONLY)
    }
}

/// A hold in a context's container.
#[derive(Debug)]
struct ContextHold {
    group: u32,
    shared: Arc<Shared>,
}

impl GroupHold for ContextHold {
    fn group(&self) -> u32 {
        self.group
    }

    fn prove_unused(&self) -> Result<(), VfioError> {
        self.shared.prove_unused(self.group)
    }

    fn fds(&self) -> Result<Vec<OwnedFd>, VfioError> {
        let state = lock(&self.shared.state);
        let object = format!("group {}", self.group);
        let member = state.groups.get(&self.group);
        let member = member.ok_or_else(|| VfioError::new("dup", &*object, Errno::NODEV))?;
        Ok(vec![duplicate(&member.group, &object)?])
    }
}

impl Drop for ContextHold {
    fn drop(&mut self) {
        self.shared.leave(self.group, |member| member.holds -= 1);
    }
}

/// A hold in an empty container of its own.
#[derive(Debug)]
pub(in crate::linux) struct OwnHold {
    number: u32,
    /// Closing it takes the group out of the container.
    group: VfioGroup,
    /// `None` where the hold was taken over: the group keeps its container alive.
    _container: Option<VfioContainer>,
}

impl OwnHold {
    /// Takes the hold.
    pub(in crate::linux) fn take(number: u32) -> Result<Self, VfioError> {
        let container = VfioContainer::open()?;
        let group = open_new_group(number)?;
        group.set_container(&container)?;
        Ok(Self { number, group, _container: Some(container) })
    }

    /// Takes over a group that is in a container already.
    pub(in crate::linux) fn adopt(number: u32, group: VfioGroup) -> Self {
        Self { number, group, _container: None }
    }
}

impl GroupHold for OwnHold {
    fn group(&self) -> u32 {
        self.number
    }

    fn prove_unused(&self) -> Result<(), VfioError> {
        Ok(())
    }

    fn fds(&self) -> Result<Vec<OwnedFd>, VfioError> {
        Ok(vec![duplicate(&self.group, &format!("group {}", self.number))?])
    }
}

/// A device that was opened through its group.
#[derive(Debug)]
struct GroupDevice {
    address: PciAddress,
    /// `None` until the first attach, which the kernel has done at open.
    attached: Option<bool>,
    /// Taken when it is dropped: it must be closed before the group leaves.
    device: Option<Device>,
    group: u32,
    shared: Arc<Shared>,
}

impl GroupDevice {
    fn open(&self) -> Result<&Device, VfioError> {
        self.device
            .as_ref()
            .ok_or_else(|| VfioError::new("use", self.address.to_string(), Errno::BADF))
    }
}

impl AttachedDevice for GroupDevice {
    fn address(&self) -> PciAddress {
        self.address
    }

    fn device_id(&self) -> u32 {
        0
    }

    fn attach(&mut self, domain: DomainHandle) -> Result<(), VfioError> {
        if domain != ONLY {
            return Err(no_domain("attach", domain));
        }
        if self.attached == Some(true) {
            let object = self.address.to_string();
            return Err(VfioError::new("replace domain", object, Errno::OPNOTSUPP));
        }
        self.attached = Some(true);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), VfioError> {
        self.shared.container.unmap_all()?;
        self.attached = Some(false);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), VfioError> {
        Ok(self.open()?.reset()?)
    }

    fn set_vf_token(&mut self, token: &VfToken) -> Result<(), VfioError> {
        Ok(self.open()?.set_vf_token(token)?)
    }

    fn fd(&self) -> Result<OwnedFd, VfioError> {
        duplicate(self.open()?, &self.address.to_string())
    }

    fn bound(&self) -> Result<bool, VfioError> {
        Ok(self.device.is_some())
    }
}

impl Drop for GroupDevice {
    fn drop(&mut self) {
        drop(self.device.take());
        self.shared.leave(self.group, |member| member.devices -= 1);
    }
}
