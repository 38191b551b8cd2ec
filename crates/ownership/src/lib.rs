//! The ownership state machine: who may do DMA through an IOMMU group.
#![forbid(unsafe_code)]
