//! Topology files: the machine that the simulated host pretends to be.

mod check;
mod generate;
mod model;
mod record;
mod spec;

use std::{collections::BTreeMap, path::Path};

pub use self::record::Serials;
use self::spec::TopologySpec;
pub(crate) use self::{
    model::{DeviceModel, GroupModel, ResetKind, dma_kind, is_vfio, stable_id},
    spec::FeatureSpec,
};
use super::fault::Fault;
use crate::{DeviceFacts, GroupFacts, HostError, Inventory, PciAddress};

const BUILTIN: &[(&str, &str)] = &[
    ("small", include_str!("../../../topologies/small.toml")),
    ("gpu-server", include_str!("../../../topologies/gpu-server.toml")),
    ("sriov-nic", include_str!("../../../topologies/sriov-nic.toml")),
    ("desktop-no-acs", include_str!("../../../topologies/desktop-no-acs.toml")),
];

/// The built-in one that no file could say shortly.
const LARGE: &str = "large";

/// A machine for the simulated host, checked.
#[derive(Debug, Clone)]
pub struct Topology {
    spec: TopologySpec,
    pub(crate) devices: Vec<DeviceModel>,
    pub(crate) groups: Vec<GroupModel>,
}

impl Topology {
    /// Reads a topology from text; `path` is only for errors.
    ///
    /// # Errors
    /// [`HostError::Topology`] with the line and what is wrong there.
    pub fn parse(text: &str, path: &str) -> Result<Self, HostError> {
        let wrong = |message: String| HostError::Topology { path: path.to_owned(), message };
        let spec: TopologySpec = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            wrong(format!("line {line}: {}", error.message().trim_end()))
        })?;
        Self::from_spec(spec).map_err(|(offset, message)| {
            wrong(format!("line {}: {message}", line_of(text, offset)))
        })
    }

    /// Reads a topology file.
    ///
    /// # Errors
    /// [`HostError::File`] when it can't be read, [`HostError::Topology`] when it is wrong.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, HostError> {
        let shown = path.as_ref().display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|error| HostError::File {
            op: "read",
            path: shown.clone(),
            errno: error.raw_os_error().unwrap_or(rustix::io::Errno::INVAL.raw_os_error()),
        })?;
        Self::parse(&text, &shown)
    }

    /// One of the built-in topologies.
    ///
    /// # Errors
    /// [`HostError::Topology`] that lists the names there are.
    pub fn builtin(name: &str) -> Result<Self, HostError> {
        match BUILTIN.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Self::parse(text, name),
            None if name == LARGE => Self::large(),
            None => Err(HostError::Topology {
                path: name.to_owned(),
                message: format!(
                    "there is no such built-in topology; there are {}",
                    Self::builtin_names().collect::<Vec<_>>().join(", ")
                ),
            }),
        }
    }

    /// Names of the built-in topologies.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name).chain([LARGE])
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The file's text.
    ///
    /// # Errors
    /// [`HostError::Topology`] when a value has no TOML form.
    pub fn to_toml(&self) -> Result<String, HostError> {
        toml::to_string(&self.spec).map_err(|error| HostError::Topology {
            path: self.spec.name.clone(),
            message: error.to_string(),
        })
    }

    /// The machine as the file says it, without the virtual functions that it makes at boot.
    #[must_use]
    pub fn inventory(&self) -> Inventory {
        let devices: Vec<DeviceFacts> =
            self.devices.iter().map(|device| device.facts.clone()).collect();
        let mut members: BTreeMap<u32, Vec<PciAddress>> = BTreeMap::new();
        for device in &devices {
            if let Some(number) = device.group {
                members.entry(number).or_default().push(device.address);
            }
        }
        let groups = self.groups.iter().map(|group| {
            let members = members.remove(&group.number).unwrap_or_default();
            GroupFacts {
                number: group.number,
                stable_id: stable_id(&members),
                members,
                iommu_type: group.iommu_type.clone(),
                reserved_regions: group.reserved.clone(),
            }
        });
        Inventory { groups: groups.collect(), devices }
    }

    /// The same machine, with acts that give up on a device in use after `timeout_ms`.
    ///
    /// # Units
    /// Milliseconds.
    #[must_use]
    pub fn with_helper_timeout_ms(mut self, timeout_ms: u64) -> Self {
        self.spec.helper_timeout_ms = timeout_ms;
        self
    }

    /// The same machine, with so much memory.
    #[must_use]
    pub fn with_memory_bytes(mut self, memory_bytes: u64) -> Self {
        self.spec.memory_bytes = Some(memory_bytes);
        self
    }

    /// The same machine, with one of `iommu`, `interrupt_remapping`, `iommufd`, `cdev`, `type1`,
    /// `map_file`, `uevents`, `allow_unsafe_interrupts` set to `on`.
    ///
    /// # Errors
    /// [`HostError::Topology`] for another name.
    pub fn with_feature(mut self, name: &str, on: bool) -> Result<Self, HostError> {
        if !self.spec.features.set(name, on) {
            return Err(HostError::Topology {
                path: self.spec.name.clone(),
                message: format!("there is no feature {name:?}"),
            });
        }
        Ok(self)
    }

    pub(crate) fn features(&self) -> &FeatureSpec {
        &self.spec.features
    }

    pub(crate) fn kernel_release(&self) -> &str {
        &self.spec.kernel_release
    }

    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        self.spec.memory_bytes
    }

    pub(crate) fn helper_timeout_ms(&self) -> u64 {
        self.spec.helper_timeout_ms
    }

    /// The boot that it is always found on.
    pub(crate) fn boot_id(&self) -> Option<String> {
        self.spec.boot_id.clone()
    }

    pub(crate) fn unknown_drivers(&self) -> &[String] {
        &self.spec.unknown_drivers
    }

    pub(crate) fn faults(&self) -> &[Fault] {
        &self.spec.fault
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests;
