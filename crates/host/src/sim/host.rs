//! [`Host`] on a simulated machine.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::io::Errno;

use super::{
    acts,
    context::{SimContext, SimHold},
    fault::Site,
    kernel::Kernel,
    shared::{Kind, Shared, failed},
    topology::{Topology, stable_id},
};
use crate::{
    Act, ActOutcome, Answer, BackendKind, Context, DeviceFacts, Feature, GroupFacts, GroupHold,
    Health, Host, HostError, HostUse, Inventory, Node, PciAddress, ProcessUse, Settings, Uevents,
    VfioError,
};

/// A simulated machine. Clones are the same one.
#[derive(Debug, Clone)]
pub struct SimHost {
    pub(crate) shared: Arc<Shared>,
}

impl SimHost {
    /// Boots a machine.
    #[must_use]
    pub fn from_topology(topology: Topology) -> Self {
        let mut shared = Shared::new(
            Kernel::boot(&topology),
            topology.name(),
            topology.kernel_release(),
            topology.helper_timeout_ms(),
            topology.memory_bytes(),
        );
        if let Some(boot_id) = topology.boot_id() {
            shared.boot_id = boot_id;
        }
        for fault in topology.faults() {
            shared.faults.script(fault.clone());
        }
        Self { shared: Arc::new(shared) }
    }

    /// Boots one of the built-in machines.
    ///
    /// # Errors
    /// [`HostError::Topology`] that lists the names there are.
    pub fn builtin(name: &str) -> Result<Self, HostError> {
        Topology::builtin(name).map(Self::from_topology)
    }

    fn open(&self, backend: BackendKind) -> Result<SimContext, VfioError> {
        let (path, kind) = match backend {
            BackendKind::Iommufd => ("/dev/iommu", Kind::Iommufd),
            BackendKind::Type1 => ("/dev/vfio/vfio", Kind::Container),
        };
        self.shared.pass(Site::OpenContext, None, None).map_err(failed("open", path))?;
        let id = {
            let mut kernel = self.shared.kernel();
            match backend {
                BackendKind::Iommufd => kernel.open_iommufd(),
                BackendKind::Type1 => kernel.open_container(),
            }
        };
        let id = id.map_err(failed("open", path))?;
        Ok(SimContext { backend, groups: self.shared.context(id, kind) })
    }
}

/// Who keeps the domain that a device's host driver has. Asked without the kernel in hand.
fn find_keepers(shared: &Shared, device: &mut DeviceFacts) {
    let address = device.address;
    let Some(domain) = device.private_domain.as_mut().filter(|domain| domain.node.is_some()) else {
        return;
    };
    let found = shared.holders(&|kind| kind == Kind::Vhost(address));
    domain.processes =
        found.iter().map(|process| format!("{} ({})", process.name, process.pid)).collect();
}

fn facts(kernel: &Kernel, address: PciAddress) -> Option<DeviceFacts> {
    let device = kernel.devices.get(&address)?;
    let mut facts = device.model.facts.clone();
    let cdev = device.vfio.as_ref().and_then(|vfio| vfio.cdev);
    facts.cdev = cdev.map(|number| format!("/dev/vfio/devices/vfio{number}"));
    facts.private_domain = kernel.private_domain(address);
    Some(facts)
}

impl Host for SimHost {
    fn simulated(&self) -> bool {
        true
    }

    fn topology(&self) -> Option<String> {
        Some(self.shared.name.clone())
    }

    fn kernel_release(&self) -> String {
        self.shared.release.clone()
    }

    fn boot_id(&self) -> String {
        self.shared.boot_id.clone()
    }

    fn features(&self) -> Vec<Feature> {
        let kernel = self.shared.kernel();
        let has = &kernel.features;
        let said = [
            ("iommu", has.iommu),
            ("iommufd", has.iommufd),
            ("cdev", has.cdev && has.iommufd),
            ("type1", has.type1),
            ("map-file", has.map_file && has.iommufd),
            ("interrupt-remapping", has.interrupt_remapping),
            ("kernel-hold", has.type1),
            ("uevents", has.uevents),
        ];
        let feature = |(name, yes): (&str, bool)| Feature {
            name: name.to_owned(),
            answer: if yes { Answer::Yes } else { Answer::No },
            note: "the topology file says so".to_owned(),
        };
        said.into_iter().map(feature).collect()
    }

