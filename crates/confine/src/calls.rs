//! System calls: all are refused but those that are named.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use syscalls::Sysno;

use crate::ConfineError;

/// What happens to a call that isn't named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// It fails with EPERM, is told on standard error, and counted ([`refused`]).
    Refused,
    /// It is done, and the kernel's audit log has it (`type=1326`).
    Logged,
}

/// For whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// The calling thread and those that it starts.
    Thread,
    /// Every thread of the process.
    Process,
}

/// What an argument must be for the call to be let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// These 32 bits.
    Is(u32),
    /// Of its 32 bits those of the mask are these.
    Masked {
        /// Which bits are looked at.
        mask: u32,
        /// What they are.
        bits: u32,
    },
    /// All 64 bits are zero: a pointer to nothing.
    Null,
}

/// The calls that are let through. Processes are never started.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    calls: BTreeMap<Sysno, Vec<(u8, Test)>>,
    threads: bool,
}

impl Allowed {
    /// What every program of ours needs: memory, threads, time, and what it has open.
    #[must_use]
    pub fn base() -> Self {
        let executable = u32::try_from(libc::PROT_EXEC).unwrap_or(4);
        let not_executable = Test::Masked { mask: executable, bits: 0 };
        Self::default()
            .all(BASE)
            // No memory is ever made executable.
            .only(Sysno::mmap, 2, not_executable)
            .only(Sysno::mprotect, 2, not_executable)
            // What the kernel said to this program at its start.
            .only(Sysno::prctl, 0, Test::Is(PR_GET_AUXV))
            // Limits are read and not set.
            .only(Sysno::prlimit64, 2, Test::Null)
    }

    /// Lets calls through, whatever their arguments.
    #[must_use]
    pub fn all(mut self, calls: &[Sysno]) -> Self {
        for call in calls {
            self.calls.insert(*call, Vec::new());
        }
        self
    }

    /// Lets a call through whose argument (from 0) passes a test, or one that was named before for
    /// the same call.
    #[must_use]
    pub fn only(mut self, call: Sysno, argument: u8, test: Test) -> Self {
        self.calls.entry(call).or_default().push((argument, test));
        self
    }

    /// Lets files be opened by a path, where the flags pass a test.
    #[must_use]
    pub fn open(self, flags: Test) -> Self {
        #[cfg(target_arch = "x86_64")]
        let this = self.only(Sysno::open, 1, flags);
        #[cfg(not(target_arch = "x86_64"))]
        let this = self;
        this.only(Sysno::openat, 2, flags)
    }

    /// Lets threads be started.
    #[must_use]
    pub fn threads(mut self) -> Self {
        self.threads = true;
        self
    }

    /// Whether a call is named at all.
    #[must_use]
    pub fn names(&self, call: Sysno) -> bool {
        self.calls.contains_key(&call)
    }

    /// Gives all other calls up, for good.
    ///
    /// # Errors
    /// The kernel has no seccomp filters, or this architecture isn't known.
    pub fn enter(&self, others: Others, whom: Whom) -> Result<(), ConfineError> {
        let failed = |why: &dyn ToString| ConfineError::new("seccomp", why.to_string());
        let arch = std::env::consts::ARCH.try_into().map_err(|error| failed(&error))?;
        let action = match others {
            Others::Refused => {
                berth_uapi::answer_with_eperm(name).map_err(|errno| failed(&errno))?;
                SeccompAction::Trap
            }
            Others::Logged => SeccompAction::Log,
        };
        let mut programs = Vec::new();
        if others == Others::Refused {
            programs.push(no_clone3(arch).map_err(|error| failed(&error))?);
            programs.push(self.no_processes(arch).map_err(|error| failed(&error))?);
        }
        programs.push(self.compile(action, arch).map_err(|error| failed(&error))?);
        for program in &programs {
            let entered = match whom {
                Whom::Thread => seccompiler::apply_filter(program),
                Whom::Process => seccompiler::apply_filter_all_threads(program),
            };
            entered.map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// A filter that refuses to start processes, and threads where there are to be none.
    fn no_processes(&self, arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
        let mut rules = BTreeMap::new();
        for call in STARTING.iter().filter(|call| **call != Sysno::clone3) {
            rules.insert(i64::from(call.id()), Vec::new());
        }
        if self.threads {
            let flag = libc::CLONE_THREAD.unsigned_abs();
            let process = rule(0, Test::Masked { mask: flag, bits: 0 })?;
            rules.insert(i64::from(Sysno::clone.id()), vec![process]);
        }
        let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)?.try_into()
    }

    fn compile(
        &self,
        others: SeccompAction,
        arch: TargetArch,
    ) -> Result<BpfProgram, seccompiler::BackendError> {
        let mut rules = BTreeMap::new();
        for call in STARTING {
            rules.insert(i64::from(call.id()), Vec::new());
        }
        for (call, tests) in &self.calls {
            let tests: Result<Vec<SeccompRule>, _> =
                tests.iter().map(|(argument, test)| rule(*argument, *test)).collect();
            rules.insert(i64::from(call.id()), tests?);
        }
        SeccompFilter::new(rules, others, SeccompAction::Allow, arch)?.try_into()
    }
}

/// The calls that were refused by a filter of [`Others::Refused`], and how often.
#[must_use]
pub fn refused() -> Vec<(&'static str, u32)> {
    let calls = berth_uapi::refused_calls().into_iter();
    calls.map(|(number, count)| (name(number), count)).collect()
}

/// What a call is called.
#[must_use]
pub fn name(number: usize) -> &'static str {
    Sysno::new(number).map_or("unknown", |call| call.name())
}

