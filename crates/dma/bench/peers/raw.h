/* What src/raw.rs calls. Everything answers 0 or an errno. */
#ifndef BERTH_PEER_RAW_H
#define BERTH_PEER_RAW_H

#include <stdint.h>

/* A container, or an iommufd with an address space in it. */
struct raw {
    int32_t fd;
    uint32_t ioas;
};

struct span {
    uint64_t address, iova, length;
};

int raw_map(const struct raw *it, const struct span *span);
int raw_unmap(const struct raw *it, const struct span *span);
int raw_map_file(const struct raw *it, int file, const struct span *span);
int raw_pairs(const struct raw *it, const struct span *span, uint64_t count);
int raw_map_each(const struct raw *it, const struct span *span, uint64_t piece, uint64_t *done);
int raw_unmap_each(const struct raw *it, const struct span *span, uint64_t piece);
int raw_fake_container(void);

#endif
