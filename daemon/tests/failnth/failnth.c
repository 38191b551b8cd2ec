/* Runs a program and counts its system calls by site: the call, and what it is about. Lets the n-th at
 * one site fail with an errno, or only writes down which sites there are.
 *
 *   failnth LOG KEEP SITE NUMBER ERRNO PROGRAM ARGUMENTS...
 *
 * The program's process is told on the standard output. KEEP is a directory: files are sites only
 * below it, where they are named without it, and of VFIO and sysfs. SITE is one of those that the log
 * names, or "-". Every thread and child of the program is followed; a site of another program has
 * that one's name in front. What happens is below the program and its libraries: a filter stops the
 * calls that are counted (seccomp), and the tracer answers in the kernel's place (ptrace). It needs
 * no rights.
 *
 * At SIGUSR1 the log is written, and all begins anew with the fault in the file LOG.next: the site on
 * one line, number and errno on the next. The log is there when that is in force.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <fcntl.h>
#include <limits.h>
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

/* The call that fails. */
struct fault {
	char site[MOST_TEXT];
	long number, error;
	int hit;
};

static struct site sites[MOST_SITES];
static int site_count;
static struct fault fault;
static const char *keep, *program;

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
	struct sock_fprog filter = {.len = at, .filter = code};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
		die("filter");
}

static int begins(const char *text, const char *with)
{
	return strncmp(text, with, strlen(with)) == 0;
}

/* Whether a text begins with a PCI address. */
static int is_address(const char *text)
{
	static const char form[] = "xxxx:xx:xx.x";

	for (size_t i = 0; form[i]; i++)
		if (form[i] == 'x' ? !isxdigit((unsigned char)text[i]) : text[i] != form[i])
			return 0;
	return 1;
}

/* Numbers of processes, threads and nodes differ from run to run, and devices are many: what is one of
 * a kind there is one site.
 */
