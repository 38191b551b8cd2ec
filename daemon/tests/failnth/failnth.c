/* Runs a program and counts its system calls by site: the call, and what it is about. Lets the n-th at
 * one site fail with an errno, or only writes down which sites there are.
 *
 *   failnth LOG KEEP SITE NUMBER ERRNO PROGRAM ARGUMENTS...
 *
 * The program's process is told on the standard output. KEEP is a directory: files are sites only
 * below it, where they are named without it, and of VFIO and sysfs. SITE is one of those that the log
 * names, or "-". Every thread and child of the program is followed. What happens is below
 * the program and its libraries: a filter stops the calls that are counted (seccomp), and the tracer
 * answers in the kernel's place (ptrace). It needs no rights.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __x86_64__
#error "registers are those of x86-64"
#endif

#define MOST_SITES 4096
#define MOST_TEXT 512

static const int counted[] = {SYS_openat,  SYS_open, SYS_ioctl,     SYS_write,   SYS_pwrite64, SYS_fsync,
			      SYS_fdatasync, SYS_ftruncate, SYS_sendmsg, SYS_sendto,   SYS_writev,
			      SYS_accept4, SYS_memfd_create};
#define COUNTED (sizeof(counted) / sizeof(counted[0]))

static const char *const names[COUNTED] = {"openat",    "open", "ioctl",     "write",   "pwrite64",
					   "fsync",     "fdatasync", "ftruncate", "sendmsg",
					   "sendto",    "writev",    "accept4", "memfd_create"};

struct site {
	char name[MOST_TEXT];
	long calls;
};

static struct site sites[MOST_SITES];
static int site_count;
static const char *keep;

static volatile pid_t program;

static void forward(int signal)
{
	kill(program, signal);
}

static void die(const char *what)
{
	perror(what);
	exit(125);
}

static void filter(void)
{
	struct sock_filter code[COUNTED + 4];
	size_t at = 0;

	code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
						  offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < COUNTED; i++)
		code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, counted[i],
							  COUNTED - i, 0);
	code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
	struct sock_fprog program = {.len = at, .filter = code};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		die("filter");
}

static int begins(const char *text, const char *with)
{
	return strncmp(text, with, strlen(with)) == 0;
}

/* Numbers of processes and threads differ from run to run. */
static void without_numbers(char *path)
{
	char *to = path;
	int in_number = 0;

	if (!begins(path, "/proc/"))
		return;
	for (const char *from = path; *from; from++) {
		if (*from >= '0' && *from <= '9') {
			if (!in_number)
				*to++ = 'N';
			in_number = 1;
		} else {
			*to++ = *from;
			in_number = 0;
		}
	}
	*to = 0;
}

/* Below the directory that runs differ in, names are what is behind it. */
static int is_kept(char *path)
{
	size_t length = strlen(keep);

	if (!begins(path, keep))
		return 0;
	memmove(path + 1, path + length, strlen(path + length) + 1);
	path[0] = '@';
	return 1;
}

static int is_site(char *path)
{
	return is_kept(path) || begins(path, "/dev/vfio") || begins(path, "/dev/iommu") ||
	       begins(path, "/sys/bus") || begins(path, "/sys/kernel/iommu") ||
	       begins(path, "/sys/devices/pci") || begins(path, "/sys/class");
}

/* What a descriptor is; empty where that is no site. */
static void of_fd(pid_t pid, long fd, char *out)
{
	char link[64];
	ssize_t length;

	snprintf(link, sizeof(link), "/proc/%d/fd/%ld", pid, fd);
	length = readlink(link, out, MOST_TEXT - 64);
	out[length < 0 ? 0 : length] = 0;
	if (begins(out, "socket:"))
		strcpy(out, "socket");
	else if (begins(out, "anon_inode:") || begins(out, "/memfd:") || is_site(out))
		without_numbers(out);
	else
		out[0] = 0;
}

static void of_path(pid_t pid, unsigned long address, char *out)
{
	struct iovec local = {.iov_base = out, .iov_len = 256};
	struct iovec remote = {.iov_base = (void *)address, .iov_len = 256};
	ssize_t got = process_vm_readv(pid, &local, 1, &remote, 1, 0);

	if (got < 0) {
		/* The end of a page: what is left of it. */
		remote.iov_len = local.iov_len = 4096 - (address & 4095);
		if (local.iov_len > 256)
			local.iov_len = remote.iov_len = 256;
		got = process_vm_readv(pid, &local, 1, &remote, 1, 0);
	}
	out[got < 0 ? 0 : got] = 0;
	if (is_site(out))
		without_numbers(out);
	else
		out[0] = 0;
}

