/*
 * The peer of `cold_start_10k`: reads the same attributes of every PCI function and IOMMU group
 * as berthd's discovery, by the same reads, in one thread, and keeps nothing but a checksum. What
 * berthd reads beside that, of devices on host drivers, it leaves out.
 *
 * scan ROOT
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char page[4096];
static unsigned long sum;

static void attribute(int dir, const char *name)
{
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t count = read(fd, page, sizeof page);
    if (count > 0)
        sum += (unsigned char)page[0] + count;
    close(fd);
}

static ssize_t link_of(int dir, const char *name)
{
    ssize_t count = readlinkat(dir, name, page, sizeof page - 1);
    if (count > 0) {
        page[count] = 0;
        sum += count;
    }
    return count;
}

/* An extended capability: its header and two registers. Answers where the next one is. */
static unsigned step(int fd, unsigned at)
{
    unsigned char words[12];
    if (pread(fd, words, sizeof words, at) != sizeof words)
        return 0;
    sum += words[0];
    return (words[2] >> 4 | words[3] << 4) & ~3u;
}

static void config(int dir)
{
    int fd = openat(dir, "config", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (pread(fd, page, 256, 0) == 256) {
        sum += (unsigned char)page[0];
        unsigned at = 0x100;
        for (int left = 480; at >= 0x100 && left > 0; left--)
            at = step(fd, at);
    }
    close(fd);
}

static void names(int dir, const char *name)
{
    int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *opened = fd < 0 ? NULL : fdopendir(fd);
    if (!opened)
        return;
    for (struct dirent *entry; (entry = readdir(opened));)
        sum += entry->d_name[0];
    closedir(opened);
}

static void function(int devices, const char *address)
{
    link_of(devices, address);
    int dir = openat(devices, address, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return;
    config(dir);
    if (link_of(dir, "driver") > 0 && strstr(page, "/vfio-pci"))
        names(dir, "vfio-dev");
    link_of(dir, "iommu_group");
    attribute(dir, "driver_override");
    link_of(dir, "physfn");
    attribute(dir, "numa_node");
    attribute(dir, "resource");
    attribute(dir, "reset_method");
    close(dir);
}

static void group(int groups, const char *number)
{
    char name[64];
    snprintf(name, sizeof name, "%s/type", number);
    attribute(groups, name);
    snprintf(name, sizeof name, "%s/reserved_regions", number);
    attribute(groups, name);
}

static long each(const char *root, const char *below, void (*visit)(int, const char *))
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", root, below);
    DIR *dir = opendir(path);
    if (!dir) {
        perror(path);
        exit(1);
    }
    long count = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.')
            continue;
        visit(dirfd(dir), entry->d_name);
        count++;
    }
    closedir(dir);
    return count;
}

int main(int count, char **words)
{
    if (count != 2) {
        fprintf(stderr, "usage: scan ROOT\n");
        return 2;
    }
    long functions = each(words[1], "sys/bus/pci/devices", function);
    long groups = each(words[1], "sys/kernel/iommu_groups", group);
    printf("%ld functions, %ld groups, checksum %lx\n", functions, groups, sum);
    return 0;
}
