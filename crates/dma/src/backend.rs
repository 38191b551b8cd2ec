//! The three things an address space can stand on.
#![expect(unsafe_code, reason = "passes on the contract of mapping memory by address")]

use std::os::fd::AsFd;
use std::sync::OnceLock;

use berth_uapi::{
    DmaPerms, Errno, IoasId, IoctlError, Iommufd, IommufdOp, IovaChoice, IovaRange, VfioContainer,
};

use crate::mirror::Source;
use crate::sim::{SimFlavour, SimIoas};

/// Which back end an address space stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// An IOAS of an iommufd.
    Iommufd,
    /// A type1 container.
    Type1,
    /// Simulated: nothing is mapped for any device.
    Simulated,
}

/// What an address space was made from, given back.
#[derive(Debug)]
pub enum Parts {
    /// An iommufd and the IOAS in it.
    Iommufd(Iommufd, IoasId),
    /// A container.
    Type1(VfioContainer),
    /// A simulated address space.
    Simulated(SimIoas),
}

#[derive(Debug)]
pub(crate) struct Backend {
    parts: Parts,
    map_file: OnceLock<bool>,
}

/// An object for errors of the simulation, which has no ioctls.
fn sim_error(op: &'static str, iova: u64, length: u64) -> impl FnOnce(Errno) -> IoctlError {
    move |errno| IoctlError::new(op, format!("{iova:#x}+{length:#x} of a simulated ioas"), errno)
}

impl Backend {
    pub(crate) fn new(parts: Parts) -> Self {
        Self { parts, map_file: OnceLock::new() }
    }

    pub(crate) fn into_parts(self) -> Parts {
        self.parts
    }

    pub(crate) fn kind(&self) -> BackendKind {
        match self.parts {
            Parts::Iommufd(..) => BackendKind::Iommufd,
            Parts::Type1(_) => BackendKind::Type1,
            Parts::Simulated(_) => BackendKind::Simulated,
        }
    }

    /// Whether the back end finds free addresses itself.
    pub(crate) fn chooses_iova(&self) -> bool {
        match &self.parts {
            Parts::Iommufd(..) => true,
            Parts::Type1(_) => false,
            Parts::Simulated(sim) => sim.flavour() == SimFlavour::Iommufd,
        }
    }

    /// Whether its number of mappings is limited.
    pub(crate) fn limits_entries(&self) -> bool {
        !self.chooses_iova()
    }

    /// Whether memory can be mapped by file.
    pub(crate) fn maps_files(&self) -> Result<bool, IoctlError> {
        match &self.parts {
            Parts::Iommufd(iommufd, _) => {
                if let Some(known) = self.map_file.get() {
                    return Ok(*known);
                }
                let answer = iommufd.supports(IommufdOp::MapFile)?;
                Ok(*self.map_file.get_or_init(|| answer))
            }
            Parts::Type1(_) => Ok(false),
            Parts::Simulated(_) => Ok(true),
        }
    }

    /// Permitted addresses, and what addresses and lengths must be multiples of.
    pub(crate) fn ranges(&self) -> Result<(Vec<IovaRange>, u64), IoctlError> {
        match &self.parts {
            Parts::Iommufd(iommufd, ioas) => {
                let found = iommufd.iova_ranges(*ioas)?;
                Ok((found.ranges, found.alignment))
            }
            Parts::Type1(container) => {
                let info = container.get_info()?;
                let smallest = info.page_sizes & info.page_sizes.wrapping_neg();
                Ok((info.iova_ranges, smallest))
            }
            Parts::Simulated(sim) => Ok((sim.permitted(), sim.alignment())),
        }
    }

    /// Maps memory by address.
    ///
    /// # Safety
    ///
    /// As [`Iommufd::map`] and [`VfioContainer::map_dma`].
    pub(crate) unsafe fn map(
        &self,
        iova: IovaChoice,
        address: u64,
        length: u64,
        perms: DmaPerms,
    ) -> Result<u64, IoctlError> {
        match &self.parts {
            Parts::Iommufd(iommufd, ioas) => {
                // SAFETY: the caller's promise.
                unsafe { iommufd.map(*ioas, iova, address, length, perms) }
            }
            Parts::Type1(container) => {
                let IovaChoice::Fixed(iova) = iova else {
                    return Err(IoctlError::new("map", "vfio container", Errno::INVAL));
                };
                // SAFETY: the caller's promise.
                unsafe { container.map_dma(iova, address, length, perms) }?;
                Ok(iova)
            }
            Parts::Simulated(sim) => {
                let source = Source::Memory { address };
                let at = fixed(iova);
                sim.map(iova, length, perms, source).map_err(sim_error("map", at, length))
            }
        }
    }

    pub(crate) fn map_file(
        &self,
        iova: IovaChoice,
        file: impl AsFd,
        offset: u64,
        length: u64,
        perms: DmaPerms,
    ) -> Result<u64, IoctlError> {
        match &self.parts {
            Parts::Iommufd(iommufd, ioas) => {
                iommufd.map_file(*ioas, iova, file, offset, length, perms)
            }
            Parts::Type1(_) => Err(IoctlError::new("map file", "vfio container", Errno::NOTTY)),
            Parts::Simulated(sim) => {
                let (source, at) = (Source::File { offset }, fixed(iova));
                sim.map(iova, length, perms, source).map_err(sim_error("map file", at, length))
            }
        }
    }

    pub(crate) fn unmap(&self, iova: u64, length: u64) -> Result<u64, IoctlError> {
        match &self.parts {
            Parts::Iommufd(iommufd, ioas) => iommufd.unmap(*ioas, iova, length),
            Parts::Type1(container) => container.unmap_dma(iova, length),
            Parts::Simulated(sim) => {
                sim.unmap(iova, length).map_err(sim_error("unmap", iova, length))
            }
        }
    }

    pub(crate) fn unmap_all(&self) -> Result<u64, IoctlError> {
        match &self.parts {
            Parts::Iommufd(iommufd, ioas) => iommufd.unmap_all(*ioas),
            Parts::Type1(container) => container.unmap_all(),
            Parts::Simulated(sim) => sim.unmap_all().map_err(sim_error("unmap all", 0, u64::MAX)),
        }
    }
}

fn fixed(iova: IovaChoice) -> u64 {
    match iova {
        IovaChoice::Fixed(iova) => iova,
        IovaChoice::Any => 0,
    }
}
