/*
 * Lets any file answer as a type1 container, for this thread: what a call costs without what the
 * kernel does in it.
 *
 * A filter answers MAP_DMA and UNMAP_DMA with success before the file is looked at; the structure
 * stays as it is, which is what a whole unmap answers too. GET_INFO, which is asked once, goes to a
 * signal handler that fills in what a container says.
 */
#define _GNU_SOURCE
#include "raw.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/vfio.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

struct answer {
    struct vfio_iommu_type1_info info;
    struct vfio_iommu_type1_info_cap_iova_range ranges;
    struct vfio_iova_range range;
};

static void fill(struct vfio_iommu_type1_info *info)
{
    if (info->argsz >= sizeof(struct answer)) {
        struct answer *all = (struct answer *)info;
        memset(&all->ranges, 0, sizeof all->ranges);
        info->flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;
        info->iova_pgsizes = 4096;
        info->cap_offset = offsetof(struct answer, ranges);
        all->ranges.header.id = VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE;
        all->ranges.header.version = 1;
        all->ranges.nr_iovas = 1;
        all->range.end = (1ULL << 48) - 1;
    }
    info->argsz = sizeof(struct answer);
}

static void answer(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)info;
    ucontext_t *at = context;
#if defined(__x86_64__)
    fill((void *)at->uc_mcontext.gregs[REG_RDX]);
    at->uc_mcontext.gregs[REG_RAX] = 0;
#elif defined(__aarch64__)
    fill((void *)at->uc_mcontext.regs[2]);
    at->uc_mcontext.regs[0] = 0;
#else
#error "where are a call's arguments on this machine?"
#endif
}

int raw_fake_container(void)
{
    /* Both machines are little endian: the lower half of an argument comes first. */
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 6),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, VFIO_IOMMU_MAP_DMA, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, VFIO_IOMMU_UNMAP_DMA, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, VFIO_IOMMU_GET_INFO, 0, 2),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    if (sigaction(SIGSYS, &action, NULL) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
        return errno;
    return 0;
}
