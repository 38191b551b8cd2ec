//! Numbers and layouts, against the tables of the kernel's headers.

use std::mem::size_of;

use iommufd_bindings as i;
use vfio_bindings::bindings::vfio as v;

use super::*;

#[test]
fn numbers_are_the_kernels() {
    let expected = [
        (GET_API_VERSION, 0x3b64),
        (CHECK_EXTENSION, 0x3b65),
        (SET_IOMMU, 0x3b66),
        (GROUP_GET_STATUS, 0x3b67),
        (GROUP_SET_CONTAINER, 0x3b68),
        (GROUP_UNSET_CONTAINER, 0x3b69),
        (GROUP_GET_DEVICE_FD, 0x3b6a),
        (DEVICE_GET_INFO, 0x3b6b),
        (DEVICE_GET_REGION_INFO, 0x3b6c),
        (DEVICE_GET_IRQ_INFO, 0x3b6d),
        (DEVICE_SET_IRQS, 0x3b6e),
        (DEVICE_RESET, 0x3b6f),
        (DEVICE_GET_PCI_HOT_RESET_INFO, 0x3b70),
        (IOMMU_GET_INFO, 0x3b70),
        (DEVICE_PCI_HOT_RESET, 0x3b71),
        (IOMMU_MAP_DMA, 0x3b71),
        (IOMMU_UNMAP_DMA, 0x3b72),
        (DEVICE_FEATURE, 0x3b75),
        (DEVICE_BIND_IOMMUFD, 0x3b76),
        (DEVICE_ATTACH_IOMMUFD_PT, 0x3b77),
        (DEVICE_DETACH_IOMMUFD_PT, 0x3b78),
        (DESTROY, 0x3b80),
        (IOAS_ALLOC, 0x3b81),
        (IOAS_ALLOW_IOVAS, 0x3b82),
        (IOAS_COPY, 0x3b83),
        (IOAS_IOVA_RANGES, 0x3b84),
        (IOAS_MAP, 0x3b85),
        (IOAS_UNMAP, 0x3b86),
        (OPTION, 0x3b87),
        (VFIO_IOAS, 0x3b88),
        (HWPT_ALLOC, 0x3b89),
        (GET_HW_INFO, 0x3b8a),
        (IOAS_MAP_FILE, 0x3b8f),
        (IOAS_CHANGE_PROCESS, 0x3b92),
    ];
    for (op, number) in expected {
        assert_eq!(op.number(), number, "{}", op.name);
    }
}

#[test]
fn names_are_the_kernels() {
    assert_eq!(DEVICE_BIND_IOMMUFD.name, "VFIO_DEVICE_BIND_IOMMUFD");
    assert_eq!(IOMMU_MAP_DMA.name, "VFIO_IOMMU_MAP_DMA");
    assert_eq!(IOAS_MAP_FILE.name, "IOMMU_IOAS_MAP_FILE");
}

#[test]
fn structures_have_the_kernels_sizes() {
    assert_eq!(size_of::<v::vfio_group_status>(), 8);
    assert_eq!(size_of::<v::vfio_device_info>(), 24);
    assert_eq!(size_of::<v::vfio_region_info>(), 32);
    assert_eq!(size_of::<v::vfio_irq_info>(), 16);
    assert_eq!(size_of::<v::vfio_device_bind_iommufd>(), 24);
    assert_eq!(size_of::<v::vfio_device_attach_iommufd_pt>(), 16);
    assert_eq!(size_of::<v::vfio_device_detach_iommufd_pt>(), 12);
    assert_eq!(size_of::<v::vfio_iommu_type1_info>(), 24);
    assert_eq!(size_of::<v::vfio_iommu_type1_dma_map>(), 32);
    assert_eq!(size_of::<v::vfio_iommu_type1_dma_unmap>(), 24);
    assert_eq!(size_of::<i::iommu_destroy>(), 8);
    assert_eq!(size_of::<i::iommu_ioas_alloc>(), 12);
    assert_eq!(size_of::<i::iommu_ioas_allow_iovas>(), 24);
    assert_eq!(size_of::<i::iommu_ioas_copy>(), 40);
    assert_eq!(size_of::<i::iommu_ioas_iova_ranges>(), 32);
    assert_eq!(size_of::<i::iommu_iova_range>(), 16);
    assert_eq!(size_of::<i::iommu_ioas_map>(), 40);
    assert_eq!(size_of::<i::iommu_ioas_unmap>(), 24);
    assert_eq!(size_of::<i::iommu_option>(), 24);
    assert_eq!(size_of::<i::iommu_vfio_ioas>(), 12);
    assert_eq!(size_of::<i::iommu_hwpt_alloc>(), 48);
    assert_eq!(size_of::<i::iommu_hw_info>(), 40);
    assert_eq!(size_of::<i::iommu_ioas_map_file>(), 40);
    assert_eq!(size_of::<i::iommu_ioas_change_process>(), 8);
}

#[test]
fn errno_of_a_wrong_file_is_kept() {
    let file = std::fs::File::open("/dev/null").expect("/dev/null opens");
    let answer = with_value(std::os::fd::AsFd::as_fd(&file), GET_API_VERSION, 0);
    assert_eq!(answer, Err(Errno::NOTTY));
}
