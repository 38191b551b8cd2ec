//! What a test does to a simulated machine from outside.

use std::{os::fd::OwnedFd, sync::Arc};

use berth_uapi::VfToken;
use rustix::io::Errno;

use super::{
    fault::Fault,
    foreign::Foreign,
    host::SimHost,
    kernel::{files::FileId, owner::Ownership},
    rule::Rule,
    shared::Kind,
    topology::ResetKind,
};
use crate::{
    BackendKind, Context, DomainHandle, Health, HostUse, IovaRange, Node, PciAddress, ResetOutcome,
};

impl SimHost {
    /// Scripts a fault.
    pub fn fault(&self, fault: Fault) {
        self.shared.faults.script(fault);
    }

    /// Forgets all faults; calls that hang go on.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// How many calls that can be made to fail there were: with it a test walks through all.
    #[must_use]
    pub fn fault_points(&self) -> u64 {
        self.shared.faults.calls()
    }

    /// Breaks a rule of the kernel, to see that somebody notices.
    pub fn break_rule(&self, rule: Rule) {
        self.shared.kernel().broken.insert(rule);
    }

    /// Sets vfio-pci's parameter `enable_sriov`.
    pub fn let_vfio_make_functions(&self) {
        self.shared.kernel().vfio_sriov = true;
    }

    /// Somebody who has a physical function sets its VF token, as `VFIO_DEVICE_FEATURE` does.
    ///
    /// # Errors
    /// ENODEV: it isn't on a VFIO driver. ENOTTY: it is no physical function.
    pub fn set_vf_token(&self, device: PciAddress, token: VfToken) -> Result<(), Errno> {
        self.shared.kernel().set_token(device, token)
    }

    /// Changes what a device shows of its health.
    ///
    /// # Errors
    /// ENODEV: there is none.
    pub fn set_health(
        &self,
        device: PciAddress,
        change: impl FnOnce(&mut Health),
    ) -> Result<(), Errno> {
        let mut kernel = self.shared.kernel();
        let device = kernel.devices.get_mut(&device).ok_or(Errno::NODEV)?;
        change(&mut device.model.health);
        Ok(())
    }

    /// This process ends as the kernel sees it: all that it has open is closed, but for what duplicates
    /// outside keep open. For handles that were leaked, as those of a process that ended are: one
    /// that is dropped later on closes once more.
    pub fn end_this_process(&self) {
        self.shared.process_ends();
    }

    /// Starts another process, of root.
    #[must_use]
    pub fn foreign(&self, name: &str) -> Foreign {
        self.process(name, 0)
    }

    /// Starts a process of a user.
    #[must_use]
    pub fn process(&self, name: &str, uid: u32) -> Foreign {
        Foreign::start(&self.shared, name, uid)
    }

    /// Whoever was handed the cdev of a device and an iommufd binds the one to the other: real
    /// processes have no calls for it. The last ones that left are meant.
    ///
    /// # Errors
    /// EBADF: none left. Else the kernel's.
    pub fn bind_exported(&self, device: PciAddress) -> Result<(), Errno> {
        let cdev = self.shared.last_exported(Kind::Device(device)).ok_or(Errno::BADF)?;
        let context = self.shared.last_exported(Kind::Iommufd).ok_or(Errno::BADF)?;
        self.shared.kernel().bind_iommufd(cdev, context).map(drop)
    }