    fn settings(&self) -> Settings {
        let kernel = self.shared.kernel();
        let has = &kernel.features;
        let unsafe_interrupts = [("vfio_iommu_type1", has.type1), ("iommufd", has.iommufd)]
            .into_iter()
            .filter(|(_, there)| *there)
            .map(|(module, _)| (module.to_owned(), has.allow_unsafe_interrupts))
            .collect();
        Settings {
            unsafe_interrupts,
            vfio_pci: Some(!kernel.unloaded.contains("vfio-pci")),
            vfio_sriov: kernel.vfio_sriov,
        }
    }

    fn kernel_hold(&self) -> bool {
        self.shared.kernel().features.type1
    }

    fn backends(&self) -> Vec<BackendKind> {
        let kernel = self.shared.kernel();
        let has = &kernel.features;
        let iommufd = (has.iommu && has.iommufd && has.cdev).then_some(BackendKind::Iommufd);
        let type1 = (has.iommu && has.type1).then_some(BackendKind::Type1);
        iommufd.into_iter().chain(type1).collect()
    }

    fn scan(&self) -> Result<Inventory, HostError> {
        let scanned = self.shared.pass(Site::Scan, None, None);
        scanned.map_err(|errno| HostError::File {
            op: "read",
            path: "/sys/bus/pci/devices".to_owned(),
            errno: errno.raw_os_error(),
        })?;
        let kernel = self.shared.kernel();
        let mut devices: Vec<_> =
            kernel.devices.keys().filter_map(|a| facts(&kernel, *a)).collect();
        let groups = kernel.groups.values().map(|group| {
            let members: Vec<PciAddress> = group.members.iter().copied().collect();
            GroupFacts {
                number: group.model.number,
                stable_id: stable_id(&members),
                members,
                iommu_type: group.model.iommu_type.clone(),
                reserved_regions: group.model.reserved.clone(),
            }
        });
        let groups = groups.collect();
        drop(kernel);
        for device in &mut devices {
            find_keepers(&self.shared, device);
        }
        Ok(Inventory { groups, devices })
    }

    fn device(&self, address: PciAddress) -> Result<DeviceFacts, HostError> {
        let read = self.shared.pass(Site::ReadDevice, Some(address), None);
        read.map_err(|errno| HostError::File {
            op: "read",
            path: format!("/sys/bus/pci/devices/{address}"),
            errno: errno.raw_os_error(),
        })?;
        let found = facts(&self.shared.kernel(), address);
        let mut device = found.ok_or(HostError::NoDevice(address))?;
        find_keepers(&self.shared, &mut device);
        Ok(device)
    }

    fn uevents(&self) -> Result<Box<dyn Uevents>, HostError> {
        let mut kernel = self.shared.kernel();
        if !kernel.features.uevents {
            let path = "NETLINK_KOBJECT_UEVENT".to_owned();
            return Err(HostError::File { op: "bind", path, errno: Errno::PERM.raw_os_error() });
        }
        Ok(Box::new(kernel.subscribe()))
    }

    fn uses(&self, address: PciAddress) -> Result<Vec<HostUse>, HostError> {
        let kernel = self.shared.kernel();
        let device = kernel.dev(address).map_err(|_| HostError::NoDevice(address))?;
        if device.vfio.is_some() {
            return Ok(Vec::new());
        }
        // A mount or an interface is the host driver's: without the driver there is none. The
        // firmware's framebuffer needs none.
        let driver = device.model.facts.driver.is_some();
        let lasts = |one: &&HostUse| driver || one.kind == "boot-display";
        Ok(device.model.uses.iter().filter(lasts).cloned().collect())
    }

    /// What a test or the topology file said; of one that sleeps as little as on a real machine.
    fn health(&self, address: PciAddress) -> Result<Health, HostError> {
        let kernel = self.shared.kernel();
        let device = kernel.dev(address).map_err(|_| HostError::NoDevice(address))?;
        let mut health = device.model.health.clone();
        if health.is_asleep() {
            health.answers = None;
            health.link = None;
        }
        Ok(health)
    }

    fn users_of(&self, address: PciAddress) -> Result<Vec<ProcessUse>, HostError> {
        self.shared.kernel().dev(address).map_err(|_| HostError::NoDevice(address))?;
        let asked = self.shared.pass(Site::WhoHolds, Some(address), None);
        asked.map_err(|errno| HostError::File {
            op: "read",
            path: "/proc/PID/fd".to_owned(),
            errno: errno.raw_os_error(),
        })?;
        let about = self.shared.about(address);
        Ok(self.shared.holders(&about))
    }

    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError> {
        acts::perform(&self.shared, act)
    }

    fn open_context(&self, backend: BackendKind) -> Result<Box<dyn Context>, VfioError> {
        Ok(Box::new(self.open(backend)?))
    }

