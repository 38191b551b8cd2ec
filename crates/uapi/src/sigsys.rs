//! What becomes of a system call that a seccomp filter traps: it fails with EPERM, is told on
//! standard error by its name, and is counted. Without this the process would be killed, and with
//! `SECCOMP_RET_ERRNO` nobody would learn which call is missing from the filter.
//!
//! # Source
//! `seccomp(2)`, `SECCOMP_RET_TRAP`: `si_syscall` is the call's number, and the handler may set the
//! register that the call's answer is in.
#![expect(
    unsafe_code,
    reason = "a signal handler reads what the kernel passed and sets a register"
)]

use std::{
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::io::Errno;

/// More than any architecture of ours has calls.
const CALLS: usize = 1024;

/// `si_code` of a call that a filter trapped.
const SYS_SECCOMP: c_int = 1;

/// How often each call was refused.
static REFUSED: [AtomicU32; CALLS] = [const { AtomicU32::new(0) }; CALLS];

static NAME: OnceLock<fn(usize) -> &'static str> = OnceLock::new();

/// From now on calls that a filter traps fail with EPERM. `name` names them; it is called in a
/// signal handler, so it must neither allocate nor lock.
///
/// # Errors
///
/// `ENOSYS`: this architecture's registers aren't known. What `sigaction(2)` answers.
pub fn answer_with_eperm(name: fn(usize) -> &'static str) -> Result<(), Errno> {
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return Err(Errno::NOSYS);
    }
    NAME.get_or_init(|| name);
    // SAFETY: all zeros is a valid sigaction: the default action, no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = refuse;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: `action` is valid, and the handler does nothing but what a handler may.
    let answer = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) };
    if answer == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

/// The numbers of the calls that were refused, and how often.
#[must_use]
pub fn refused_calls() -> Vec<(usize, u32)> {
    let counted = REFUSED.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
    counted.filter(|(_, count)| *count > 0).collect()
}

/// The fields of a `siginfo_t` of SIGSYS.
#[repr(C)]
struct Trapped {
    signo: c_int,
    errno: c_int,
    code: c_int,
    _pad: c_int,
    _call_addr: *const c_void,
    number: c_int,
    _arch: u32,
}

extern "C" fn refuse(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a siginfo_t of SIGSYS, whose fields these are.
    let trapped = unsafe { &*info.cast::<Trapped>() };
    if trapped.code != SYS_SECCOMP {
        return;
    }
    let number = usize::try_from(trapped.number).unwrap_or(CALLS);
    if let Some(count) = REFUSED.get(number)
        && count.fetch_add(1, Ordering::Relaxed) == 0
    {
        tell(number);
    }
    set_answer(context, -i64::from(Errno::PERM.raw_os_error()));
}

/// Once for each call, in one write, without allocating.
fn tell(number: usize) {
    let name = NAME.get().map_or("?", |name| name(number));
    let mut digits = [b'0'; 8];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    let first = digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len() - 1);
    let mut line = [0; 160];
    let mut length = 0;
    let number = digits.get(first..).unwrap_or_default();
    for part in [
        b"seccomp refuses the system call ".as_slice(),
        name.as_bytes(),
        b" (",
        number,
        b"): EPERM\n",
    ] {
        if let Some(place) = line.get_mut(length..length + part.len()) {
            place.copy_from_slice(part);
            length += part.len();
        }
    }
    // Nobody is told when that fails.
    let _ = rustix::io::write(rustix::stdio::stderr(), line.get(..length).unwrap_or_default());
}

#[cfg(target_arch = "x86_64")]
fn set_answer(context: *mut c_void, answer: i64) {
    // SAFETY: the kernel passes a ucontext_t that nobody else has while the handler runs.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    if let Some(register) =
        usize::try_from(libc::REG_RAX).ok().and_then(|at| context.uc_mcontext.gregs.get_mut(at))
    {
        *register = answer;
    }
}

#[cfg(target_arch = "aarch64")]
fn set_answer(context: *mut c_void, answer: i64) {
    // SAFETY: the kernel passes a ucontext_t that nobody else has while the handler runs.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.regs[0] = answer.cast_unsigned();
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn set_answer(_: *mut c_void, _: i64) {}
