//! A topology file from a real machine.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use toml::Spanned;

use super::{
    Topology,
    spec::{DeviceSpec, FeatureSpec, GroupSpec, ResetSpec, TopologySpec},
};
use crate::{Answer, DeviceFacts, DmaKind, Feature, HostError, HostUse, Inventory, PciAddress};

/// What becomes of serial numbers in a recorded topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serials {
    /// A hash stands for each: devices can still be told apart.
    Hashed,
    /// As they are.
    Plain,
}

impl Topology {
    /// Records a machine, so that the simulated host can pretend to be it.
    ///
    /// # Errors
    /// [`HostError::Topology`] when the inventory contradicts itself.
    pub fn from_inventory(
        name: &str,
        kernel_release: &str,
        inventory: &Inventory,
        features: &[Feature],
        uses: &dyn Fn(PciAddress) -> Vec<HostUse>,
        serials: Serials,
    ) -> Result<Self, HostError> {
        let device = inventory
            .devices
            .iter()
            .map(|facts| Spanned::new(0..0, recorded(facts, uses(facts.address), serials)))
            .collect();
        let group = inventory
            .groups
            .iter()
            .filter(|group| !group.members.is_empty())
            .map(|group| GroupSpec {
                number: group.number,
                iommu_type: Some(group.iommu_type.clone()),
                reserved: Some(group.reserved_regions.clone()),
            })
            .collect();
        let mut features = recorded_features(features);
        features.iommu |= inventory.devices.iter().any(|facts| facts.group.is_some());
        let spec = TopologySpec {
            name: name.to_owned(),
            description: "recorded from a machine".to_owned(),
            kernel_release: kernel_release.to_owned(),
            helper_timeout_ms: 10_000,
            features,
            unknown_drivers: unknown_drivers(inventory),
            device,
            group,
            ..TopologySpec::default()
        };
        Self::from_spec(spec)
            .map_err(|(_, message)| HostError::Topology { path: name.to_owned(), message })
    }
}

fn recorded(facts: &DeviceFacts, uses: Vec<HostUse>, serials: Serials) -> DeviceSpec {
    let serial = facts.serial.as_ref().map(|serial| match serials {
        Serials::Plain => serial.clone(),
        Serials::Hashed => hashed(serial),
    });
    let host = facts.driver.iter().filter(|driver| !super::model::is_vfio(driver)).cloned();
    DeviceSpec {
        address: Some(facts.address),
        like: None,
        group: facts.group,
        vendor: Some(facts.vendor),
        device: Some(facts.device),
        subsystem_vendor: Some(facts.subsystem_vendor),
        subsystem_device: Some(facts.subsystem_device),
        class: Some(facts.class),
        revision: Some(facts.revision),
        serial,
        vendor_name: filled(&facts.vendor_name),
        device_name: filled(&facts.device_name),
        class_name: filled(&facts.class_name),
        numa_node: Some(facts.numa_node),
        reset_methods: Some(facts.reset_methods.clone()),
        reset: (!facts.reset_methods.is_empty()).then_some(ResetSpec::Verified),
        driver: facts.driver.clone(),
        driver_override: facts.driver_override.clone(),
        drivers: Some(host.collect()),
        vfio_driver: Some(facts.vfio_driver.clone()),
        bridge: facts.bridge.then_some(true),
        physical_function: facts.physical_function,
        sriov_total: (facts.sriov_total > 0).then_some(facts.sriov_total),
        sriov_vfs: None,
        health: None,
        parent: facts.parent,
        coherent: None,
        firmware_1to1: None,
        reset_set: (!facts.reset_set.is_empty()).then(|| facts.reset_set.clone()),
        grouping: Some(facts.grouping.clone()),
        isolation: facts.isolation,
        vf: None,
        bars: (!facts.bars.is_empty()).then(|| facts.bars.clone()),
        uses: (!uses.is_empty()).then_some(uses),
    }
}

/// Drivers of which it isn't known whether they use kernel DMA.
fn unknown_drivers(inventory: &Inventory) -> Vec<String> {
    let assumed = inventory.devices.iter().filter(|facts| facts.dma == DmaKind::Assumed);
    let names: BTreeSet<String> = assumed.filter_map(|facts| facts.driver.clone()).collect();
    names.into_iter().collect()
}

fn recorded_features(features: &[Feature]) -> FeatureSpec {
    let yes = |name: &str| features.iter().any(|f| f.name == name && f.answer == Answer::Yes);
    FeatureSpec {
        iommu: yes("iommu"),
        interrupt_remapping: yes("interrupt-remapping"),
        iommufd: yes("iommufd"),
        cdev: yes("cdev"),
        type1: yes("type1"),
        map_file: yes("map-file"),
        uevents: yes("uevents"),
        allow_unsafe_interrupts: false,
    }
}

fn hashed(serial: &str) -> String {
    let hash = Sha256::digest(serial.as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
