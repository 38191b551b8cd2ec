//! Whether two file descriptors are the same open file, across processes if need be.
#![expect(unsafe_code, reason = "kcmp(2) has no safe wrapper")]

use std::ffi::{c_long, c_ulong};
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::IoctlError;

const KCMP_FILE: c_long = 0;

/// Whether `a` and `b` are one open file (one `struct file`), not merely the same node.
///
/// # Errors
///
/// `ENOSYS`: the kernel was built without kcmp.
pub fn same_file(a: impl AsFd, b: impl AsFd) -> Result<bool, IoctlError> {
    let me = rustix::process::getpid();
    let (a, b) = (a.as_fd().as_raw_fd(), b.as_fd().as_raw_fd());
    kcmp(me, a, me, b).map_err(|errno| IoctlError::new("kcmp", format!("fd {a} and fd {b}"), errno))
}

/// Whether `ours` is the same open file as number `theirs` in the process `pid`.
///
/// # Errors
///
/// `EPERM`: this process may not inspect that one. `ESRCH`: it is gone. `EBADF`: that number isn't
/// open there. `ENOSYS`: the kernel was built without kcmp.
pub fn same_file_in(ours: impl AsFd, pid: Pid, theirs: i32) -> Result<bool, IoctlError> {
    let ours = ours.as_fd().as_raw_fd();
    kcmp(rustix::process::getpid(), ours, pid, theirs).map_err(|errno| {
        let object = format!("fd {ours} and fd {theirs} of process {}", pid.as_raw_nonzero());
        IoctlError::new("kcmp", object, errno)
    })
}

fn kcmp(pid_a: Pid, a: i32, pid_b: Pid, b: i32) -> Result<bool, Errno> {
    let index = |number: i32| c_ulong::try_from(number).map_err(|_| Errno::BADF);
    let (a, b) = (index(a)?, index(b)?);
    let (pid_a, pid_b) = (pid_a.as_raw_nonzero().get(), pid_b.as_raw_nonzero().get());
    // SAFETY: kcmp takes five integers and touches no memory of this process.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, pid_a, pid_b, KCMP_FILE, a, b) };
    match answer {
        0 => Ok(true),
        // 1, 2 and 3 are orders of two different files.
        1.. => Ok(false),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn skip(answer: &Result<bool, IoctlError>) -> bool {
        answer.as_ref().is_err_and(|error| error.errno == Errno::NOSYS)
    }

    #[test]
    fn a_dup_is_the_same_and_a_second_open_is_not() {
        let a = File::open("/dev/null").expect("opens");
        let b = File::open("/dev/null").expect("opens");
        let dup = a.try_clone().expect("dups");
        let answer = same_file(&a, &dup);
        if skip(&answer) {
            return;
        }
        assert_eq!(answer, Ok(true));
        assert_eq!(same_file(&a, &b), Ok(false));
    }

    #[test]
    fn errors_name_the_file() {
        let a = File::open("/dev/null").expect("opens");
        let answer = same_file_in(&a, rustix::process::getpid(), 1_000_000);
        if skip(&answer) {
            return;
        }
        let error = answer.expect_err("no such number is open");
        assert_eq!(error.errno, Errno::BADF);
        assert!(error.to_string().contains("fd 1000000"), "{error}");
    }
}
