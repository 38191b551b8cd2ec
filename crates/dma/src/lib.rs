//! DMA address spaces over iommufd, type1 or a simulated IOMMU.
//!
//! An [`AddressSpace`] maps memory for devices and mirrors what it mapped, so that every unmap is
//! of whole mappings: the kernel can't split them, and an unmap over several isn't atomic.
//! Memory comes from a [`DmaBuffer`], from a file ([`AddressSpace::map_file`]), or from a pointer
//! ([`AddressSpace::map`], whose contract is the caller's).
//!
//! The crate knows nothing of who may do DMA: a VMM links it and runs it on the file descriptors
//! that it was handed. Mapping is one ioctl, and no lock of this crate is held over it.

mod alloc;
mod arena;
mod backend;
mod buffer;
mod chunks;
mod error;
#[cfg(feature = "vm-memory")]
mod guest;
mod index;
mod limits;
mod memory;
mod mirror;
mod populate;
mod preflight;
mod sim;
mod space;
mod sync;
mod table;
mod trace;
#[cfg(feature = "vfio-ioctls")]
mod vfio_ops;

pub use arena::{Arena, Piece};
pub use backend::{BackendKind, Parts};
pub use berth_uapi::{DmaPerms, Errno, IoasId, IovaChoice, IovaRange, RlimitMode};
pub use buffer::DmaBuffer;
pub use error::{DmaError, DmaErrorKind};
pub use limits::Memlock;
pub use memory::page_bytes;
pub use mirror::{Region, Source};
pub use populate::{advise_large_pages, populate};
pub use preflight::{Estimate, Planned, Preflight, large_page_share};
pub use sim::{SimArea, SimFlavour, SimIoas, SimLimits};
pub use space::{AddressSpace, Batch, BatchBuffer, Stats};
#[cfg(feature = "vfio-ioctls")]
pub use vfio_ops::VfioSpace;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/dma.md")]
mod guide {}
