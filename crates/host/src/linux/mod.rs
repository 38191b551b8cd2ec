//! The real machine: sysfs, /proc, VFIO and iommufd.
//!
//! Discovery reads a tree that need not be the running machine's: a copy, or a fake one for
//! tests. Everything that needs privilege goes through [`Privileged`]; VFIO itself is used
//! directly, and only on the running machine.

pub mod acts;
mod config_space;
mod drivers;
mod features;
mod grouping;
mod groups;
mod health;
mod memory;
mod names;
mod nodes;
mod pci;
mod private_domain;
mod procs;
mod resource;
mod scan;
mod settings;
pub mod testing;
mod tree;
mod uevents;
mod users;
mod uses;
mod variants;
mod vfio;

pub use acts::Direct;
pub use groups::stable_id;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::io::Errno;

use crate::{
    Act, ActOutcome, BackendKind, Context, DeviceFacts, Feature, GroupHold, Health, Host,
    HostError, HostUse, Inventory, Node, PciAddress, PrivateDomain, Privileged, ProcessUse,
    Settings, Uevents, VfioError,
};
use berth_uapi::VfioGroup;
pub(crate) use drivers::{dma_kind, is_driver_name, is_vfio};
use features::Abilities;
pub(crate) use procs::{reservation_of_pid, standing_of_pid};
use scan::Scanner;
use tree::Root;
pub(crate) use tree::file_error;
use uevents::KernelUevents;
use variants::Variants;
use vfio::{IommufdContext, OwnHold, Type1Context};

/// How a real host is made.
#[derive(Debug, Clone)]
pub struct LinuxConfig {
    /// The tree to discover: `/`, or another one with `sys`, `proc` and `lib/modules` in it.
    pub root: PathBuf,
    /// Who does the privileged acts.
    pub privileged: Arc<dyn Privileged>,
}

/// The machine that this runs on, or a tree that looks like one.
#[derive(Debug)]
pub struct LinuxHost {
    root: Root,
    privileged: Arc<dyn Privileged>,
    kernel_release: String,
    boot_id: String,
    scanner: Scanner,
    abilities: Mutex<Option<Arc<Abilities>>>,
    /// The process that keeps duplicates of this one's descriptors.
    keeper: Option<i32>,
}

impl LinuxHost {
    /// A host on a tree.
    #[must_use]
    pub fn new(config: LinuxConfig) -> Self {
        let root = Root::new(config.root);
        let line = |below: &str| {
            std::fs::read_to_string(root.join(below)).map(|text| text.trim().to_owned())
        };
        let kernel_release =
            line("proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".to_owned());
        let boot_id = line("proc/sys/kernel/random/boot_id").unwrap_or_default();
        let variants = Variants::read(&root.join("lib/modules").join(&kernel_release));
        Self {
            scanner: Scanner::new(root.clone(), variants),
            root,
            privileged: config.privileged,
            kernel_release,
            boot_id,
            abilities: Mutex::default(),
            keeper: None,
        }
    }

    /// Names the process that keeps duplicates of this one's descriptors, as a service manager does:
    /// it counts as little as this one among those that have a device open.
    #[must_use]
    pub fn kept_by(mut self, process: i32) -> Self {
        self.keeper = Some(process);
        self
    }

    /// What the machine can do; asked again while an answer is missing. A tree that isn't the running
    /// machine never has them all, and doesn't change its mind.
    fn abilities(&self) -> Arc<Abilities> {
        let mut known = self.abilities.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(abilities) if abilities.complete() || !self.root.is_live() => {
                Arc::clone(abilities)
            }
            _ => Arc::clone(known.insert(Arc::new(Abilities::ask(&self.root)))),
        }
    }

    /// VFIO is only there on the running machine.
    fn live(&self, op: &str) -> Result<(), VfioError> {
        if self.root.is_live() {
            return Ok(());
        }
        let object = self.root.path().display().to_string();
        Err(VfioError::new(op, object, Errno::OPNOTSUPP))
    }

    /// Whether the host driver has a domain of its own attached, and who made it do that.
    fn find_private_domain(&self, device: &mut DeviceFacts) {
        let Some(node) = private_domain::node(&self.root, device) else { return };
        let asked = self.privileged.perform(&Act::WhoHolds { nodes: vec![node.clone()] });
        let processes = match asked {
            Ok(ActOutcome::Holders(found)) if found.is_empty() => return,
            Ok(ActOutcome::Holders(found)) => {
                found.iter().map(|process| format!("{} ({})", process.name, process.pid)).collect()
            }
            // Nobody is known not to have it.
            Ok(_) | Err(_) => Vec::new(),
        };
        device.private_domain = Some(PrivateDomain { node: Some(node), processes });
    }

    fn open_iommufd(&self) -> Result<IommufdContext, VfioError> {
        let failed = |error: HostError| VfioError {
            op: match &error {
                HostError::File { op, .. } => (*op).to_owned(),
                other => format!("open ({other})"),
            },
            object: "/dev/iommu".to_owned(),
            errno: error.errno().unwrap_or(Errno::IO.raw_os_error()),
        };
        match self.privileged.perform(&Act::OpenIommu).map_err(failed)? {
            ActOutcome::Fd(fd) => Ok(IommufdContext::new(self.root.clone(), fd)),
            _ => Err(VfioError::new("open", "/dev/iommu", Errno::PROTO)),
        }
    }
}

impl Host for LinuxHost {
    fn simulated(&self) -> bool {
        false
    }

    fn topology(&self) -> Option<String> {
        None
    }

    fn kernel_release(&self) -> String {
        self.kernel_release.clone()
    }

    fn boot_id(&self) -> String {
        self.boot_id.clone()
    }

