//! `rust_vmm`: the same work through the crates that rust-vmm's VMMs map with, on the same file: an iommufd of
//! ours that `iommufd-ioctls` is given, or a container that `vfio-ioctls` opens and ours joins.
#![expect(unsafe_code, reason = "maps memory by address, which stays until it is unmapped")]

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use berth_dma::{AddressSpace, BatchBuffer, DmaPerms, IovaChoice};
use berth_measure::{Question, Row, Target};
use berth_uapi::VfioContainer;
use iommufd_bindings::{iommu_ioas_map, iommu_ioas_unmap};
use iommufd_ioctls::IommuFd;
use vfio_ioctls::VfioDevice;

use crate::{
    Places,
    call::{IOVA, first, pair, span},
    memory::{Kind, Memory},
    raw::Span,
    site::{Backend, Kernel, Site},
    timing::{compare_times, time},
};

const PAGE: u64 = 4096;
const BUFFERS: u64 = 256;
/// FIXED_IOVA, WRITEABLE, READABLE.
const FIXED_READ_WRITE: u32 = 7;

/// What those crates can't be asked, as far as a VMM's mapping goes.
const CANNOT: &str = "what neither crate has: a place that it finds, or a look at which addresses are \
     permitted; mappings that can only be read; many buffers in one call; neighbours as one mapping; what \
     is mapped, and where memory is seen; unmapping everything; limits told before or with numbers in the \
     error";

/// Their side.
enum Theirs {
    Iommufd { context: IommuFd, ioas: u32, _site: Site },
    // The device leaves before the container that it is in.
    Type1 { _device: VfioDevice, container: Arc<vfio_ioctls::VfioContainer> },
}

impl Theirs {
    /// # Safety
    ///
    /// The memory stays until it is unmapped, and nothing refers to it.
    unsafe fn map(&self, span: &Span) -> Result<()> {
        match self {
            Self::Iommufd { context, ioas, .. } => {
                let size = u32::try_from(size_of::<iommu_ioas_map>())?;
                Ok(context.map_iommu_ioas(&iommu_ioas_map {
                    size,
                    flags: FIXED_READ_WRITE,
                    ioas_id: *ioas,
                    user_va: span.address,
                    length: span.length,
                    iova: span.iova,
                    ..Default::default()
                })?)
            }
            Self::Type1 { container, .. } => {
                let (length, address) =
                    (usize::try_from(span.length)?, usize::try_from(span.address)?);
                let memory = std::ptr::with_exposed_provenance_mut(address);
                // SAFETY: the caller's promise.
                Ok(unsafe { container.vfio_dma_map(span.iova, length, memory) }?)
            }
        }
    }

    fn unmap(&self, span: &Span) -> Result<()> {
        let Span { iova, length, .. } = *span;
        match self {
            Self::Iommufd { context, ioas, .. } => {
                let size = u32::try_from(size_of::<iommu_ioas_unmap>())?;
                let mut unmap = iommu_ioas_unmap { size, ioas_id: *ioas, iova, length };
                Ok(context.unmap_iommu_ioas(&mut unmap)?)
            }
            Self::Type1 { container, .. } => {
                Ok(container.vfio_dma_unmap(iova, usize::try_from(length)?)?)
            }
        }
    }

    fn pair(&self, span: &Span) -> Result<()> {
        // SAFETY: benches keep the memory until it is unmapped, and nothing refers to it.
        unsafe { self.map(span) }?;
        self.unmap(span)
    }

    fn pages(&self, span: &Span) -> Result<()> {
        let page = |at: u64| {
            let (address, iova) = (span.address + at, span.iova + at);
            Span { address, iova, length: PAGE }
        };
        for at in (0..span.length).step_by(4096) {
            // SAFETY: as above.
            unsafe { self.map(&page(at)) }?;
        }
        (0..span.length).step_by(4096).try_for_each(|at| self.unmap(&page(at)))
    }
}

fn sides(places: &Places, kernel: &Kernel) -> Result<(AddressSpace, Theirs)> {
    if kernel.backend == Backend::Type1 {
        let container = Arc::new(vfio_ioctls::VfioContainer::new(None)?);
        let path = Path::new("/sys/bus/pci/devices").join(&kernel.device);
        let ops: Arc<dyn vfio_ioctls::VfioOps> =
            Arc::<vfio_ioctls::VfioContainer>::clone(&container);
        let device = VfioDevice::new(&path, ops, true)?;
        // SAFETY: the container has it open until the end of this function, at least.
        let fd = unsafe { BorrowedFd::borrow_raw(container.as_raw_fd()) };
        let ours = VfioContainer::from_fd(fd.try_clone_to_owned()?, "container");
        return Ok((AddressSpace::type1(ours), Theirs::Type1 { _device: device, container }));
    }
    let site = Site::open(places)?;
    let (iommufd, ioas) = site.iommufd().context("no iommufd")?;
    let fd: OwnedFd = iommufd.as_fd().try_clone_to_owned()?;
    let context = IommuFd::new_from_fd(File::from(fd));
    Ok((site.space()?, Theirs::Iommufd { context, ioas: ioas.0, _site: site }))
}

fn batch(space: &AddressSpace, buffers: &[BatchBuffer]) -> Result<()> {
    // SAFETY: the memory stays until it is unmapped, and nothing refers to it.
    let batch = unsafe { space.map_batch(buffers, DmaPerms::READ_WRITE) }?;
    Ok(space.unmap_batch(batch.areas())?)
}

/// Runs it.
///
/// # Errors
/// No device.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let kernel = places.kernel.clone().context("this needs a real device")?;
    let (space, theirs) = sides(places, &kernel)?;
    let name = match kernel.backend {
        Backend::Iommufd => "iommufd-ioctls",
        Backend::Type1 => "vfio-ioctls",
    };
    let question = |what: &str| Question {
        name: "rust_vmm",
        case: kernel.case(&format!("{what} / {name}")),
        unit: "us",
        target: Target::AtMost(1.0),
    };
    let mut rows = Vec::new();
    for (word, kind, length) in [("4K", Kind::Small, PAGE), ("2M", Kind::Large, 2 << 20)] {
        let memory = Memory::new(kind, length)?;
        memory.base().as_ptr().expose_provenance();
        let span = span(&memory);
        let question = question(&format!("map, unmap {word} ({})", kind.word()));
        let ours = || time(|| pair(&space, &memory));
        rows.push(compare_times(&question, ours, || time(|| theirs.pair(&span)))?.0);
    }
    let memory = Memory::new(Kind::Small, BUFFERS * PAGE)?;
    memory.base().as_ptr().expose_provenance();
    let buffers: Vec<BatchBuffer> = (0..BUFFERS)
        .map(|page| {
            let offset = usize::try_from(page * PAGE).unwrap_or(0);
            let memory = memory.base().map_addr(|address| address.saturating_add(offset));
            let iova = IovaChoice::Fixed(IOVA + page * PAGE);
            BatchBuffer { iova, memory, length: PAGE }
        })
        .collect();
    let span = span(&memory);
    let question = question(&format!("{BUFFERS} buffers of 4K and back"));
    let ours = || time(|| batch(&space, &buffers));
    rows.push(compare_times(&question, ours, || time(|| theirs.pages(&span)))?.0);
    let note = kernel.note(CANNOT);
    Ok(rows.into_iter().enumerate().map(|(at, row)| first(at, row, &note)).collect())
}
