//! Contexts, holds and devices: the handles that a simulated host gives out.

use std::{
    any::Any,
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, Weak},
};

use berth_dma::AddressSpace;
use berth_uapi::VfToken;
use rustix::io::Errno;

use super::{
    fault::Site,
    kernel::files::FileId,
    shared::{Kind, OpenFile, Shared, failed, lock},
    space::Space,
    topology::ResetKind,
};
use crate::{
    AttachedDevice, BackendKind, Context, DomainHandle, GroupHold, IovaRange, PciAddress, VfioError,
};

/// A context's file, and on type1 the group files that are in its container.
#[derive(Debug)]
pub(crate) struct Groups {
    pub(crate) file: Arc<OpenFile>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Group files in the container, for as long as a hold or a device needs them.
    files: BTreeMap<u32, Weak<OpenFile>>,
    /// `SET_IOMMU` was done since the container was empty.
    iommu_set: bool,
}

impl State {
    /// The kernel forgets the IOMMU with the last group.
    fn forget_iommu_when_empty(&mut self) {
        self.files.retain(|_, file| file.strong_count() > 0);
        self.iommu_set &= !self.files.is_empty();
    }
}

impl Groups {
    pub(crate) fn new(file: Arc<OpenFile>) -> Self {
        Self { file, state: Mutex::default() }
    }

    /// The group's file in this container, put there when it isn't yet.
    fn enter(&self, number: u32) -> Result<Arc<OpenFile>, VfioError> {
        let mut state = lock(&self.state);
        if let Some(file) = state.files.get(&number).and_then(Weak::upgrade) {
            return Ok(file);
        }
        state.forget_iommu_when_empty();
        let file = open_group(&self.file.shared, number)?;
        set_container(&file, number, self.file.id)?;
        state.files.insert(number, Arc::downgrade(&file));
        Ok(file)
    }

    /// `SET_IOMMU`, once while groups are in the container.
    fn set_iommu(&self) -> Result<(), VfioError> {
        let shared = &self.file.shared;
        let mut state = lock(&self.state);
        state.forget_iommu_when_empty();
        if !state.iommu_set {
            shared
                .pass(Site::SetIommu, None, state.files.keys().next().copied())
                .and_then(|()| shared.kernel().set_iommu(self.file.id))
                .map_err(failed("VFIO_SET_IOMMU", "vfio container"))?;
            state.iommu_set = true;
        }
        Ok(())
    }

    fn iommu_set(&self) -> bool {
        let mut state = lock(&self.state);
        state.forget_iommu_when_empty();
        state.iommu_set
    }

    fn devices(&self) -> bool {
        let kernel = self.file.shared.kernel();
        let state = lock(&self.state);
        let files: Vec<FileId> =
            state.files.values().filter_map(|file| Some(file.upgrade()?.id)).collect();
        kernel.device_files.values().any(
            |open| matches!(open.via, super::kernel::files::Via::Group { file } if files.contains(&file)),
        )
    }
}

/// Opens `/dev/vfio/N`.
pub(crate) fn open_group(shared: &Arc<Shared>, number: u32) -> Result<Arc<OpenFile>, VfioError> {
    let path = format!("/dev/vfio/{number}");
    shared.pass(Site::OpenGroup, None, Some(number)).map_err(failed("open", &path))?;
    let id = shared.kernel().open_group(number).map_err(failed("open", &path))?;
    Ok(shared.own(id, Kind::Group(number)))
}

fn set_container(file: &OpenFile, number: u32, container: FileId) -> Result<(), VfioError> {
    let shared = &file.shared;
    shared
        .pass(Site::SetContainer, None, Some(number))
        .and_then(|()| shared.kernel().set_container(file.id, container))
        .map_err(failed("VFIO_GROUP_SET_CONTAINER", format!("group {number}")))
}

/// The kernel's hold on a group: the group file, and the container that it is in.
#[derive(Debug)]
pub(crate) struct SimHold {
    number: u32,
    group: Arc<OpenFile>,
    container: Arc<Groups>,
}

impl SimHold {
    pub(crate) fn take(container: Arc<Groups>, number: u32) -> Result<Self, VfioError> {
        let group = container.enter(number)?;
        Ok(Self { number, group, container })
    }

    /// Takes over a group's file that is in the container already.
    pub(crate) fn adopt(container: Arc<Groups>, number: u32, group: Arc<OpenFile>) -> Self {
        let mut state = lock(&container.state);
        state.files.insert(number, Arc::downgrade(&group));
        let kernel = group.shared.kernel();
        let set = kernel.containers.get(&container.file.id).is_some_and(|it| it.iommu_driver());
        drop(kernel);
        state.iommu_set |= set;
        drop(state);
        Self { number, group, container }
    }
}

