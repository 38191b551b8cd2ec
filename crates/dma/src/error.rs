//! Why mapping or unmapping failed, with the numbers.

use berth_uapi::{Errno, IoctlError, IovaRange};

use crate::mirror::Region;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DmaErrorKind {
    /// Something is mapped there already.
    Overlap,
    /// Nothing is mapped there, or the range would cut a mapping.
    NotMapped,
    /// Misaligned, empty, without access, or outside what is permitted.
    Invalid,
    /// The numbers wrap.
    Overflow,
    /// No address or no entry is left.
    NoSpace,
    /// The limit on locked memory.
    Memlock,
    /// No memory.
    NoMemory,
    /// No such memory in this process.
    BadAddress,
    /// The same mapping is being made or removed right now.
    Busy,
    /// The kernel doesn't have what it takes.
    Unsupported,
    /// Anything else the kernel answered.
    Kernel,
}

/// A failed operation of the fast path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// The range overlaps a mapping.
    #[error("mapping {length:#x} bytes at iova {iova:#x} overlaps {}", overlapped(.with.as_ref()))]
    Overlap {
        /// Where it was to go.
        iova: u64,
        /// How long it was to be.
        length: u64,
        /// The mapping in the way; unknown when another user of the address space made it.
        with: Option<Region>,
    },
    /// No mapping is at the range.
    #[error("unmapping {length:#x} bytes at iova {iova:#x}: nothing is mapped there")]
    NotMapped {
        /// Where.
        iova: u64,
        /// How long.
        length: u64,
    },
    /// The range is not exactly one mapping.
    #[error(
        "unmapping {length:#x} bytes at iova {iova:#x} would cut the mapping of {:#x} bytes at \
         {:#x}; unmap exactly what was mapped", .mapping.length, .mapping.iova
    )]
    Bisects {
        /// Where.
        iova: u64,
        /// How long.
        length: u64,
        /// The mapping it would cut.
        mapping: Region,
    },
    /// A number is not a multiple of what the IOMMU works with.
    #[error("{what} {value:#x} is not a multiple of {alignment:#x}")]
    Misaligned {
        /// Which number: `iova`, `length`, `address` or `file offset`.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it must be a multiple of.
        alignment: u64,
    },
    /// Nothing was to be mapped.
    #[error("a length of 0 bytes (or more than there are addresses) cannot be mapped")]
    Empty,
    /// Neither reading nor writing was asked for.
    #[error("a mapping at iova {iova:#x} that can be neither read nor written is of no use")]
    NoAccess {
        /// Where it was to go; 0 when the address was left open.
        iova: u64,
    },
    /// The range is outside what the devices and the IOMMU permit.
    #[error(
        "{length:#x} bytes at iova {iova:#x} are not inside one of the permitted ranges: {}",
        shown(.permitted)
    )]
    NotPermitted {
        /// Where it was to go.
        iova: u64,
        /// How long it was to be.
        length: u64,
        /// What is permitted.
        permitted: Vec<IovaRange>,
    },
    /// The range wraps around.
    #[error("{length:#x} bytes at {start:#x} run past the end of the address space")]
    Overflow {
        /// Its start.
        start: u64,
        /// Its length.
        length: u64,
    },
    /// No free addresses.
    #[error(
        "no {length:#x} bytes of iova are free; the largest gap has {largest:#x}: unmap something \
         or map in smaller pieces"
    )]
    NoSpace {
        /// How much was wanted.
        length: u64,
        /// The largest gap; 0 when the kernel looked for it and does not say.
        largest: u64,
    },
    /// The container's table of mappings is full.
    #[error(
        "mapping {length:#x} bytes at iova {iova:#x}: the container's limit on mappings is reached \
         at {mapped}; map larger pieces or raise vfio_iommu_type1.dma_entry_limit"
    )]
    EntryLimit {
        /// Where it was to go.
        iova: u64,
        /// How long it was to be.
        length: u64,
        /// How many mappings this address space has.
        mapped: usize,
    },
    /// The limit on locked memory does not allow it.
    #[error(
        "mapping {length:#x} bytes needs {needs_kib} KiB locked, RLIMIT_MEMLOCK of uid {uid} is \
         {limit_kib} KiB, of which it already has {locked_kib}; raise it to at least {needs_kib} KiB"
    )]
    Memlock {
        /// How long it was to be.
        length: u64,
        /// Memory that would be locked, with what is locked already.
        needs_kib: u64,
        /// The limit.
        limit_kib: u64,
        /// What is locked already, as far as it can be read: by this process or, where the back end
        /// counts so, by all of the user's.
        locked_kib: u64,
        /// Whose limit it is.
        uid: u32,
    },
    /// The range of a buffer or file is not there.
    #[error("{length:#x} bytes at {offset:#x} are outside the {buffer:#x} bytes there are")]
    OutsideBuffer {
        /// Where.
        offset: u64,
        /// How long.
        length: u64,
        /// How much there is.
        buffer: u64,
        /// `EFAULT` for a buffer, `EINVAL` for a file.
        errno: Errno,
    },
    /// The same mapping is being made or removed by another thread.
    #[error("the mapping at iova {iova:#x} is being made or removed by another thread; try again")]
    Busy {
        /// Where.
        iova: u64,
    },
    /// Memory of this process could not be had.
    #[error("{op} of {length:#x} bytes: {errno}")]
    Memory {
        /// The system call.
        op: &'static str,
        /// How much.
        length: u64,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The kernel unmapped another amount than was mapped.
    #[error(
        "unmapping {length:#x} bytes at iova {iova:#x} removed {removed:#x}: something else \
         changes this address space"
    )]
    Mismatch {
        /// Where.
        iova: u64,
        /// What was mapped.
        length: u64,
        /// What the kernel says it removed.
        removed: u64,
    },
    /// Some mappings of a batch were unmapped and others weren't.
    #[error(
        "{unmapped} mappings were unmapped, {failed} are still there; the first error: {first}"
    )]
    Partial {
        /// How many are gone.
        unmapped: usize,
        /// How many are still mapped.
        failed: usize,
        /// What was wrong first.
        first: Box<DmaError>,
    },
    /// The back end has no such thing.
    #[error("this back end can't {what}: {why}")]
    Cannot {
        /// What was asked for.
        what: &'static str,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// The kernel's answer, where there is nothing to add.
    #[error(transparent)]
    Kernel(#[from] IoctlError),
}

impl DmaError {
    /// What kind of failure it was.
    pub fn kind(&self) -> DmaErrorKind {
        match self {
            Self::Overlap { .. } => DmaErrorKind::Overlap,
            Self::NotMapped { .. } | Self::Bisects { .. } => DmaErrorKind::NotMapped,
            Self::Misaligned { .. }
            | Self::Empty
            | Self::NoAccess { .. }
            | Self::NotPermitted { .. } => DmaErrorKind::Invalid,
            Self::Overflow { .. } => DmaErrorKind::Overflow,
            Self::NoSpace { .. } | Self::EntryLimit { .. } => DmaErrorKind::NoSpace,
            Self::Memlock { .. } => DmaErrorKind::Memlock,
            Self::OutsideBuffer { .. } => DmaErrorKind::BadAddress,
            Self::Busy { .. } => DmaErrorKind::Busy,
            Self::Mismatch { .. } => DmaErrorKind::Kernel,
            Self::Memory { errno, .. } => kind_of(*errno),
            Self::Partial { first, .. } => first.kind(),
            Self::Cannot { .. } => DmaErrorKind::Unsupported,
            Self::Kernel(error) => kind_of(error.errno),
        }
    }

    /// The kernel's errno, or the one that it would have answered with.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Overlap { .. } => Errno::EXIST,
            Self::NotMapped { .. } | Self::Bisects { .. } => Errno::NOENT,
            Self::Misaligned { .. }
            | Self::Empty
            | Self::NoAccess { .. }
            | Self::NotPermitted { .. } => Errno::INVAL,
            Self::Overflow { .. } => Errno::OVERFLOW,
            Self::NoSpace { .. } | Self::EntryLimit { .. } => Errno::NOSPC,
            Self::Memlock { .. } => Errno::NOMEM,
            Self::Busy { .. } => Errno::BUSY,
            Self::Mismatch { .. } => Errno::IO,
            Self::Memory { errno, .. } | Self::OutsideBuffer { errno, .. } => *errno,
            Self::Partial { first, .. } => first.errno(),
            Self::Cannot { .. } => Errno::OPNOTSUPP,
            Self::Kernel(error) => error.errno,
        }
    }
}

fn kind_of(errno: Errno) -> DmaErrorKind {
    match errno {
        Errno::EXIST => DmaErrorKind::Overlap,
        Errno::NOENT => DmaErrorKind::NotMapped,
        Errno::INVAL => DmaErrorKind::Invalid,
        Errno::OVERFLOW => DmaErrorKind::Overflow,
        Errno::NOSPC => DmaErrorKind::NoSpace,
        Errno::NOMEM => DmaErrorKind::NoMemory,
        Errno::FAULT => DmaErrorKind::BadAddress,
        Errno::BUSY | Errno::DEADLK => DmaErrorKind::Busy,
        Errno::NOTTY | Errno::OPNOTSUPP | Errno::TOOBIG => DmaErrorKind::Unsupported,
        _ => DmaErrorKind::Kernel,
    }
}

fn overlapped(with: Option<&Region>) -> String {
    match with {
        Some(region) => format!("the mapping of {:#x} bytes at {:#x}", region.length, region.iova),
        None => "a mapping that another user of this address space made".to_owned(),
    }
}

fn shown(ranges: &[IovaRange]) -> String {
    if ranges.is_empty() {
        return "none".to_owned();
    }
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