/* The name of the site that a call is at; empty where it is none. */
static void name_site(pid_t pid, const struct user_regs_struct *regs, char *out)
{
	char what[MOST_TEXT] = "";
	const char *call = "";

	for (size_t i = 0; i < COUNTED; i++)
		if (regs->orig_rax == (unsigned long)counted[i])
			call = names[i];
	out[0] = 0;
	switch (regs->orig_rax) {
	case SYS_openat:
		of_path(pid, regs->rsi, what);
		break;
	case SYS_open:
		of_path(pid, regs->rdi, what);
		break;
	case SYS_memfd_create:
		strcpy(what, "memory");
		break;
	default:
		of_fd(pid, regs->rdi, what);
	}
	if (!what[0])
		return;
	/* Its own log, and what wakes its threads, which the kernel doesn't refuse. */
	if (strcmp(what, "@/log") == 0 || strcmp(what, "anon_inode:[eventfd]") == 0)
		return;
	if (regs->orig_rax == SYS_ioctl)
		snprintf(out, MOST_TEXT, "ioctl-%llx:%.300s", regs->rsi, what);
	else
		snprintf(out, MOST_TEXT, "%s:%.300s", call, what);
}

static struct site *find(const char *name)
{
	for (int i = 0; i < site_count; i++)
		if (strcmp(sites[i].name, name) == 0)
			return &sites[i];
	if (site_count == MOST_SITES)
		return NULL;
	strcpy(sites[site_count].name, name);
	return &sites[site_count++];
}

static void save(const char *path, int hit)
{
	FILE *log = fopen(path, "w");

	if (!log)
		die(path);
	fprintf(log, "hit %d\n", hit);
	for (int i = 0; i < site_count; i++)
		fprintf(log, "%ld %s\n", sites[i].calls, sites[i].name);
	if (fclose(log))
		die(path);
}

int main(int argc, char **argv)
{
	if (argc < 7) {
		fprintf(stderr, "usage: failnth LOG KEEP SITE NUMBER ERRNO PROGRAM ...\n");
		return 125;
	}
	keep = argv[2];
	const char *site = argv[3];
	long number = atol(argv[4]), error = atol(argv[5]);
	int hit = 0, status = 0;
	pid_t child = fork();

	if (child < 0)
		die("fork");
	if (child == 0) {
		if (ptrace(PTRACE_TRACEME, 0, 0, 0))
			die("trace");
		raise(SIGSTOP);
		filter();
		execv(argv[6], argv + 6);
		die(argv[6]);
	}
	program = child;
	signal(SIGTERM, forward);
	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
		die("wait");
	if (ptrace(PTRACE_SETOPTIONS, child, 0,
		   PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
			   PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL))
		die("options");
	printf("%d\n", child);
	fflush(stdout);
	ptrace(PTRACE_CONT, child, 0, 0);
	for (;;) {
		pid_t pid = waitpid(-1, &status, __WALL);
		long pass = 0;

		if (pid < 0 && errno == EINTR)
			continue;
		if (pid < 0)
			break;
		if (WIFEXITED(status) || WIFSIGNALED(status)) {
			if (pid == child) {
				save(argv[1], hit);
				return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
			}
			continue;
		}
		if (!WIFSTOPPED(status))
			continue;
		if (status >> 8 == (SIGTRAP | PTRACE_EVENT_SECCOMP << 8)) {
			struct user_regs_struct regs;
			char name[MOST_TEXT];

			if (ptrace(PTRACE_GETREGS, pid, 0, &regs) == 0) {
				name_site(pid, &regs, name);
				struct site *at = name[0] ? find(name) : NULL;

				if (at && ++at->calls == number && strcmp(at->name, site) == 0) {
					regs.orig_rax = -1;
					regs.rax = -error;
					ptrace(PTRACE_SETREGS, pid, 0, &regs);
					hit = 1;
				}
			}
		} else if (status >> 16) {
			/* A new thread or process, or another program. */
		} else if (WSTOPSIG(status) != SIGSTOP && WSTOPSIG(status) != SIGTRAP) {
			pass = WSTOPSIG(status);
		}
		ptrace(PTRACE_CONT, pid, 0, pass);
	}
	save(argv[1], hit);
	return 125;
}