impl GroupHold for SimHold {
    fn group(&self) -> u32 {
        self.number
    }

    fn prove_unused(&self) -> Result<(), VfioError> {
        let (shared, number) = (&self.group.shared, self.number);
        let object = format!("group {number}");
        shared
            .kernel()
            .unset_container(self.group.id)
            .map_err(failed("VFIO_GROUP_UNSET_CONTAINER", object))?;
        set_container(&self.group, number, self.container.file.id)?;
        let container = self.container.file.id;
        let set = shared.kernel().containers.get(&container).is_some_and(|it| it.iommu_driver());
        lock(&self.container.state).iommu_set &= set;
        Ok(())
    }

    fn fds(&self) -> Result<Vec<OwnedFd>, VfioError> {
        let descriptor = |file: &OpenFile| {
            let exported = self.group.shared.descriptor(file, "simulated hold\n");
            exported.map_err(failed("dup", format!("group {}", self.number)))
        };
        Ok(vec![descriptor(&self.group)?, descriptor(&self.container.file)?])
    }
}

/// A simulated iommufd or container.
#[derive(Debug)]
pub(crate) struct SimContext {
    pub(crate) backend: BackendKind,
    pub(crate) groups: Arc<Groups>,
}

impl SimContext {
    fn shared(&self) -> &Arc<Shared> {
        &self.groups.file.shared
    }

    fn id(&self) -> FileId {
        self.groups.file.id
    }

    fn object(&self, domain: DomainHandle) -> String {
        match self.backend {
            BackendKind::Iommufd => format!("ioas {}", domain.0),
            BackendKind::Type1 => "container".to_owned(),
        }
    }

    fn space(&self, domain: DomainHandle, op: &str) -> Result<Space, VfioError> {
        let kernel = self.shared().kernel();
        let space = match self.backend {
            BackendKind::Iommufd => {
                let ctx = kernel.iommufds.get(&self.id()).ok_or(Errno::BADF);
                ctx.and_then(|ctx| ctx.space(domain.0).cloned())
            }
            BackendKind::Type1 if domain.0 != 0 => Err(Errno::NOENT),
            BackendKind::Type1 => {
                let container = kernel.containers.get(&self.id());
                container.map(|container| container.space.clone()).ok_or(Errno::BADF)
            }
        };
        space.map_err(failed(op, self.object(domain)))
    }

    fn open(
        &self,
        device: PciAddress,
        token: Option<VfToken>,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        let opened = match self.backend {
            BackendKind::Iommufd => self.open_cdev(device, token)?,
            BackendKind::Type1 => self.open_by_group(device, token)?,
        };
        Ok(Box::new(opened))
    }

    fn open_cdev(
        &self,
        device: PciAddress,
        token: Option<VfToken>,
    ) -> Result<SimDevice, VfioError> {
        let shared = self.shared();
        let name = device.to_string();
        shared.pass(Site::OpenDevice, Some(device), None).map_err(failed("open", &name))?;
        let id = shared.kernel().open_cdev(device).map_err(failed("open", &name))?;
        let file = shared.own(id, Kind::Device(device));
        let device_id = shared
            .pass(Site::BindIommufd, Some(device), None)
            .and_then(|()| shared.kernel().bind_iommufd_by(id, self.id(), token))
            .map_err(failed("VFIO_DEVICE_BIND_IOMMUFD", &name))?;
        Ok(self.device(device, device_id, file, None))
    }

    fn open_by_group(
        &self,
        device: PciAddress,
        token: Option<VfToken>,
    ) -> Result<SimDevice, VfioError> {
        let shared = self.shared();
        let name = device.to_string();
        let number = shared.kernel().group_of(device).map_err(failed("find group", &name))?;
        let group = self.groups.enter(number)?;
        self.groups.set_iommu()?;
        let id = shared
            .pass(Site::OpenDevice, Some(device), Some(number))
            .and_then(|()| shared.kernel().get_device_fd_by(group.id, device, token))
            .map_err(failed("VFIO_GROUP_GET_DEVICE_FD", &name))?;
        let file = shared.own(id, Kind::Device(device));
        Ok(self.device(device, 0, file, Some(group)))
    }

    fn device(
        &self,
        address: PciAddress,
        device_id: u32,
        file: Arc<OpenFile>,
        group: Option<Arc<OpenFile>>,
    ) -> SimDevice {
        let context = Arc::clone(&self.groups);
        SimDevice { address, device_id, attached: false, file, _group: group, context }
    }
}

