/*
 * The peer of `fd_claim`: one process connects, asks, receives descriptors and closes them; another
 * one accepts, and sends duplicates of some memfds, or of a device and its context that it has opened
 * itself. Nobody is asked who he is.
 *
 * pass COUNT             as many memfds
 * pass BACKEND ADDRESS   the device and its iommufd or container
 *
 * Each line on standard input is a number of milliseconds; the answer is the time that half of the
 * passes took at most and that 99 of 100 did, in microseconds.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "vfio.h"

#define MOST_FDS 64
#define MOST_TIMES 1000000

/* As long as a fetch, and about as long as its answer. */
static const char request[] =
    "{\"op\":\"fetch\",\"reservation\":\"r-3f2a91c04d77\",\"epoch\":0}";
static char answer[320];
static double times[MOST_TIMES];

static double now_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static void serve(int listener, const int *files, int count)
{
    for (;;) {
        int sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (sock < 0)
            fail("accept");
        char asked[512];
        if (recv(sock, asked, sizeof asked, 0) <= 0)
            fail("recv");
        int given[MOST_FDS];
        for (int at = 0; at < count; at++)
            if ((given[at] = fcntl(files[at], F_DUPFD_CLOEXEC, 0)) < 0)
                fail("dup");
        union {
            struct cmsghdr head;
            char room[CMSG_SPACE(sizeof given)];
        } control;
        struct iovec text = {answer, sizeof answer};
        struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1, .msg_control = &control,
                                 .msg_controllen = CMSG_SPACE(count * sizeof(int))};
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(head), given, count * sizeof(int));
        if (sendmsg(sock, &message, MSG_NOSIGNAL) < 0)
            fail("sendmsg");
        for (int at = 0; at < count; at++)
            close(given[at]);
        close(sock);
    }
}

static void pass(const struct sockaddr_un *at, socklen_t length, int count)
{
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (sock < 0 || connect(sock, (const struct sockaddr *)at, length) < 0)
        fail("connect");
    if (send(sock, request, sizeof request, MSG_NOSIGNAL) < 0)
        fail("send");
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(MOST_FDS * sizeof(int))];
    } control;
    char bytes[512];
    struct iovec text = {bytes, sizeof bytes};
    struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    if (recvmsg(sock, &message, MSG_CMSG_CLOEXEC) <= 0)
        fail("recvmsg");
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (!head || head->cmsg_len != CMSG_LEN(count * sizeof(int))) {
        fputs("not as many descriptors as were sent\n", stderr);
        exit(1);
    }
    int got[MOST_FDS];
    memcpy(got, CMSG_DATA(head), count * sizeof(int));
    for (int at = 0; at < count; at++)
        close(got[at]);
    close(sock);
}

static int compare(const void *one, const void *two)
{
    double difference = *(const double *)one - *(const double *)two;
    return (difference > 0) - (difference < 0);
}

int main(int argc, char **argv)
{
    int device = argc == 3 && is_backend(argv[1]);
    int count = device ? 2 : argc == 2 ? atoi(argv[1]) : 0;
    if (count < 1 || count > MOST_FDS) {
        fprintf(stderr, "usage: pass COUNT, of 1 to %d | pass iommufd|type1 ADDRESS\n", MOST_FDS);
        return 2;
    }
    int files[MOST_FDS];
    if (device) {
        struct opened it = open_device(argv[1], argv[2]);
        files[0] = it.device;
        files[1] = it.context;
    }
    for (int at = 0; !device && at < count; at++)
        if ((files[at] = memfd_create("pass", MFD_CLOEXEC)) < 0)
            fail("memfd_create");
    memset(answer, ' ', sizeof answer);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    /* Without a name the kernel chooses an abstract one. */
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    socklen_t length = sizeof at;
    if (listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof at.sun_family) < 0 ||
        listen(listener, 128) < 0 || getsockname(listener, (struct sockaddr *)&at, &length) < 0)
        fail("listen");
    pid_t server = fork();
    if (server < 0)
        fail("fork");
    if (server == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve(listener, files, count);
    }
    for (int at = 0; at < count; at++)
        close(files[at]);
    close(listener);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        double end = now_us() + atof(line) * 1e3;
        int done = 0;
        for (double began = now_us(); began < end && done < MOST_TIMES;) {
            pass(&at, length, count);
            double after = now_us();
            times[done++] = after - began;
            began = after;
        }
        qsort(times, done, sizeof *times, compare);
        printf("%.3f %.3f\n", times[done / 2], times[(done - 1) * 99 / 100]);
        fflush(stdout);
    }
    return 0;
}
