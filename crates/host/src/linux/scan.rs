//! All functions of a machine, and what follows from seeing them together.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use rustix::io::Errno;

use super::{
    drivers,
    grouping::Topology,
    groups,
    names::{Names, Wanted},
    pci::{self, Function, Reader},
    tree::{self, Root},
    variants::Variants,
};
use crate::{DeviceFacts, Grouping, HostError, Inventory, PciAddress, in_chunks};

/// Reads a machine; remembers names between passes.
#[derive(Debug)]
pub(super) struct Scanner {
    root: Root,
    variants: Variants,
    names: Mutex<(Wanted, Names)>,
}

impl Scanner {
    pub(super) fn new(root: Root, variants: Variants) -> Self {
        Self { root, variants, names: Mutex::default() }
    }

    /// Every device and group.
    pub(super) fn scan(&self) -> Result<Inventory, HostError> {
        let functions = self.read(&self.addresses()?)?;
        let mut members: BTreeMap<u32, Vec<PciAddress>> = BTreeMap::new();
        for function in &functions {
            if let Some(group) = function.group {
                members.entry(group).or_default().push(function.address);
            }
        }
        let devices = self.facts(functions);
        Ok(Inventory { groups: groups::read(&self.root, members), devices })
    }

    /// One device, with as many of the others as say something about it.
    pub(super) fn device(&self, address: PciAddress) -> Result<DeviceFacts, HostError> {
        let all = self.addresses()?;
        let mut around: BTreeSet<PciAddress> = all
            .iter()
            .copied()
            .filter(|other| (other.domain(), other.bus()) == (address.domain(), address.bus()))
            .collect();
        around.insert(address);
        let dir = self.root.device(address);
        let dir = tree::open_dir(&dir).map_err(|_| HostError::NoDevice(address))?;
        tree::each_name_at(&dir, "iommu_group/devices", |name| {
            around.extend(name.parse::<PciAddress>().ok());
        });
        let mut link = vec![0; tree::PAGE_BYTES];
        tree::each_name_at(&dir, ".", |name| {
            if name.starts_with("virtfn") {
                let target = tree::link_name_at(&dir, name, &mut link);
                around.extend(target.and_then(|name| name.parse::<PciAddress>().ok()));
            }
        });
        let functions = self.read_with_ports(around)?;
        let facts = self.facts(functions);
        facts.into_iter().find(|facts| facts.address == address).ok_or(HostError::NoDevice(address))
    }

    fn addresses(&self) -> Result<Vec<PciAddress>, HostError> {
        let path = self.root.join("sys/bus/pci/devices");
        let names =
            tree::names_in(&path).map_err(|errno| tree::file_error("read", &path, errno))?;
        let mut addresses: Vec<PciAddress> =
            names.iter().filter_map(|name| name.parse().ok()).collect();
        addresses.sort_unstable();
        Ok(addresses)
    }

    /// Reads functions; one that goes away meanwhile is left out.
    fn read(&self, addresses: &[PciAddress]) -> Result<Vec<Function>, HostError> {
        let devices = pci::open_devices(&self.root)?;
        let found: Vec<Result<Function, HostError>> = in_chunks(addresses, |chunk| {
            let mut reader = Reader::new();
            let mut found = Vec::with_capacity(chunk.len());
            for address in chunk {
                match reader.read(devices.as_fd(), *address) {
                    Ok(function) => found.push(Ok(function)),
                    Err(Errno::NOENT | Errno::NODEV) => {}
                    // One that can't be read is there all the same: nothing may be called gone.
                    Err(errno) => {
                        let path = self.root.device(*address);
                        found.push(Err(tree::file_error("read", path, errno)));
                    }
                }
            }
            found
        });
        found.into_iter().collect()
    }

    fn read_with_ports(&self, around: BTreeSet<PciAddress>) -> Result<Vec<Function>, HostError> {
        let mut functions = self.read(&around.iter().copied().collect::<Vec<_>>())?;
        let mut seen = around;
        loop {
            let missing: Vec<PciAddress> = functions
                .iter()
                .filter_map(|function| function.parent)
                .filter(|parent| seen.insert(*parent))
                .collect();
            if missing.is_empty() {
                return Ok(functions);
            }
            functions.extend(self.read(&missing)?);
        }
    }