impl Context for SimContext {
    fn backend(&self) -> BackendKind {
        self.backend
    }

    fn new_domain(&self) -> Result<DomainHandle, VfioError> {
        let op = "IOMMU_IOAS_ALLOC";
        self.shared().pass(Site::NewDomain, None, None).map_err(failed(op, "iommufd"))?;
        match self.backend {
            BackendKind::Type1 => Ok(DomainHandle(0)),
            BackendKind::Iommufd => {
                let id = self.shared().kernel().ioas_alloc(self.id());
                id.map(DomainHandle).map_err(failed(op, "iommufd"))
            }
        }
    }

    fn delete_domain(&self, domain: DomainHandle) -> Result<(), VfioError> {
        let op = "IOMMU_DESTROY";
        let object = self.object(domain);
        self.shared().pass(Site::DeleteDomain, None, None).map_err(failed(op, &object))?;
        match self.backend {
            BackendKind::Iommufd => {
                let destroyed = self.shared().kernel().destroy(self.id(), domain.0);
                destroyed.map_err(failed(op, object))
            }
            BackendKind::Type1 if domain.0 != 0 => Err(VfioError::new(op, object, Errno::NOENT)),
            BackendKind::Type1 if self.groups.devices() => {
                Err(VfioError::new(op, object, Errno::BUSY))
            }
            BackendKind::Type1 => self.unmap_all(domain).map(drop),
        }
    }

    fn open_device(&self, device: PciAddress) -> Result<Box<dyn AttachedDevice>, VfioError> {
        self.open(device, None)
    }

    fn open_by_token(
        &self,
        device: PciAddress,
        token: &VfToken,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        self.open(device, Some(*token))
    }

    fn adopt_device(
        &self,
        device: PciAddress,
        device_id: u32,
        domain: Option<DomainHandle>,
        fd: OwnedFd,
    ) -> Result<Box<dyn AttachedDevice>, VfioError> {
        let wrong = |errno| VfioError::new("adopt", device.to_string(), errno);
        let shared = self.shared();
        let known = shared.recognise(&fd).filter(|(_, kind)| *kind == Kind::Device(device));
        let (id, kind) = known.ok_or_else(|| wrong(Errno::BADFD))?;
        let group = match self.backend {
            BackendKind::Type1 => {
                let number = shared.kernel().group_of(device).map_err(wrong)?;
                let file = lock(&self.groups.state).files.get(&number).and_then(Weak::upgrade);
                Some(file.ok_or_else(|| wrong(Errno::NOENT))?)
            }
            BackendKind::Iommufd => {
                shared.kernel().hw_info(self.id(), device_id).map_err(wrong)?;
                None
            }
        };
        let file = shared.own_again(id, kind);
        let mut adopted = self.device(device, device_id, file, group);
        adopted.attached = domain.is_some();
        Ok(Box::new(adopted))
    }

    fn fd(&self) -> Result<OwnedFd, VfioError> {
        let file = &self.groups.file;
        self.shared().descriptor(file, "simulated context\n").map_err(failed("dup", "context"))
    }

    fn address_space(&self, domain: DomainHandle) -> Result<AddressSpace, VfioError> {
        let space = self.space(domain, "open address space")?;
        if self.backend == BackendKind::Type1 {
            self.groups.set_iommu()?;
        }
        if let Err(errno) = self.shared().pass(Site::Map, None, None) {
            space.fail_next(errno);
        }
        Ok(space.address_space())
    }

    fn ranges(&self, domain: DomainHandle) -> Result<Vec<IovaRange>, VfioError> {
        let space = self.space(domain, "IOMMU_IOAS_IOVA_RANGES")?;
        if self.backend == BackendKind::Type1 {
            self.groups.set_iommu()?;
        }
        Ok(space.ranges())
    }

    fn unmap_all(&self, domain: DomainHandle) -> Result<u64, VfioError> {
        let op = match self.backend {
            BackendKind::Iommufd => "IOMMU_IOAS_UNMAP",
            BackendKind::Type1 => "VFIO_IOMMU_UNMAP_DMA",
        };
        let space = self.space(domain, op)?;
        if self.backend == BackendKind::Type1 {
            if !self.groups.iommu_set() {
                return Ok(0);
            }
            if space.ranges().is_empty() {
                return Err(VfioError::new(op, self.object(domain), Errno::INVAL));
            }
        }
        Ok(space.clear())
    }