fn rule(argument: u8, test: Test) -> Result<SeccompRule, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    let condition = match test {
        Test::Is(value) => {
            SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, u64::from(value))
        }
        Test::Masked { mask, bits } => {
            let test = SeccompCmpOp::MaskedEq(u64::from(mask));
            SeccompCondition::new(argument, Dword, test, u64::from(bits))
        }
        Test::Null => SeccompCondition::new(argument, Qword, SeccompCmpOp::Eq, 0),
    };
    SeccompRule::new(vec![condition?])
}

/// A filter as if the kernel didn't have the call: its flags are in memory, where no filter sees them.
/// The C library then takes `clone`, whose flags are in a register.
fn no_clone3(arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(i64::from(Sysno::clone3.id()), Vec::new())]);
    let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, absent, arch)?.try_into()
}

/// What starts threads and processes. The C library does it with all signals blocked, so that a trap
/// would kill; a filter of its own refuses them.
const STARTING: &[Sysno] = &[
    Sysno::clone,
    Sysno::clone3,
    #[cfg(target_arch = "x86_64")]
    Sysno::fork,
    #[cfg(target_arch = "x86_64")]
    Sysno::vfork,
];

/// Newer than some C libraries.
const PR_GET_AUXV: u32 = 0x4155_5856;

const BASE: &[Sysno] = &[
    // Memory; executable memory is tested for.
    Sysno::brk,
    Sysno::madvise,
    Sysno::mremap,
    Sysno::munmap,
    // Threads.
    Sysno::exit,
    Sysno::exit_group,
    Sysno::futex,
    Sysno::getpid,
    Sysno::gettid,
    Sysno::membarrier,
    Sysno::restart_syscall,
    Sysno::rseq,
    Sysno::rt_sigaction,
    Sysno::rt_sigprocmask,
    Sysno::rt_sigreturn,
    Sysno::sched_getaffinity,
    Sysno::sched_yield,
    Sysno::set_robust_list,
    Sysno::sigaltstack,
    Sysno::tgkill,
    // Time and chance.
    Sysno::clock_getres,
    Sysno::clock_gettime,
    Sysno::clock_nanosleep,
    Sysno::getrandom,
    Sysno::gettimeofday,
    Sysno::nanosleep,
    // What is open.
    Sysno::close,
    Sysno::dup,
    Sysno::fcntl,
    Sysno::fstat,
    Sysno::getdents64,
    Sysno::lseek,
    Sysno::pread64,
    Sysno::read,
    Sysno::readv,
    Sysno::write,
    Sysno::writev,
    #[cfg(target_arch = "x86_64")]
    Sysno::poll,
    Sysno::ppoll,
    // Paths; which ones is for Landlock.
    #[cfg(target_arch = "x86_64")]
    Sysno::access,
    Sysno::faccessat,
    Sysno::faccessat2,
    Sysno::getcwd,
    #[cfg(target_arch = "x86_64")]
    Sysno::lstat,
    Sysno::newfstatat,
    #[cfg(target_arch = "x86_64")]
    Sysno::readlink,
    Sysno::readlinkat,
    #[cfg(target_arch = "x86_64")]
    Sysno::stat,
    Sysno::statx,
    // Who we are.
    Sysno::getegid,
    Sysno::geteuid,
    Sysno::getgid,
    Sysno::getppid,
    Sysno::getuid,
    Sysno::uname,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_their_names() {
        assert_eq!(name(usize::try_from(Sysno::ptrace.id()).unwrap()), "ptrace");
        assert_eq!(name(100_000), "unknown");
    }

    /// In a thread of its own, which ends with the filter.
    fn confined<T: Send + 'static>(allowed: Allowed, run: fn() -> T) -> T {
        std::thread::spawn(move || {
            allowed.enter(Others::Refused, Whom::Thread).unwrap();
            run()
        })
        .join()
        .unwrap()
    }

    fn socket(domain: rustix::net::AddressFamily) -> Result<(), rustix::io::Errno> {
        rustix::net::socket(domain, rustix::net::SocketType::STREAM, None).map(drop)
    }

    #[test]
    fn what_isn_t_named_fails_and_is_counted_by_its_name() {
        use rustix::{io::Errno, net::AddressFamily};
        let unix = u32::from(AddressFamily::UNIX.as_raw());
        let allowed = Allowed::base().only(Sysno::socket, 0, Test::Is(unix));
        let before = refused().iter().find(|it| it.0 == "socket").map_or(0, |it| it.1);
        let answers = confined(allowed, || {
            [socket(AddressFamily::UNIX), socket(AddressFamily::INET), socket(AddressFamily::UNIX)]
        });
        assert_eq!(answers, [Ok(()), Err(Errno::PERM), Ok(())]);
        let after = refused().iter().find(|it| it.0 == "socket").map_or(0, |it| it.1);
        assert_eq!(after, before + 1);
        // Other threads are as they were.
        socket(AddressFamily::INET).unwrap();
    }

    #[test]
    fn threads_start_and_programs_do_not() {
        let run = || {
            let thread = std::thread::Builder::new().spawn(|| 7).map(|it| it.join().unwrap());
            (thread.ok(), std::process::Command::new("/bin/true").spawn().map(drop))
        };
        let plain = Allowed::base().all(&[Sysno::pipe2, Sysno::prctl, Sysno::socketpair]);
        for (allowed, expected) in [(plain.clone().threads(), Some(7)), (plain, None)] {
            let (thread, program) = confined(allowed, run);
            assert_eq!(thread, expected);
            let error = program.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
        }
    }
}