    /// Opens a device through its group as another process does, for a real process to have: what is
    /// answered are descriptors of the group, its container and the device, each open until its last
    /// duplicate is closed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_by_group_for(&self, device: PciAddress) -> Result<[OwnedFd; 3], Errno> {
        let mut kernel = self.shared.kernel();
        let number = kernel.group_of(device)?;
        let group = kernel.open_group(number)?;
        let container = kernel.open_container()?;
        kernel.set_container(group, container)?;
        kernel.set_iommu(container)?;
        let opened = kernel.get_device_fd(group, device)?;
        drop(kernel);
        let kinds = [Kind::Group(number), Kind::Container, Kind::Device(device)];
        self.leave([group, container, opened], kinds)
    }

    /// The same of a device's cdev, bound to an iommufd: descriptors of both.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind_for(&self, device: PciAddress) -> Result<[OwnedFd; 2], Errno> {
        let mut kernel = self.shared.kernel();
        let context = kernel.open_iommufd()?;
        let cdev = kernel.open_cdev(device)?;
        kernel.bind_iommufd(cdev, context)?;
        drop(kernel);
        self.leave([cdev, context], [Kind::Device(device), Kind::Iommufd])
    }

    fn leave<const N: usize>(
        &self,
        ids: [FileId; N],
        kinds: [Kind; N],
    ) -> Result<[OwnedFd; N], Errno> {
        let mut left = Vec::with_capacity(N);
        for (id, kind) in ids.into_iter().zip(kinds) {
            let file = self.shared.own(id, kind);
            self.shared.is_foreign(&file);
            left.push(self.shared.descriptor(&file, "another process's\n")?);
        }
        left.try_into().map_err(|_| Errno::BADF)
    }

    /// Whom the access list of a node names.
    #[must_use]
    pub fn access(&self, node: Node) -> Vec<u32> {
        self.shared.kernel().access(node).into_iter().collect()
    }

    /// Another process that has a group's node open.
    ///
    /// # Errors
    /// The kernel's.
    pub fn foreign_open_group(&self, group: u32) -> Result<Foreign, Errno> {
        let process = self.foreign("rival");
        process.open_group(group)?;
        Ok(process)
    }

    /// Another process that has a device bound to an iommufd of its own.
    ///
    /// # Errors
    /// The kernel's.
    pub fn foreign_bind(&self, device: PciAddress) -> Result<Foreign, Errno> {
        let process = self.foreign("rival");
        process.bind(device)?;
        Ok(process)
    }

    /// Somebody writes to `drivers/D/bind`.
    ///
    /// # Errors
    /// The kernel's: EBUSY while the group is owned.
    pub fn host_driver_bind(&self, device: PciAddress, driver: &str) -> Result<(), Errno> {
        self.shared.kernel().bind_driver(device, driver)
    }

    /// Somebody writes to `drivers/D/unbind`.
    ///
    /// # Errors
    /// ENODEV without a driver; EBUSY while it is open, where the real write would wait.
    pub fn host_driver_unbind(&self, device: PciAddress) -> Result<(), Errno> {
        let mut kernel = self.shared.kernel();
        if kernel.in_use(device) {
            return Err(Errno::BUSY);
        }
        kernel.unbind_driver(device)
    }

    /// The host driver of a device attaches a domain of its own.
    ///
    /// # Errors
    /// EINVAL in a group of several; EBUSY when another domain is attached.
    pub fn host_driver_attach(&self, device: PciAddress) -> Result<(), Errno> {
        let mut kernel = self.shared.kernel();
        let number = kernel.group_of(device)?;
        let group = kernel.group_mut(number)?;
        let members = group.members.len();
        group.ownership.attach_device(device, members)
    }

    /// The host driver of a device detaches its domain.
    ///
    /// # Errors
    /// ENODEV when there is no such device or group.
    pub fn host_driver_detach(&self, device: PciAddress) -> Result<(), Errno> {
        let mut kernel = self.shared.kernel();
        let number = kernel.group_of(device)?;
        kernel.group_mut(number)?.ownership.detach();
        Ok(())
    }

    /// Plugs in a copy of a device at another address, without a driver, in a group of its own.
    ///
    /// # Errors
    /// ENODEV: there is no such model. EEXIST: the address is taken.
    pub fn plug(&self, address: PciAddress, like: PciAddress) -> Result<u32, Errno> {
        let mut kernel = self.shared.kernel();
        let mut model = kernel.dev(like)?.model.clone();
        if kernel.devices.contains_key(&address) {
            return Err(Errno::EXIST);
        }
        let number = kernel.free_group();
        model.facts.address = address;
        model.facts.group = Some(number);
        model.facts.driver = None;
        model.facts.dma = crate::DmaKind::None;
        model.facts.driver_override = None;
        model.facts.serial = None;
        model.facts.virtual_functions = Vec::new();
        model.facts.physical_function = None;
        model.facts.reset_set = Vec::new();
        model.uses = Vec::new();
        kernel.insert_device(model);
        Ok(number)
    }

    /// Pulls a device out.
    ///
    /// # Errors
    /// ENODEV: there is none. EBUSY while it is open, where the kernel would wait.
    pub fn unplug(&self, device: PciAddress) -> Result<(), Errno> {
        let mut kernel = self.shared.kernel();
        if kernel.in_use(device) {
            return Err(Errno::BUSY);
        }
        kernel.remove_device(device)
    }

    /// Pulls a device out that may be open: it goes as soon as nobody has it open, as in the kernel,
    /// and has no driver and waits until then.
    ///
    /// # Errors
    /// ENODEV: there is none.
    pub fn unplug_when_closed(&self, device: PciAddress) -> Result<(), Errno> {
        self.shared.kernel().dev(device)?;
        super::shared::lock(&self.shared.waiting).push(device);
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || {
            // Whoever asks whether something waits for it may look until it is gone.
            let _gone_meanwhile = shared.kernel_without_users(device).remove_device(device);
            super::shared::lock(&shared.waiting).retain(|waiting| *waiting != device);
        });
        Ok(())
    }

    /// Puts another device of the same model where one was pulled out.
    ///
    /// # Errors
    /// As [`Self::unplug`].
    pub fn exchange(&self, device: PciAddress) -> Result<(), Errno> {
        let mut kernel = self.shared.kernel();
        if kernel.in_use(device) {
            return Err(Errno::BUSY);
        }
        let mut model = kernel.dev(device)?.model.clone();
        kernel.remove_device(device)?;
        model.facts.driver = None;
        model.facts.dma = crate::DmaKind::None;
        model.facts.driver_override = None;
        kernel.insert_device(model);
        Ok(())
    }

    /// Somebody writes to `driver_override`, of which the kernel tells nobody.
    ///
    /// # Errors
    /// ENODEV: there is no such device.
    pub fn host_override(&self, device: PciAddress, driver: Option<&str>) -> Result<(), Errno> {
        self.shared.kernel().set_override(device, driver)
    }

    /// Sets what the host does with a device while it is on a host driver; shows the console on it
    /// also without one.
    ///
    /// # Errors
    /// ENODEV: there is no such device.
    pub fn set_uses(&self, device: PciAddress, uses: Vec<HostUse>) -> Result<(), Errno> {
        self.shared.kernel().dev_mut(device)?.model.uses = uses;
        Ok(())
    }

    /// Sets how resets of a device go from now on; method and note stay the device's.
    ///
    /// # Errors
    /// ENODEV: there is no such device.
    pub fn set_reset(&self, device: PciAddress, outcome: &ResetOutcome) -> Result<(), Errno> {
        self.shared.kernel().dev_mut(device)?.model.reset = match outcome {
            ResetOutcome::Verified { .. } => ResetKind::Verified,
            ResetOutcome::NotPossible { .. } => ResetKind::NotPossible,
            ResetOutcome::Failed { .. } => ResetKind::Failed,
        };
        Ok(())
    }

    /// Lets a device stay bus master when it is closed, as broken ones do.
    pub fn keep_bus_master(&self, device: PciAddress) {
        self.shared.kernel().masters.insert(device);
    }

    /// Switches one of the features that [`super::Topology::with_feature`] names; whether it is one.
    #[must_use]
    pub fn set_feature(&self, name: &str, on: bool) -> bool {
        self.shared.kernel().features.set(name, on)
    }

    /// Sets the type of a group's default domain, and what is reserved of its addresses.
    ///
    /// # Errors
    /// ENODEV: there is no such group.
    pub fn set_default_domain(
        &self,
        group: u32,
        iommu_type: &str,
        reserved: Vec<IovaRange>,
    ) -> Result<(), Errno> {
        let mut kernel = self.shared.kernel();
        let model = &mut kernel.group_mut(group)?.model;
        iommu_type.clone_into(&mut model.iommu_type);
        model.reserved = reserved;
        Ok(())
    }

    /// Sets by what a device can be reset, and what is hit beside it then.
    ///
    /// # Errors
    /// ENODEV: there is no such device.
    pub fn set_reset_scope(
        &self,
        device: PciAddress,
        methods: &[&str],
        beside: &[PciAddress],
    ) -> Result<(), Errno> {
        let mut kernel = self.shared.kernel();
        let model = &mut kernel.dev_mut(device)?.model;
        model.facts.reset_methods = methods.iter().map(|method| (*method).to_owned()).collect();
        model.facts.reset_set = beside.to_vec();
        model.reset = if methods.is_empty() { ResetKind::NotPossible } else { ResetKind::Verified };
        Ok(())
    }

    /// Removes a driver's module, which no device is on; or loads it again.
    pub fn set_unloaded(&self, driver: &str, unloaded: bool) {
        let mut kernel = self.shared.kernel();
        if unloaded {
            kernel.unloaded.insert(driver.to_owned());
        } else {
            kernel.unloaded.remove(driver);
        }
    }

    /// Sets how many devices of a group are being reset: attaches answer EBUSY meanwhile.
    ///
    /// # Errors
    /// ENODEV: there is no such group.
    pub fn set_recovering(&self, group: u32, devices: u32) -> Result<(), Errno> {
        self.shared.kernel().group_mut(group)?.ownership.recovering = devices;
        Ok(())
    }

    /// The kernel's truth about a group.
    ///
    /// # Errors
    /// ENODEV: there is no such group.
    pub fn ownership(&self, group: u32) -> Result<Ownership, Errno> {
        Ok(self.shared.kernel().group(group)?.ownership)
    }

    /// Whether a device in this domain would reach memory at an address.
    #[must_use]
    pub fn reaches(&self, context: &dyn Context, domain: DomainHandle, iova: u64) -> bool {
        let Some(context) = context.as_any().downcast_ref::<super::context::SimContext>() else {
            return false;
        };
        let kernel = self.shared.kernel();
        let id = context.groups.file.id;
        let area = match context.backend {
            BackendKind::Iommufd => kernel
                .iommufds
                .get(&id)
                .and_then(|ctx| ctx.space(domain.0).ok().map(|space| space.lookup(iova))),
            BackendKind::Type1 => {
                kernel.containers.get(&id).map(|container| container.space.lookup(iova))
            }
        };
        area.flatten().is_some()
    }

    /// Checks what must hold in every state of the kernel.
    ///
    /// # Errors
    /// What doesn't.
    pub fn check(&self) -> Result<(), String> {
        self.shared.kernel().check()
    }
}
