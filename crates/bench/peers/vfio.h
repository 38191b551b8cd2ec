/*
 * Opens a device as a VMM does, for the peers that have real ones: a cdev that is bound to an iommufd
 * of its own and attached to an address space there, or a device of a group in a type1 container.
 */
#ifndef BERTH_PEER_VFIO_H
#define BERTH_PEER_VFIO_H

#include <dirent.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* What the installed headers may be too old for; names and values are the kernel's. */
struct bind_iommufd {
    uint32_t argsz, flags;
    int32_t iommufd;
    uint32_t out_devid;
};
#define DEVICE_BIND_IOMMUFD _IO(';', 0x76)
struct attach_iommufd_pt {
    uint32_t argsz, flags, pt_id;
};
#define DEVICE_ATTACH_IOMMUFD_PT _IO(';', 0x77)
struct ioas_alloc {
    uint32_t size, flags, out_ioas_id;
};
#define IOAS_ALLOC _IO(';', 0x81)

struct opened {
    /* The iommufd or the container. */
    int context;
    int device;
    /* Of an iommufd. */
    uint32_t ioas;
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int open_or_fail(const char *path)
{
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        fail(path);
    return file;
}

static struct opened open_cdev(const char *address)
{
    char path[512];
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", address);
    DIR *dir = opendir(path);
    if (!dir)
        fail(path);
    struct dirent *entry;
    while ((entry = readdir(dir)) && entry->d_name[0] == '.')
        ;
    if (!entry) {
        fprintf(stderr, "%s is empty\n", path);
        exit(1);
    }
    snprintf(path, sizeof path, "/dev/vfio/devices/%s", entry->d_name);
    closedir(dir);
    struct opened it = {.context = open_or_fail("/dev/iommu"), .device = open_or_fail(path)};
    struct bind_iommufd bind = {.argsz = sizeof bind, .iommufd = it.context};
    if (ioctl(it.device, DEVICE_BIND_IOMMUFD, &bind))
        fail("VFIO_DEVICE_BIND_IOMMUFD");
    struct ioas_alloc alloc = {.size = sizeof alloc};
    if (ioctl(it.context, IOAS_ALLOC, &alloc))
        fail("IOMMU_IOAS_ALLOC");
    it.ioas = alloc.out_ioas_id;
    struct attach_iommufd_pt attach = {.argsz = sizeof attach, .pt_id = it.ioas};
    if (ioctl(it.device, DEVICE_ATTACH_IOMMUFD_PT, &attach))
        fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
    return it;
}

static struct opened open_in_container(const char *address)
{
    char path[512], target[512];
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", address);
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0)
        fail(path);
    target[length] = 0;
    snprintf(path, sizeof path, "/dev/vfio%s", strrchr(target, '/'));
    struct opened it = {.context = open_or_fail("/dev/vfio/vfio")};
    /* It stays open until the end. */
    int group = open_or_fail(path);
    if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &it.context))
        fail("VFIO_GROUP_SET_CONTAINER");
    if (ioctl(it.context, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
        fail("VFIO_SET_IOMMU");
    it.device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
    if (it.device < 0)
        fail("VFIO_GROUP_GET_DEVICE_FD");
    return it;
}

static int is_backend(const char *word)
{
    return !strcmp(word, "iommufd") || !strcmp(word, "type1");
}

static struct opened open_device(const char *backend, const char *address)
{
    return strcmp(backend, "type1") ? open_cdev(address) : open_in_container(address);
}

#endif
