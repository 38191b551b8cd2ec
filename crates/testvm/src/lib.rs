//! The real kernel: a QEMU guest with a virtual IOMMU and what runs in it.

