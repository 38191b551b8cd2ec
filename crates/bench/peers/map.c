/*
 * The peer of `region`: memory of the same kind, mapped for a device that this process has opened
 * itself.
 *
 * map BACKEND ADDRESS MIB file      IOMMU_IOAS_MAP_FILE
 * map BACKEND ADDRESS MIB address   mmap, then IOMMU_IOAS_MAP or VFIO_IOMMU_MAP_DMA
 * map BACKEND ADDRESS MIB mapped    the same of memory that was mapped and touched before
 *
 * Each line on standard input is one map; the answer is how long it took, in milliseconds. What is
 * unmapped after that is in no time.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <time.h>

#include "ioas.h"
#include "vfio.h"

/* Above what reaches 32 bits, and above what a platform reserves. */
#define IOVA 0x100000000ULL
#define FIXED_READ_WRITE 7

static double now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static int sealed(uint64_t length)
{
    int file = memfd_create("map", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (file < 0 || ftruncate(file, length) || fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK))
        fail("a sealed memfd");
    return file;
}

static void *mapped(int file, uint64_t length)
{
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    return memory;
}

static void map_file(struct opened it, int file, uint64_t length)
{
    struct ioas_map_file map = {.size = sizeof map, .flags = FIXED_READ_WRITE, .ioas_id = it.ioas,
                                .fd = file, .length = length, .iova = IOVA};
    if (ioctl(it.context, IOAS_MAP_FILE, &map))
        fail("IOMMU_IOAS_MAP_FILE");
}

static void map_address(struct opened it, void *memory, uint64_t length)
{
    if (it.ioas) {
        struct ioas_map map = {.size = sizeof map, .flags = FIXED_READ_WRITE, .ioas_id = it.ioas,
                               .user_va = (uintptr_t)memory, .length = length, .iova = IOVA};
        if (ioctl(it.context, IOAS_MAP, &map))
            fail("IOMMU_IOAS_MAP");
        return;
    }
    struct vfio_iommu_type1_dma_map map = {.argsz = sizeof map,
                                           .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                                           .vaddr = (uintptr_t)memory, .iova = IOVA, .size = length};
    if (ioctl(it.context, VFIO_IOMMU_MAP_DMA, &map))
        fail("VFIO_IOMMU_MAP_DMA");
}

static void unmap(struct opened it, uint64_t length)
{
    if (it.ioas) {
        struct ioas_unmap unmap = {.size = sizeof unmap, .ioas_id = it.ioas, .iova = IOVA,
                                   .length = length};
        if (ioctl(it.context, IOAS_UNMAP, &unmap))
            fail("IOMMU_IOAS_UNMAP");
        return;
    }
    struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = IOVA, .size = length};
    if (ioctl(it.context, VFIO_IOMMU_UNMAP_DMA, &unmap) || unmap.size != length)
        fail("VFIO_IOMMU_UNMAP_DMA");
}

int main(int argc, char **argv)
{
    if (argc != 5 || !is_backend(argv[1])) {
        fputs("usage: map iommufd|type1 ADDRESS MIB file|address|mapped\n", stderr);
        return 2;
    }
    struct opened it = open_device(argv[1], argv[2]);
    uint64_t length = strtoull(argv[3], NULL, 10) << 20;
    int by_file = !strcmp(argv[4], "file"), before = !strcmp(argv[4], "mapped");
    int file = sealed(length);
    void *memory = NULL;
    if (before) {
        memory = mapped(file, length);
        memset(memory, 1, length);
    }
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        double began = now_ms();
        if (by_file) {
            map_file(it, file, length);
        } else {
            if (!before)
                memory = mapped(file, length);
            map_address(it, memory, length);
        }
        printf("%.6f\n", now_ms() - began);
        unmap(it, length);
        if (!by_file && !before)
            munmap(memory, length);
        fflush(stdout);
    }
    return 0;
}