    fn bound_devices(&self, most: usize) -> Result<usize, VfioError> {
        let kernel = self.shared().kernel();
        let ctx = kernel.iommufds.get(&self.id()).ok_or(Errno::OPNOTSUPP);
        let ctx = ctx.map_err(failed("IOMMU_GET_HW_INFO", "context"))?;
        Ok(ctx.devices().min(most))
    }

    fn unmap_everything(&self) -> Result<u64, VfioError> {
        if self.backend == BackendKind::Type1 {
            return self.unmap_all(DomainHandle(0));
        }
        let spaces = self.shared().kernel().iommufds.get(&self.id()).map(|ctx| ctx.spaces());
        let spaces = spaces.ok_or(Errno::BADF).map_err(failed("IOMMU_IOAS_UNMAP", "iommufd"))?;
        Ok(spaces.iter().map(Space::clear).sum())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A device that a context owns.
#[derive(Debug)]
pub(crate) struct SimDevice {
    address: PciAddress,
    device_id: u32,
    /// On type1 nothing in the kernel tells a first attach from a replace.
    attached: bool,
    file: Arc<OpenFile>,
    /// Dropped after the device's file: the last close of a group gives it back.
    _group: Option<Arc<OpenFile>>,
    context: Arc<Groups>,
}

impl SimDevice {
    fn type1(&self) -> bool {
        self.context.file.kind == Kind::Container
    }

    fn on(&self, site: Site, op: &str) -> Result<(), VfioError> {
        let shared = &self.file.shared;
        shared.pass(site, Some(self.address), None).map_err(failed(op, self.address.to_string()))
    }
}

impl AttachedDevice for SimDevice {
    fn address(&self) -> PciAddress {
        self.address
    }

    fn device_id(&self) -> u32 {
        self.device_id
    }

    fn attach(&mut self, domain: DomainHandle) -> Result<(), VfioError> {
        let op = "VFIO_DEVICE_ATTACH_IOMMUFD_PT";
        self.on(Site::Attach, op)?;
        let object = format!("{} (ioas {})", self.address, domain.0);
        if self.type1() {
            let answer = match (domain.0, self.attached) {
                (0, false) => Ok(()),
                (0, true) => Err(Errno::OPNOTSUPP),
                _ => Err(Errno::NOENT),
            };
            self.attached |= answer.is_ok();
            return answer.map_err(failed(op, object));
        }
        let mut kernel = self.file.shared.kernel();
        kernel.attach_pt(self.file.id, domain.0).map_err(failed(op, object))
    }

    fn detach(&mut self) -> Result<(), VfioError> {
        let op = "VFIO_DEVICE_DETACH_IOMMUFD_PT";
        self.on(Site::Detach, op)?;
        let mut kernel = self.file.shared.kernel();
        if !self.type1() {
            let detached = kernel.detach_ioas(self.file.id);
            return detached.map_err(failed(op, self.address.to_string()));
        }
        let container = kernel.containers.get(&self.context.file.id);
        let space = container.filter(|c| c.iommu_driver()).map(|c| &c.space);
        space.ok_or(Errno::INVAL).map_err(failed("VFIO_IOMMU_UNMAP_DMA", "container"))?.clear();
        self.attached = false;
        Ok(())
    }

    fn reset(&mut self) -> Result<(), VfioError> {
        let op = "VFIO_DEVICE_RESET";
        self.on(Site::DeviceReset, op)?;
        let kernel = self.file.shared.kernel();
        let kind = kernel.dev(self.address).map(|device| device.model.reset);
        let answer = kind.and_then(|kind| match kind {
            ResetKind::Verified => Ok(()),
            ResetKind::NotPossible => Err(Errno::INVAL),
            ResetKind::Failed => Err(Errno::IO),
        });
        answer.map_err(failed(op, self.address.to_string()))
    }

    fn set_vf_token(&mut self, token: &VfToken) -> Result<(), VfioError> {
        let set = self.file.shared.kernel().set_token(self.address, *token);
        set.map_err(failed("VFIO_DEVICE_FEATURE", self.address.to_string()))
    }

    fn fd(&self) -> Result<OwnedFd, VfioError> {
        let note = format!("simulated device {}\n", self.address);
        let shared = &self.file.shared;
        shared.descriptor(&self.file, &note).map_err(failed("dup", self.address.to_string()))
    }

    fn bound(&self) -> Result<bool, VfioError> {
        if self.type1() {
            return Ok(true);
        }
        let kernel = self.file.shared.kernel();
        match kernel.hw_info(self.context.file.id, self.device_id) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(VfioError::new("IOMMU_GET_HW_INFO", self.address.to_string(), errno)),
        }
    }
}