    fn hold(
        &self,
        group: u32,
        context: Option<&dyn Context>,
    ) -> Result<Box<dyn GroupHold>, VfioError> {
        let container = match context.map(|context| context.as_any().downcast_ref()) {
            None => self.open(BackendKind::Type1)?.groups,
            Some(Some(SimContext { backend: BackendKind::Type1, groups })) => Arc::clone(groups),
            Some(_) => {
                let object = format!("group {group}");
                return Err(VfioError::new("VFIO_GROUP_SET_CONTAINER", object, Errno::BADFD));
            }
        };
        Ok(Box::new(SimHold::take(container, group)?))
    }

    fn open_cdev(&self, device: PciAddress) -> Result<OwnedFd, VfioError> {
        let name = device.to_string();
        let opened = self.shared.pass(Site::OpenDevice, Some(device), None).and_then(|()| {
            let id = self.shared.kernel().open_cdev(device)?;
            let file = self.shared.own(id, Kind::Device(device));
            self.shared.descriptor(&file, &format!("simulated cdev of {device}\n"))
        });
        opened.map_err(failed("open", name))
    }

    fn bind_takes_vf_token(&self, device: PciAddress) -> Result<bool, VfioError> {
        let name = device.to_string();
        let mut kernel = self.shared.kernel();
        let cdev = kernel.open_cdev(device).map_err(failed("open", &name))?;
        kernel.close_device_file(cdev);
        // The simulated kernel is one that asks.
        Ok(true)
    }

    fn node(&self, node: Node) -> Result<String, HostError> {
        let found = self.shared.kernel().node(node);
        found.map_err(|errno| match (node, errno) {
            (Node::Cdev(device), Errno::NODEV) => HostError::NoDevice(device),
            _ => {
                HostError::File { op: "find", path: node.to_string(), errno: errno.raw_os_error() }
            }
        })
    }

    fn in_use(&self, device: PciAddress) -> Result<bool, HostError> {
        let kernel = self.shared.kernel();
        let device = kernel.dev(device).map_err(|_| HostError::NoDevice(device))?;
        Ok(device.vfio.as_ref().is_some_and(|vfio| vfio.open_count > 0))
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.shared.memory_bytes
    }

    fn registered(&self, driver: &str) -> Result<String, HostError> {
        super::attributes::registered(&self.shared.kernel(), driver)
    }

    fn unbind_waits(&self, device: PciAddress) -> Result<bool, HostError> {
        self.shared.kernel().dev(device).map_err(|_| HostError::NoDevice(device))?;
        Ok(super::shared::lock(&self.shared.waiting).contains(&device))
    }

    fn probe_free(&self, group: u32) -> Result<bool, VfioError> {
        let path = format!("/dev/vfio/{group}");
        let answer = self
            .shared
            .pass(Site::ProbeFree, None, Some(group))
            .and_then(|()| self.shared.kernel().probe_free(group));
        answer.map_err(failed("open", path))
    }

    fn adopt_hold(
        &self,
        group: u32,
        context: Option<&dyn Context>,
        fds: Vec<OwnedFd>,
    ) -> Result<Box<dyn GroupHold>, VfioError> {
        let wrong = || VfioError::new("adopt hold", format!("group {group}"), Errno::BADFD);
        let mut known = fds.iter().filter_map(|fd| self.shared.recognise(fd));
        let (Some((id, Kind::Group(number))), Some((container, Kind::Container))) =
            (known.next(), known.next())
        else {
            return Err(wrong());
        };
        let own = match context.map(|context| context.as_any().downcast_ref::<SimContext>()) {
            None => self.shared.context(container, Kind::Container),
            Some(Some(context)) if context.groups.file.id == container => {
                Arc::clone(&context.groups)
            }
            Some(_) => return Err(wrong()),
        };
        if number != group {
            return Err(wrong());
        }
        let file = self.shared.own_again(id, Kind::Group(group));
        Ok(Box::new(SimHold::adopt(own, group, file)))
    }

    fn adopt_context(
        &self,
        backend: BackendKind,
        fd: OwnedFd,
    ) -> Result<Box<dyn Context>, VfioError> {
        let wanted = match backend {
            BackendKind::Iommufd => Kind::Iommufd,
            BackendKind::Type1 => Kind::Container,
        };
        match self.shared.recognise(&fd) {
            Some((id, kind)) if kind == wanted => {
                Ok(Box::new(SimContext { backend, groups: self.shared.context(id, kind) }))
            }
            _ => Err(VfioError::new("adopt", "context", Errno::BADFD)),
        }
    }
}
