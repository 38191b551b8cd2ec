//! Why devices are in one group.
//!
//! The kernel doesn't say, so its rules are applied to what the configuration spaces show:
//! a bridge to conventional PCI gives all behind it one requester id; a path to the root on which
//! a port lacks ACS joins all below that port; functions of one device without ACS between them
//! share. Quirks in the kernel can isolate what these rules would join, never the other way
//! round, so they are applied only to groups that have several members.

use std::collections::HashMap;

use super::pci::Function;
use crate::{Acs, Grouping, GroupingCode, PciAddress, PortType};

/// All functions by address, and the members of each group.
#[derive(Debug)]
pub(super) struct Topology<'f> {
    functions: HashMap<PciAddress, &'f Function>,
    members: HashMap<u32, Vec<PciAddress>>,
}

impl<'f> Topology<'f> {
    pub(super) fn new(functions: &'f [Function]) -> Self {
        let mut members: HashMap<u32, Vec<PciAddress>> = HashMap::new();
        for function in functions {
            if let Some(group) = function.group {
                members.entry(group).or_default().push(function.address);
            }
        }
        let functions = functions.iter().map(|function| (function.address, function)).collect();
        Self { functions, members }
    }

    /// Why a function is in its group.
    pub(super) fn grouping(&self, function: &Function) -> Grouping {
        let Some(group) = function.group else {
            return because(GroupingCode::Unknown, None, "it is in no group".to_owned());
        };
        let members = self.members.get(&group).map_or(&[][..], Vec::as_slice);
        if members.len() <= 1 {
            return because(GroupingCode::Alone, None, "it is isolated".to_owned());
        }
        self.bridge_alias(function, members)
            .or_else(|| self.missing_acs(function, members))
            .or_else(|| self.multifunction(function, members))
            .unwrap_or_else(|| self.unknown(function))
    }

    fn bridge_alias(&self, function: &Function, members: &[PciAddress]) -> Option<Grouping> {
        if gives_alias(function) && members.iter().any(|other| self.is_below(*other, function)) {
            let text = format!(
                "{} is a bridge to conventional PCI: all behind it use its requester id",
                function.address
            );
            return Some(because(GroupingCode::BridgeAlias, Some(function.address), text));
        }
        // The topmost such bridge decides: its alias is the one that the IOMMU sees.
        let bridge = self.above(function).filter(|port| gives_alias(port)).last()?;
        let text = format!(
            "it is behind {}, a bridge to conventional PCI that gives all behind it one requester id",
            bridge.address
        );
        Some(because(GroupingCode::BridgeAlias, Some(bridge.address), text))
    }

    fn missing_acs(&self, function: &Function, members: &[PciAddress]) -> Option<Grouping> {
        // A port joins what is below it when it lacks ACS itself; a device is joined by any port
        // above it that lacks ACS.
        let own = Some(function).filter(|port| {
            lacks_acs_as_port(port) && members.iter().any(|other| self.is_below(*other, port))
        });
        let port = own.or_else(|| self.above(function).find(|port| lacks_acs_as_port(port)))?;
        let lacks = match port.ids.capabilities.acs {
            None => "shows no ACS",
            Some(_) => "has ACS, but not all of it is on",
        };
        let text = if port.address == function.address {
            format!("{} {lacks}: all below it can reach each other", port.address)
        } else {
            format!("port {} on its way to the root {lacks}", port.address)
        };
        Some(because(GroupingCode::MissingAcs, Some(port.address), text))
    }

    fn multifunction(&self, function: &Function, members: &[PciAddress]) -> Option<Grouping> {
        let same_device = |other: &PciAddress| {
            *other != function.address && slot(*other) == slot(function.address)
        };
        let sibling = members.iter().copied().filter(same_device).min()?;
        let text = format!(
            "it is a function of the same device as {sibling}, without ACS between functions"
        );
        Some(because(GroupingCode::Multifunction, Some(sibling), text))
    }

    fn unknown(&self, function: &Function) -> Grouping {
        let readable =
            self.above(function).chain([function]).all(|function| function.ids.capabilities.known);
        let text = if readable {
            "no bridge, port or sibling function explains it: a quirk of the kernel or the IOMMU"
        } else {
            "the configuration space of a port on the way to the root isn't readable"
        };
        because(GroupingCode::Unknown, None, text.to_owned())
    }

    /// The ports above a function, nearest first.
    fn above<'s>(&'s self, function: &'s Function) -> impl Iterator<Item = &'s Function> {
        const DEEPEST: usize = 64;
        let up = |of: &Function| self.functions.get(&of.parent?).copied();
        std::iter::successors(up(function), move |port| up(port)).take(DEEPEST)
    }

    fn is_below(&self, address: PciAddress, port: &Function) -> bool {
        let Some(function) = self.functions.get(&address) else { return false };
        self.above(function).any(|above| above.address == port.address)
    }
}

fn because(code: GroupingCode, cause: Option<PciAddress>, text: String) -> Grouping {
    Grouping { code, cause, text }
}

fn slot(address: PciAddress) -> (u32, u8, u8) {
    (address.domain(), address.bus(), address.device())
}

/// A bridge with conventional PCI below it.
fn gives_alias(port: &Function) -> bool {
    let capabilities = &port.ids.capabilities;
    port.ids.bridge
        && capabilities.known
        && matches!(capabilities.port, None | Some(PortType::PciBridge))
}

/// Whether a port lets what is below it reach others unseen.
///
/// # Kernel
/// `pci_acs_enabled`: a single-function upstream port can't redirect, so it counts as isolating.
fn lacks_acs_as_port(port: &Function) -> bool {
    let capabilities = &port.ids.capabilities;
    if !port.ids.bridge || !capabilities.known {
        return false;
    }
    match capabilities.port {
        Some(PortType::RootPort | PortType::DownstreamPort) => {
            !capabilities.acs.is_some_and(Acs::isolates)
        }
        Some(PortType::UpstreamPort) => {
            port.ids.multifunction && !capabilities.acs.is_some_and(Acs::isolates)
        }
        _ => false,
    }
}
