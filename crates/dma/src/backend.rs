//! The three things an address space can stand on.
#![expect(unsafe_code, reason = "passes on the contract of mapping memory by address")]

use std::os::fd::AsFd;
use std::sync::OnceLock;

use berth_uapi::{
    DmaPerms, Errno, IoasId, IoctlError, Iommufd, IommufdOp, IovaChoice, IovaRange, RlimitMode,
    VfioContainer, same_file,
};

use crate::error::DmaError;
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

/// What a back end says of itself.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) permitted: Vec<IovaRange>,
    pub(crate) alignment: u64,
    /// A bit for each size; 0 where it isn't said.
    pub(crate) page_sizes: u64,
    pub(crate) mappings_left: Option<u32>,
    pub(crate) mode: RlimitMode,
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

    /// Whether its number of mappings is limited.
    pub(crate) fn limits_entries(&self) -> bool {
        match &self.parts {
            Parts::Iommufd(..) => false,
            Parts::Type1(_) => true,
            Parts::Simulated(sim) => sim.flavour() == SimFlavour::Type1,
        }
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

    /// How pinned memory is counted; on type1, for the process that maps.
    pub(crate) fn rlimit_mode(&self) -> RlimitMode {
        match &self.parts {
            Parts::Iommufd(iommufd, _) => iommufd.rlimit_mode().unwrap_or(RlimitMode::User),
            Parts::Type1(_) | Parts::Simulated(_) => RlimitMode::Process,
        }
    }

    /// What there is room for.
    pub(crate) fn room(&self) -> Result<Room, IoctlError> {
        let mode = self.rlimit_mode();
        let (permitted, alignment) = self.ranges()?;
        let mut room = Room { permitted, alignment, page_sizes: 0, mappings_left: None, mode };
        match &self.parts {
            Parts::Iommufd(..) => {}
            Parts::Type1(container) => {
                let info = container.get_info()?;
                (room.page_sizes, room.mappings_left) = (info.page_sizes, info.dma_avail);
            }
            Parts::Simulated(sim) => room.mappings_left = sim.entries_left(),
        }
        Ok(room)
    }

    /// Maps memory by address.
    ///
    /// # Safety
    ///
    /// As [`Iommufd::map`] and [`VfioContainer::map_dma`].
    #[inline]
    pub(crate) unsafe fn map(
        &self,
        iova: u64,
        address: u64,
        length: u64,
        perms: DmaPerms,
    ) -> Result<u64, IoctlError> {
        let place = IovaChoice::Fixed(iova);
        match &self.parts {
            Parts::Iommufd(iommufd, ioas) => {
                // SAFETY: the caller's promise.
                unsafe { iommufd.map(*ioas, place, address, length, perms) }
            }
            Parts::Type1(container) => {
                // SAFETY: the caller's promise.
                unsafe { container.map_dma(iova, address, length, perms) }?;
                Ok(iova)
            }
            Parts::Simulated(sim) => {
                let source = Source::Memory { address };
                sim.map(place, length, perms, source).map_err(sim_error("map", iova, length))
            }
        }
    }

    /// Whether mappings can be copied to another back end.
    pub(crate) fn copies_to(&self, target: &Self) -> Result<(), DmaError> {
        let cannot = |why| Err(DmaError::Cannot { what: "copy a mapping", why });
        match (&self.parts, &target.parts) {
            (Parts::Iommufd(from, _), Parts::Iommufd(to, _)) => match same_file(from, to) {
                Ok(false) => cannot("both address spaces must be of one iommufd"),
                // Where it can't be found out, ids of another context are ENOENT to the kernel.
                Ok(true) | Err(_) => Ok(()),
            },
            (Parts::Simulated(from), Parts::Simulated(to))
                if (from.flavour(), to.flavour()) == (SimFlavour::Iommufd, SimFlavour::Iommufd) =>
            {
                Ok(())
            }
            _ => cannot("only an iommufd can, within itself; map the memory again"),
        }
    }

    /// Maps what is mapped at `iova` at `to` of the target, too.
    ///
    /// # Safety
    ///
    /// As [`Iommufd::copy`].
    pub(crate) unsafe fn copy(
        &self,
        iova: u64,
        target: &Self,
        to: u64,
        length: u64,
        perms: DmaPerms,
    ) -> Result<u64, IoctlError> {
        let place = IovaChoice::Fixed(to);
        match (&self.parts, &target.parts) {
            (Parts::Iommufd(iommufd, from), Parts::Iommufd(_, ioas)) => {
                // SAFETY: the caller's promise.
                unsafe { iommufd.copy((*from, iova), (*ioas, place), length, perms) }
            }
            (Parts::Simulated(from), Parts::Simulated(target)) => {
                from.copy(iova, target, place, length, perms).map_err(sim_error("copy", to, length))
            }
            _ => Err(IoctlError::new("copy", "another back end", Errno::NOTTY)),
        }
    }

    /// Restricts what may be mapped.
    pub(crate) fn allow(&self, ranges: &[IovaRange]) -> Result<(), DmaError> {
        match &self.parts {
            Parts::Iommufd(iommufd, ioas) => Ok(iommufd.allow_iovas(*ioas, ranges)?),
            Parts::Simulated(sim) if sim.flavour() == SimFlavour::Iommufd => {
                Ok(sim.allow(ranges).map_err(sim_error("allow", 0, 0))?)
            }
            Parts::Simulated(_) | Parts::Type1(_) => Err(DmaError::Cannot {
                what: "keep addresses free of reserved ones",
                why: "type1 has no such call; give out fixed places instead",
            }),
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

    #[inline]
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
