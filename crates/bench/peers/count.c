/*
 * Counts what a program does between two signals SIGUSR1 that it sends to itself:
 *
 * count ioctls PROGRAM ARGUMENT...         calls of ioctl(2)
 * count instructions PROGRAM ARGUMENT...   instructions outside of the kernel, each stepped over
 *
 * The signals don't reach the program. What it prints goes through, and "counted NUMBER" follows.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* A system call's stop, with PTRACE_O_TRACESYSGOOD. */
#define CALL (SIGTRAP | 0x80)

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int is_ioctl(pid_t child)
{
    struct __ptrace_syscall_info info;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info) < 0)
        fail("PTRACE_GET_SYSCALL_INFO");
    return info.op == PTRACE_SYSCALL_INFO_ENTRY && info.entry.nr == SYS_ioctl;
}

int main(int argc, char **argv)
{
    int stepping = argc > 2 && !strcmp(argv[1], "instructions");
    if (argc < 3 || (!stepping && strcmp(argv[1], "ioctls"))) {
        fputs("usage: count ioctls|instructions PROGRAM ARGUMENT...\n", stderr);
        return 2;
    }
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0))
            fail("PTRACE_TRACEME");
        execv(argv[2], argv + 2);
        fail(argv[2]);
    }
    int status, signal = 0, marks = 0, begun = 0;
    unsigned long counted = 0;
    while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
        if (!begun) {
            begun = 1;
            if (ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL))
                fail("PTRACE_SETOPTIONS");
        } else if (WSTOPSIG(status) == SIGUSR1) {
            marks++;
        } else if (WSTOPSIG(status) == CALL) {
            counted += is_ioctl(child);
        } else if (WSTOPSIG(status) == SIGTRAP) {
            counted += marks == 1;
        } else {
            signal = WSTOPSIG(status);
        }
        int how = marks != 1 ? PTRACE_CONT : stepping ? PTRACE_SINGLESTEP : PTRACE_SYSCALL;
        if (ptrace(how, child, 0, signal))
            fail("ptrace");
        signal = 0;
    }
    if (marks != 2 || !WIFEXITED(status) || WEXITSTATUS(status)) {
        fprintf(stderr, "the program ended with status %#x after %d signals\n", status, marks);
        return 1;
    }
    printf("counted %lu\n", counted);
    return 0;
}
