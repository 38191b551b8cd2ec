//! From a file's words to a machine, or what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Topology,
    model::{DeviceModel, GroupModel},
    spec::{DeviceSpec, TopologySpec},
};
use crate::PciAddress;

/// Offset in the text and what is wrong there.
type Wrong = (usize, String);

impl Topology {
    /// Checks a file's words.
    pub(super) fn from_spec(spec: TopologySpec) -> Result<Self, Wrong> {
        if spec.name.is_empty() {
            return Err((0, "name is empty".to_owned()));
        }
        let mut devices = Vec::with_capacity(spec.device.len());
        let mut offsets = BTreeMap::new();
        for entry in &spec.device {
            let offset = entry.span().start;
            let device = device(entry.get_ref(), &spec).map_err(|message| (offset, message))?;
            if offsets.insert(device.facts.address, offset).is_some() {
                return Err((offset, format!("device {} is there twice", device.facts.address)));
            }
            devices.push(device);
        }
        for device in &devices {
            references(device, &offsets, &devices)?;
        }
        devices.sort_by_key(|device| device.facts.address);
        link_virtual_functions(&mut devices);
        let groups = groups(&spec, &devices)?;
        Ok(Self { devices, groups, spec })
    }
}

fn device(own: &DeviceSpec, spec: &TopologySpec) -> Result<DeviceModel, String> {
    let address = own.address.ok_or("a device needs an address, as in 0000:65:00.0")?;
    let merged = match &own.like {
        None => own.clone(),
        Some(name) => {
            let template = spec.template.get(name).ok_or_else(|| {
                format!("device {address} is like {name:?}, but there is no [template.{name}]")
            })?;
            own.clone().or(template)
        }
    };
    if merged.class.is_some_and(|class| class > 0x00ff_ffff) {
        return Err(format!("device {address}: a class has 24 bits"));
    }
    if merged.group.is_some() && !spec.features.iommu {
        return Err(format!("device {address} is in a group, but features.iommu is false"));
    }
    let total = merged.sriov_total.unwrap_or(0);
    if merged.sriov_vfs.unwrap_or(0) > total {
        return Err(format!("device {address}: sriov_vfs is more than sriov_total, {total}"));
    }
    if merged.sriov_vfs.unwrap_or(0) > 0 && merged.vf.is_none() {
        return Err(format!("device {address}: sriov_vfs needs a vf table"));
    }
    Ok(DeviceModel::new(address, merged, &spec.unknown_drivers))
}

fn references(
    device: &DeviceModel,
    offsets: &BTreeMap<PciAddress, usize>,
    devices: &[DeviceModel],
) -> Result<(), Wrong> {
    let address = device.facts.address;
    let offset = offsets.get(&address).copied().unwrap_or(0);
    let named =
        [("parent", device.facts.parent), ("physical_function", device.facts.physical_function)];
    let others = device.facts.reset_set.iter().map(|other| ("reset_set", Some(*other)));
    for (what, other) in named.into_iter().chain(others) {
        let Some(other) = other else { continue };
        if other == address {
            return Err((offset, format!("device {address}: {what} is the device itself")));
        }
        if !offsets.contains_key(&other) {
            return Err((offset, format!("device {address}: {what} {other} is not in the file")));
        }
    }
    let is_bridge =
        |other: PciAddress| devices.iter().any(|d| d.facts.address == other && d.facts.bridge);
    match device.facts.parent {
        Some(parent) if !is_bridge(parent) => {
            Err((offset, format!("device {address}: its parent {parent} is not a bridge")))
        }
        _ => Ok(()),
    }
}

fn link_virtual_functions(devices: &mut [DeviceModel]) {
    let mut of: BTreeMap<PciAddress, Vec<PciAddress>> = BTreeMap::new();
    for device in devices.iter() {
        if let Some(physical) = device.facts.physical_function {
            of.entry(physical).or_default().push(device.facts.address);
        }
    }
    for device in devices {
        if let Some(functions) = of.remove(&device.facts.address) {
            device.facts.virtual_functions = functions;
        }
    }
}

fn groups(spec: &TopologySpec, devices: &[DeviceModel]) -> Result<Vec<GroupModel>, Wrong> {
    let used: BTreeSet<u32> = devices.iter().filter_map(|device| device.facts.group).collect();
    let mut groups: BTreeMap<u32, GroupModel> =
        used.iter().map(|number| (*number, GroupModel::new(*number))).collect();
    for said in &spec.group {
        let Some(group) = groups.get_mut(&said.number) else {
            return Err((0, format!("group {} has no device", said.number)));
        };
        if let Some(kind) = &said.iommu_type {
            group.iommu_type.clone_from(kind);
        }
        if let Some(reserved) = &said.reserved {
            if let Some(bad) = reserved.iter().find(|range| range.first > range.last) {
                return Err((
                    0,
                    format!(
                        "group {}: reserved range {:#x}-{:#x} ends before it begins",
                        said.number, bad.first, bad.last
                    ),
                ));
            }
            group.reserved.clone_from(reserved);
        }
    }
    Ok(groups.into_values().collect())
}
