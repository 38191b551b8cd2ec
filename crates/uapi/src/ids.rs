//! Identifiers and small values that several kinds of file share.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $shown:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($shown, " {}"), self.0)
            }
        }
    };
}

id! {
    /// An I/O address space of one iommufd; opaque, meaningless in another context.
    IoasId, "ioas"
}
id! {
    /// A hardware page table of one iommufd; opaque, meaningless in another context.
    HwptId, "hwpt"
}
id! {
    /// A device bound to one iommufd; opaque, meaningless in another context.
    DevId, "device"
}
id! {
    /// The number of an IOMMU group. Not stable over boots or hotplug, and reused.
    GroupNumber, "group"
}
id! {
    /// The index of a region of a VFIO device.
    RegionIndex, "region"
}
id! {
    /// The index of a kind of interrupt of a VFIO device.
    IrqIndex, "irq index"
}

impl RegionIndex {
    /// PCI BAR 0; BARs 1 to 5 follow.
    pub const BAR0: Self = Self(0);
    /// PCI BAR 2.
    pub const BAR2: Self = Self(2);
    /// PCI BAR 4.
    pub const BAR4: Self = Self(4);
    /// The expansion ROM.
    pub const ROM: Self = Self(6);
    /// PCI configuration space, as VFIO virtualizes it.
    pub const CONFIG: Self = Self(7);
    /// Legacy VGA ranges.
    pub const VGA: Self = Self(8);
}

impl IrqIndex {
    /// The INTx line.
    pub const INTX: Self = Self(0);
    /// MSI vectors.
    pub const MSI: Self = Self(1);
    /// MSI-X vectors.
    pub const MSIX: Self = Self(2);
    /// Uncorrectable errors (AER).
    pub const ERR: Self = Self(3);
    /// The kernel asks for the device back.
    pub const REQ: Self = Self(4);
}

/// What a device is attached to: an IOAS (the kernel finds or makes a page table) or one page
/// table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PtId {
    /// An I/O address space.
    Ioas(IoasId),
    /// A hardware page table.
    Hwpt(HwptId),
}

impl PtId {
    /// The bare number; both kinds share one number space within a context.
    pub fn raw(self) -> u32 {
        match self {
            Self::Ioas(id) => id.0,
            Self::Hwpt(id) => id.0,
        }
    }
}

impl fmt::Display for PtId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ioas(id) => id.fmt(f),
            Self::Hwpt(id) => id.fmt(f),
        }
    }
}

/// A range of I/O virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IovaRange {
    /// The first address.
    pub start: u64,
    /// The last address, inclusive: the range may end at the top of the address space.
    pub last: u64,
}

impl IovaRange {
    /// Whether `length` bytes from `iova` lie wholly inside.
    pub fn contains(&self, iova: u64, length: u64) -> bool {
        length != 0
            && iova >= self.start
            && iova.checked_add(length - 1).is_some_and(|last| last <= self.last)
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.last)
    }
}