    fn features(&self) -> Vec<Feature> {
        self.abilities().all()
    }

    fn settings(&self) -> Settings {
        settings::read(&self.root)
    }

    fn kernel_hold(&self) -> bool {
        self.abilities().has("kernel-hold")
    }

    fn backends(&self) -> Vec<BackendKind> {
        self.abilities().backends()
    }

    fn scan(&self) -> Result<Inventory, HostError> {
        let mut inventory = self.scanner.scan()?;
        for device in &mut inventory.devices {
            self.find_private_domain(device);
        }
        Ok(inventory)
    }

    fn device(&self, address: PciAddress) -> Result<DeviceFacts, HostError> {
        let mut device = self.scanner.device(address)?;
        self.find_private_domain(&mut device);
        Ok(device)
    }

    fn uevents(&self) -> Result<Box<dyn Uevents>, HostError> {
        if !self.root.is_live() {
            let tree = self.root.path();
            return Err(file_error("subscribe to uevents of", tree, Errno::OPNOTSUPP));
        }
        Ok(Box::new(KernelUevents::open()?))
    }

    fn uses(&self, address: PciAddress) -> Result<Vec<HostUse>, HostError> {
        uses::find(&self.root, address)
    }

    fn health(&self, address: PciAddress) -> Result<Health, HostError> {
        health::read(&self.root, address)
    }

    fn users_of(&self, address: PciAddress) -> Result<Vec<ProcessUse>, HostError> {
        users::of(self, address)
    }

    fn used_among(&self, devices: &[PciAddress]) -> Result<BTreeSet<PciAddress>, HostError> {
        users::among(self, devices)
    }

    fn perform(&self, act: &Act) -> Result<ActOutcome, HostError> {
        self.privileged.perform(act)
    }

    fn open_context(&self, backend: BackendKind) -> Result<Box<dyn Context>, VfioError> {
        self.live("open context")?;
        Ok(match backend {
            BackendKind::Iommufd => Box::new(self.open_iommufd()?),
            BackendKind::Type1 => Box::new(Type1Context::open(self.root.clone())?),
        })
    }

    fn hold(
        &self,
        group: u32,
        context: Option<&dyn Context>,
    ) -> Result<Box<dyn GroupHold>, VfioError> {
        self.live("hold")?;
        let Some(context) = context else { return Ok(Box::new(OwnHold::take(group)?)) };
        match context.as_any().downcast_ref::<Type1Context>() {
            Some(container) => container.hold(group),
            None => Err(VfioError::new("hold", format!("group {group}"), Errno::INVAL)),
        }
    }

    fn open_cdev(&self, device: PciAddress) -> Result<std::os::fd::OwnedFd, VfioError> {
        self.live("open cdev")?;
        vfio::open_cdev(&self.root, device)
    }

    fn bind_takes_vf_token(&self, device: PciAddress) -> Result<bool, VfioError> {
        self.live("ask about VF tokens")?;
        self.open_iommufd()?.takes_vf_token(device)
    }

    fn node(&self, node: Node) -> Result<String, HostError> {
        nodes::find(&self.root, node).map(|place| place.path)
    }

    fn in_use(&self, device: PciAddress) -> Result<bool, HostError> {
        nodes::in_use(&self.root, device)
    }

    fn memory_bytes(&self) -> Option<u64> {
        memory::total(&self.root)
    }

    fn registered(&self, driver: &str) -> Result<String, HostError> {
        let found = acts::drivers::registered(&self.root, driver);
        let loaded = || acts::drivers::is_loadable(&self.root, &self.kernel_release, driver);
        found.or_else(|error| if loaded() { Ok(driver.to_owned()) } else { Err(error) })
    }

    fn unbind_waits(&self, device: PciAddress) -> Result<bool, HostError> {
        nodes::unbind_waits(&self.root, device)
    }

    fn probe_free(&self, group: u32) -> Result<bool, VfioError> {
        self.live("probe")?;
        vfio::probe_free(&self.root, group)
    }

    fn adopt_hold(
        &self,
        group: u32,
        context: Option<&dyn Context>,
        mut fds: Vec<std::os::fd::OwnedFd>,
    ) -> Result<Box<dyn GroupHold>, VfioError> {
        self.live("adopt hold")?;
        let wrong = |errno| VfioError::new("adopt hold", format!("group {group}"), errno);
        let (Some(fd), true) = (fds.pop(), fds.is_empty()) else { return Err(wrong(Errno::BADFD)) };
        vfio::check_node(&self.root, Node::Group(group), &fd)?;
        let open = VfioGroup::from_fd(fd, &format!("/dev/vfio/{group}"));
        if !open.status()?.container_set {
            return Err(wrong(Errno::INVAL));
        }
        let Some(context) = context else { return Ok(Box::new(OwnHold::adopt(group, open))) };
        match context.as_any().downcast_ref::<Type1Context>() {
            Some(container) => container.adopt_hold(group, open),
            None => Err(wrong(Errno::INVAL)),
        }
    }

    fn adopt_context(
        &self,
        backend: BackendKind,
        fd: std::os::fd::OwnedFd,
    ) -> Result<Box<dyn Context>, VfioError> {
        self.live("adopt context")?;
        let node = match backend {
            BackendKind::Iommufd => Node::Iommu,
            BackendKind::Type1 => Node::Container,
        };
        vfio::check_node(&self.root, node, &fd)?;
        Ok(match backend {
            BackendKind::Iommufd => Box::new(IommufdContext::new(self.root.clone(), fd)),
            BackendKind::Type1 => Box::new(Type1Context::adopt(self.root.clone(), fd)),
        })
    }
}

#[cfg(test)]
mod health_tests;
#[cfg(test)]
mod tests;
