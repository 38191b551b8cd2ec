//! The kernel's rules, function by function.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Acs, DeviceFacts, Inventory, Isolation, PciAddress, PortType};

/// Deeper than buses can be nested.
const DEEPEST: usize = 256;

/// Where Access Control Services are assumed to be on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assumed {
    /// Where they are.
    AsItIs,
    /// On everything that may have them.
    Everywhere,
    /// On these too.
    On(BTreeSet<PciAddress>),
}

/// What put a function into another one's group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joined {
    /// A bridge whose requester id it has.
    Alias(PciAddress),
    /// A port on its way to the root that doesn't isolate.
    Port(PciAddress),
    /// A function of the same device.
    Functions(PciAddress),
}

/// The rules on one machine under one assumption.
#[derive(Debug)]
pub(super) struct Rules<'m> {
    functions: BTreeMap<PciAddress, &'m DeviceFacts>,
    assumed: &'m Assumed,
}

impl<'m> Rules<'m> {
    pub(super) fn new(machine: &'m Inventory, assumed: &'m Assumed) -> Self {
        let functions = machine.devices.iter().map(|facts| (facts.address, facts)).collect();
        Self { functions, assumed }
    }

    /// The function that stands for the group which a function would be in.
    ///
    /// # Errors
    /// The function on the way that shows nothing of isolation.
    pub(super) fn leader(&self, address: PciAddress) -> Result<PciAddress, PciAddress> {
        self.joined(address).map(|(leader, _)| leader)
    }

    /// The same, with the last thing that joined it to somebody; nothing where it leads.
    ///
    /// # Errors
    /// As [`Self::leader`].
    pub(super) fn joined(
        &self,
        address: PciAddress,
    ) -> Result<(PciAddress, Option<Joined>), PciAddress> {
        let (mut at, mut last) = (address, None);
        // Each step leads up, or to a lower function of the same device, so there is an end.
        for _ in 0..DEEPEST {
            let Some((next, joined)) = self.step(at)? else { break };
            last = last.or(Some(joined));
            at = next;
        }
        Ok((at, last))
    }

    fn step(&self, at: PciAddress) -> Result<Option<(PciAddress, Joined)>, PciAddress> {
        self.known(at)?;
        for port in self.above(at) {
            self.known(port)?;
        }
        if let Some(bridge) = self.above(at).filter(|port| self.gives_alias(*port)).last() {
            return Ok(Some((bridge, Joined::Alias(bridge))));
        }
        // The last port below which all the way up isn't isolated.
        if let Some(port) = self.above(at).filter(|port| !self.isolates(*port)).last() {
            return Ok(Some((port, Joined::Port(port))));
        }
        Ok(self.sibling(at)?.map(|other| (other, Joined::Functions(other))))
    }

    /// The lowest function of the same device that isn't isolated from it either.
    fn sibling(&self, at: PciAddress) -> Result<Option<PciAddress>, PciAddress> {
        if !self.is_multifunction(at) || self.isolates(at) {
            return Ok(None);
        }
        let slot = |of: PciAddress| (of.domain(), of.bus(), of.device());
        for other in self.functions.keys().filter(|other| **other < at && slot(**other) == slot(at))
        {
            self.known(*other)?;
            if !self.isolates(*other) {
                return Ok(Some(*other));
            }
        }
        Ok(None)
    }

    /// The bridges above a function, nearest first.
    pub(super) fn above(&self, address: PciAddress) -> impl Iterator<Item = PciAddress> {
        let up = |of: PciAddress| self.functions.get(&of)?.parent;
        std::iter::successors(up(address), move |port| up(*port)).take(DEEPEST)
    }

    fn known(&self, address: PciAddress) -> Result<Isolation, PciAddress> {
        self.shows(address).ok_or(address)
    }

    fn shows(&self, address: PciAddress) -> Option<Isolation> {
        self.functions.get(&address)?.isolation
    }

    /// # Kernel
    /// `pci_iov_add_virtfn` says so of no virtual function, whatever its header does, and
    /// `pci_scan_slot` of each other one that isn't function 0.
    fn is_multifunction(&self, address: PciAddress) -> bool {
        let physical =
            self.functions.get(&address).is_some_and(|it| it.physical_function.is_none());
        let shows = |shows: Isolation| shows.multifunction || address.function() > 0;
        physical && self.shows(address).is_some_and(shows)
    }

    /// A bridge whose requester id the IOMMU sees of what is behind it.
    ///
    /// # Kernel
    /// `pci_for_each_dma_alias`.
    fn gives_alias(&self, port: PciAddress) -> bool {
        let kinds = [None, Some(PortType::PciBridge), Some(PortType::PcieBridge)];
        self.shows(port).is_some_and(|shows| kinds.contains(&shows.port))
    }

    /// Whether a function keeps apart what it can.
    ///
    /// # Kernel
    /// `pci_acs_enabled` with `REQ_ACS_FLAGS`, without its quirks.
    pub(super) fn isolates(&self, address: PciAddress) -> bool {
        let Some(shows) = self.shows(address) else { return false };
        let on = || self.is_assumed(address) || shows.acs.is_some_and(Acs::isolates);
        match shows.port {
            // Nothing can be turned on there.
            None | Some(PortType::PciBridge | PortType::PcieBridge | PortType::EventCollector) => {
                false
            }
            Some(PortType::RootPort | PortType::DownstreamPort) => on(),
            Some(PortType::Endpoint | PortType::UpstreamPort | PortType::RootComplexEndpoint) => {
                !self.is_multifunction(address) || on()
            }
            Some(PortType::Other(_)) => true,
        }
    }

    fn is_assumed(&self, address: PciAddress) -> bool {
        match self.assumed {
            Assumed::AsItIs => false,
            Assumed::Everywhere => true,
            Assumed::On(these) => these.contains(&address),
        }
    }
}