    fn facts(&self, functions: Vec<Function>) -> Vec<DeviceFacts> {
        let topology = Topology::new(&functions);
        let groupings: Vec<Grouping> =
            functions.iter().map(|function| topology.grouping(function)).collect();
        drop(topology);
        let relations = Relations::new(&functions);
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh_names(&mut names, &functions);
        functions
            .into_iter()
            .zip(groupings)
            .map(|(function, grouping)| self.merge(function, grouping, &relations, &names.1))
            .collect()
    }

    fn refresh_names(&self, known: &mut (Wanted, Names), functions: &[Function]) {
        let mut wanted = known.0.clone();
        for function in functions {
            let [_, sub, base, _] = function.ids.class.to_le_bytes();
            wanted.devices.insert((function.ids.vendor, function.ids.device));
            wanted.classes.insert((base, sub));
        }
        if wanted != known.0 {
            *known = (wanted.clone(), Names::find(self.root.path(), &wanted));
        }
    }

    fn merge(
        &self,
        function: Function,
        grouping: Grouping,
        relations: &Relations,
        names: &Names,
    ) -> DeviceFacts {
        let Function { address, parent, ids, driver, .. } = function;
        // Elsewhere the number says nothing: a copy is made file by file.
        let instance = self.root.is_live().then_some(function.instance);
        DeviceFacts {
            address,
            instance,
            group: function.group,
            vendor: ids.vendor,
            device: ids.device,
            subsystem_vendor: ids.subsystem_vendor,
            subsystem_device: ids.subsystem_device,
            class: ids.class,
            revision: ids.revision,
            serial: function.serial,
            vendor_name: names.vendor(ids.vendor).to_owned(),
            device_name: names.device(ids.vendor, ids.device).to_owned(),
            class_name: names.class(ids.class).to_owned(),
            numa_node: function.numa_node,
            bars: function.bars,
            reset_methods: function.reset_methods,
            dma: drivers::dma_kind(driver.as_deref()),
            driver,
            driver_override: function.driver_override,
            vfio_driver: self.variants.driver_for(&ids).to_owned(),
            bridge: ids.bridge,
            physical_function: function.physical_function,
            virtual_functions: relations.virtual_functions(address),
            sriov_total: function.sriov_total,
            sriov_autoprobe: function.sriov_autoprobe,
            parent,
            grouping,
            isolation: ids.isolation(),
            cdev: function.cdev,
            reset_set: relations.reset_set(address, parent, function.physical_function),
            private_domain: None,
        }
    }
}

/// Which functions belong together.
#[derive(Debug, Default)]
struct Relations {
    virtual_functions: HashMap<PciAddress, Vec<PciAddress>>,
    /// Physical functions by bus, of buses below a port only.
    buses: HashMap<(u32, u8), Vec<PciAddress>>,
}

impl Relations {
    fn new(functions: &[Function]) -> Self {
        let mut this = Self::default();
        for Function { address, parent, physical_function, .. } in functions {
            if let Some(physical) = physical_function {
                this.virtual_functions.entry(*physical).or_default().push(*address);
            } else if parent.is_some() {
                this.buses.entry((address.domain(), address.bus())).or_default().push(*address);
            }
        }
        this
    }

    fn virtual_functions(&self, address: PciAddress) -> Vec<PciAddress> {
        self.virtual_functions.get(&address).cloned().unwrap_or_default()
    }

    /// The devices that a bus reset of this one hits too.
    ///
    /// # Kernel
    /// `vfio_pci_core_register_device`: a virtual function and a device on a root bus are a set
    /// of their own, others share one with their bus or slot.
    fn reset_set(
        &self,
        address: PciAddress,
        parent: Option<PciAddress>,
        physical: Option<PciAddress>,
    ) -> Vec<PciAddress> {
        if parent.is_none() || physical.is_some() {
            return Vec::new();
        }
        let bus = self.buses.get(&(address.domain(), address.bus()));
        bus.into_iter().flatten().copied().filter(|other| *other != address).collect()
    }
}
