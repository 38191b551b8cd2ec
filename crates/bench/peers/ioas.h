/* IOMMU_IOAS_MAP, _UNMAP and _MAP_FILE, for which the installed headers may be too old; names and values
 * are the kernel's (include/uapi/linux/iommufd.h). */
#pragma once
#include <stdint.h>
#include <sys/ioctl.h>

struct ioas_map {
    uint32_t size, flags, ioas_id, reserved;
    uint64_t user_va, length, iova;
};
#define IOAS_MAP _IO(';', 0x85)
struct ioas_unmap {
    uint32_t size, ioas_id;
    uint64_t iova, length;
};
#define IOAS_UNMAP _IO(';', 0x86)
struct ioas_map_file {
    uint32_t size, flags, ioas_id;
    int32_t fd;
    uint64_t start, length, iova;
};
#define IOAS_MAP_FILE _IO(';', 0x8f)
