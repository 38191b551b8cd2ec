//! DMA address spaces over iommufd, type1 or a simulated IOMMU.

