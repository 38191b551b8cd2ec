/*
 * A process that stands for a VM in `vm_death` and `handover`: it has memory that it has written to,
 * and descriptors, says "ready", and lives until standard input ends or it is killed.
 *
 * hold MIB COUNT               COUNT memfds of its own
 * hold MIB BACKEND ADDRESS     a device that it opens itself
 * hold MIB SOCKET RESERVATION  what it fetches at berthd's hand-over socket
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "vfio.h"

#define MOST_FDS 253

static void fetch(const char *path, const char *reservation)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof at.sun_path) {
        fputs("the socket's path is too long\n", stderr);
        exit(1);
    }
    strcpy(at.sun_path, path);
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (sock < 0 || connect(sock, (struct sockaddr *)&at, sizeof at) < 0)
        fail(path);
    char request[256];
    int length = snprintf(request, sizeof request,
                          "{\"op\":\"fetch\",\"reservation\":\"%s\",\"epoch\":0}", reservation);
    if (length >= (int)sizeof request || send(sock, request, length, MSG_NOSIGNAL) < 0)
        fail("send");
    static char answer[32768 + 1];
    static union {
        struct cmsghdr head;
        char room[CMSG_SPACE(MOST_FDS * sizeof(int))];
    } control;
    struct iovec text = {answer, sizeof answer - 1};
    struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    if (recvmsg(sock, &message, MSG_CMSG_CLOEXEC) <= 0)
        fail("recvmsg");
    /* What came stays open until the end. */
    if (!CMSG_FIRSTHDR(&message)) {
        fprintf(stderr, "no descriptor came: %s\n", answer);
        exit(1);
    }
    close(sock);
}

int main(int argc, char **argv)
{
    if (argc != 3 && argc != 4) {
        fputs("usage: hold MIB COUNT | hold MIB iommufd|type1 ADDRESS | hold MIB SOCKET RESERVATION\n", stderr);
        return 2;
    }
    size_t bytes = strtoul(argv[1], NULL, 10) << 20;
    if (bytes) {
        void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            fail("mmap");
        memset(memory, 1, bytes);
    }
    if (argc == 4 && is_backend(argv[2]))
        open_device(argv[2], argv[3]);
    else if (argc == 4)
        fetch(argv[2], argv[3]);
    else
        for (int left = atoi(argv[2]); left > 0; left--)
            if (memfd_create("hold", MFD_CLOEXEC) < 0)
                fail("memfd_create");
    puts("ready");
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