static void without_numbers(char *path)
{
	char *to = path;
	const char *from = path;

	if (!begins(path, "/proc/") && !begins(path, "/sys/") && !begins(path, "/dev/"))
		return;
	while (*from) {
		if (is_address(from)) {
			/* However many bridges are before it. */
			if (to - path > 2 && to[-1] == '/' && to[-2] == 'D')
				to -= 2;
			*to++ = 'D';
			from += strlen("0000:00:00.0");
		} else if (isdigit((unsigned char)*from)) {
			while (isdigit((unsigned char)*from))
				from++;
			*to++ = 'N';
		} else {
			*to++ = *from++;
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
	char memory[64];
	ssize_t got = -1;
	int fd;

	snprintf(memory, sizeof(memory), "/proc/%d/mem", pid);
	fd = open(memory, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		/* Less where the memory ends. */
		got = pread(fd, out, 256, (off_t)address);
		close(fd);
	}
	out[got < 0 ? 0 : got] = 0;
	if (is_site(out))
		without_numbers(out);
	else
		out[0] = 0;
}

static const char *base(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* The name of another program than the one that was started, with a slash; else nothing. */
static void of_program(pid_t pid, char *out)
{
	char link[64], exe[PATH_MAX];
	ssize_t length;

	snprintf(link, sizeof(link), "/proc/%d/exe", pid);
	length = readlink(link, exe, sizeof(exe) - 1);
	exe[length < 0 ? 0 : length] = 0;
	out[0] = 0;
	if (exe[0] && strcmp(base(exe), base(program)) != 0)
		snprintf(out, 64, "%.60s/", base(exe));
}

/* The name of the site that a call is at; empty where it is none. */
static void name_site(pid_t pid, const struct user_regs_struct *regs, char *out)
{
	char what[MOST_TEXT] = "", who[64];
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
	if (regs->orig_rax != SYS_openat && regs->orig_rax != SYS_open && regs->rdi == STDERR_FILENO)
		return;
	if (strcmp(what, "anon_inode:[eventfd]") == 0)
		return;
	of_program(pid, who);
	if (regs->orig_rax == SYS_ioctl)
		snprintf(out, MOST_TEXT, "%sioctl-%llx:%.300s", who, regs->rsi, what);
	else
		snprintf(out, MOST_TEXT, "%s%s:%.300s", who, call, what);
}

static struct site *find(const char *name)
{
	for (int i = 0; i < site_count; i++)
		if (strcmp(sites[i].name, name) == 0)
			return &sites[i];
	if (site_count == MOST_SITES)
		return NULL;
	strcpy(sites[site_count].name, name);
	sites[site_count].calls = 0;
	return &sites[site_count++];
}

static void save(const char *path)
{
	FILE *log = fopen(path, "w");

	if (!log)
		die(path);
	fprintf(log, "hit %d\n", fault.hit);
	for (int i = 0; i < site_count; i++)
		fprintf(log, "%ld %s\n", sites[i].calls, sites[i].name);
	if (fclose(log))
		die(path);
}

static void begin_anew(const char *log)
{
	char next[PATH_MAX], done[PATH_MAX];
	FILE *order;

	snprintf(next, sizeof(next), "%s.next", log);
	snprintf(done, sizeof(done), "%s.done", log);
	save(done);
	memset(&fault, 0, sizeof(fault));
	site_count = 0;
	order = fopen(next, "r");
	if (!order || fscanf(order, "%500[^\n] %ld %ld", fault.site, &fault.number, &fault.error) != 3)
		die(next);
	fclose(order);
	if (rename(done, log))
		die(log);
}

/* A call that is counted is about to be made. */
static void count(pid_t pid)
{
	struct user_regs_struct regs;
	char name[MOST_TEXT];
	struct site *at;

	if (ptrace(PTRACE_GETREGS, pid, 0, &regs))
		return;
	name_site(pid, &regs, name);
	at = name[0] ? find(name) : NULL;
	if (at && ++at->calls == fault.number && strcmp(at->name, fault.site) == 0) {
		regs.orig_rax = -1;
		regs.rax = -fault.error;
		ptrace(PTRACE_SETREGS, pid, 0, &regs);
		fault.hit = 1;
	}
}

/* Waits for the next stop or end of what is traced, and does what is asked meanwhile. */
static pid_t next_event(const sigset_t *asked, pid_t child, const char *log, int *status)
{
	for (;;) {
		pid_t pid = waitpid(-1, status, __WALL | WNOHANG);
		int signal;

		if (pid)
			return pid;
		signal = sigwaitinfo(asked, NULL);
		if (signal == SIGTERM)
			kill(child, SIGTERM);
		else if (signal == SIGUSR1)
			begin_anew(log);
	}
}

static pid_t start(char **words, const sigset_t *asked)
{
	sigset_t before;
	int status;
	pid_t child;

	if (sigprocmask(SIG_BLOCK, asked, &before))
		die("signals");
	child = fork();
	if (child < 0)
		die("fork");
	if (child == 0) {
		if (sigprocmask(SIG_SETMASK, &before, NULL) || ptrace(PTRACE_TRACEME, 0, 0, 0))
			die("trace");
		raise(SIGSTOP);
		filter();
		execv(words[0], words);
		die(words[0]);
	}
	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
		die("wait");
	if (ptrace(PTRACE_SETOPTIONS, child, 0,
		   PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
			   PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL))
		die("options");
	printf("%d\n", child);
	fflush(stdout);
	ptrace(PTRACE_CONT, child, 0, 0);
	return child;
}

int main(int argc, char **argv)
{
	sigset_t asked;
	int status = 0;
	pid_t child, pid;

	if (argc < 7) {
		fprintf(stderr, "usage: failnth LOG KEEP SITE NUMBER ERRNO PROGRAM ...\n");
		return 125;
	}
	keep = argv[2];
	snprintf(fault.site, sizeof(fault.site), "%s", argv[3]);
	fault.number = atol(argv[4]);
	fault.error = atol(argv[5]);
	program = argv[6];
	sigemptyset(&asked);
	sigaddset(&asked, SIGCHLD);
	sigaddset(&asked, SIGTERM);
	sigaddset(&asked, SIGUSR1);
	child = start(argv + 6, &asked);
	while ((pid = next_event(&asked, child, argv[1], &status)) > 0) {
		long pass = 0;

		if (WIFEXITED(status) || WIFSIGNALED(status)) {
			if (pid == child) {
				save(argv[1]);
				return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
			}
			continue;
		}
		if (!WIFSTOPPED(status))
			continue;
		if (status >> 8 == (SIGTRAP | PTRACE_EVENT_SECCOMP << 8))
			count(pid);
		else if (status >> 16)
			; /* A new thread or process, or another program. */
		else if (WSTOPSIG(status) != SIGSTOP && WSTOPSIG(status) != SIGTRAP)
			pass = WSTOPSIG(status);
		ptrace(PTRACE_CONT, pid, 0, pass);
	}
	save(argv[1]);
	return 125;
}
