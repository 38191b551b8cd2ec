/* The ioctls as a VMM in C makes them: the structure, the call, and a look at its answer. */
#include "raw.h"

#include "../../../bench/peers/ioas.h"

#include <errno.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>

#define FIXED_READ_WRITE 7

static int call(int fd, unsigned long request, void *argument)
{
    int answer;
    do
        answer = ioctl(fd, request, argument);
    while (answer < 0 && errno == EINTR);
    return answer < 0 ? errno : 0;
}

int raw_map(const struct raw *it, const struct span *span)
{
    if (it->ioas) {
        struct ioas_map map = {.size = sizeof map, .flags = FIXED_READ_WRITE, .ioas_id = it->ioas,
                               .user_va = span->address, .length = span->length,
                               .iova = span->iova};
        return call(it->fd, IOAS_MAP, &map);
    }
    struct vfio_iommu_type1_dma_map map = {.argsz = sizeof map,
                                           .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                                           .vaddr = span->address, .iova = span->iova,
                                           .size = span->length};
    return call(it->fd, VFIO_IOMMU_MAP_DMA, &map);
}

int raw_unmap(const struct raw *it, const struct span *span)
{
    uint64_t removed;
    int error;
    if (it->ioas) {
        struct ioas_unmap unmap = {.size = sizeof unmap, .ioas_id = it->ioas, .iova = span->iova,
                                   .length = span->length};
        error = call(it->fd, IOAS_UNMAP, &unmap);
        removed = unmap.length;
    } else {
        struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = span->iova,
                                                   .size = span->length};
        error = call(it->fd, VFIO_IOMMU_UNMAP_DMA, &unmap);
        removed = unmap.size;
    }
    return error ? error : removed == span->length ? 0 : ENOENT;
}

int raw_map_file(const struct raw *it, int file, const struct span *span)
{
    struct ioas_map_file map = {.size = sizeof map, .flags = FIXED_READ_WRITE, .ioas_id = it->ioas,
                                .fd = file, .start = span->address, .length = span->length,
                                .iova = span->iova};
    return call(it->fd, IOAS_MAP_FILE, &map);
}

int raw_pairs(const struct raw *it, const struct span *span, uint64_t count)
{
    int error = 0;
    while (!error && count--) {
        error = raw_map(it, span);
        if (!error)
            error = raw_unmap(it, span);
    }
    return error;
}

int raw_map_each(const struct raw *it, const struct span *span, uint64_t piece, uint64_t *done)
{
    for (*done = 0; *done < span->length; *done += piece) {
        struct span one = {span->address + *done, span->iova + *done, piece};
        int error = raw_map(it, &one);
        if (error)
            return error;
    }
    return 0;
}

int raw_unmap_each(const struct raw *it, const struct span *span, uint64_t piece)
{
    for (uint64_t done = 0; done < span->length; done += piece) {
        struct span one = {span->address + done, span->iova + done, piece};
        int error = raw_unmap(it, &one);
        if (error)
            return error;
    }
    return 0;
}
