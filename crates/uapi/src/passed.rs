//! Descriptors that the service manager opened for this process before it started it.
#![expect(unsafe_code, reason = "a descriptor that is known by its number has no safe wrapper")]

use std::{
    env,
    ffi::OsString,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::io::Errno;

/// The first of them: behind the three standard ones.
const FIRST: RawFd = 3;
/// More than any service manager passes or keeps; a larger number is a mistake.
const MOST: usize = 65536;

/// Whether they were taken.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// One of them.
#[derive(Debug)]
pub struct PassedFd {
    /// What the service manager calls it (`FileDescriptorName=`); `None` when it named none.
    pub name: Option<String>,
    /// The descriptor, close-on-exec.
    pub fd: OwnedFd,
}

/// What the environment says of them can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassedError {
    /// A variable is no number, or not UTF-8.
    #[error("{variable}={value:?} is not what a service manager sets")]
    Malformed {
        /// The variable.
        variable: &'static str,
        /// Its value, in short.
        value: String,
    },
    /// There are more or fewer names than descriptors.
    #[error("LISTEN_FDNAMES has {names} names and LISTEN_FDS {fds} descriptors")]
    Names {
        /// How many names.
        names: usize,
        /// How many descriptors.
        fds: usize,
    },
    /// A descriptor isn't there.
    #[error("LISTEN_FDS says that descriptor {number} was passed: {}", crate::errno_name(*.errno))]
    NotThere {
        /// Its number.
        number: RawFd,
        /// The kernel's answer.
        errno: Errno,
    },
}

/// The descriptors that were passed to this process, in their order; none where the environment
/// says that they are for another one. They are given once: to later calls, none. To be called
/// before anything else is opened, so that a number can't be another file's.
///
/// # Errors
/// The environment is malformed, or a descriptor isn't open.
///
/// # Source
/// <https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html>
pub fn passed_fds() -> Result<Vec<PassedFd>, PassedError> {
    let said = said(env::var_os)?;
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let numbered = said.into_iter().zip(FIRST..);
    let take = |(name, number)| {
        // SAFETY: the service manager put it there for this process and nobody else, who is told
        // so by the environment, and this is the only time that it is taken.
        let fd = unsafe { adopt(number) };
        let fd = fd.map_err(|errno| PassedError::NotThere { number, errno })?;
        Ok(PassedFd { name, fd })
    };
    numbered.map(take).collect()
}

/// The names of what the environment says that this process was passed.
fn said(
    variable: impl Fn(&'static str) -> Option<OsString>,
) -> Result<Vec<Option<String>>, PassedError> {
    let text = |name: &'static str| -> Result<Option<String>, PassedError> {
        let Some(value) = variable(name).filter(|value| !value.is_empty()) else { return Ok(None) };
        value.into_string().map(Some).map_err(|value| malformed(name, &value.to_string_lossy()))
    };
    let number = |name: &'static str| -> Result<Option<u32>, PassedError> {
        let Some(value) = text(name)? else { return Ok(None) };
        value.parse().map(Some).map_err(|_| malformed(name, &value))
    };
    let (Some(pid), Some(fds)) = (number("LISTEN_PID")?, number("LISTEN_FDS")?) else {
        return Ok(Vec::new());
    };
    if pid != std::process::id() {
        return Ok(Vec::new());
    }
    let fds = usize::try_from(fds).ok().filter(|fds| *fds <= MOST);
    let fds = fds.ok_or_else(|| malformed("LISTEN_FDS", "more than 65536"))?;
    let Some(names) = text("LISTEN_FDNAMES")? else { return Ok(vec![None; fds]) };
    let names: Vec<Option<String>> = names.split(':').map(|name| Some(name.to_owned())).collect();
    if fds > 0 && names.len() != fds {
        return Err(PassedError::Names { names: names.len(), fds });
    }
    Ok(names.into_iter().take(fds).collect())
}

fn malformed(variable: &'static str, value: &str) -> PassedError {
    PassedError::Malformed { variable, value: value.chars().take(80).collect() }
}

/// Makes a descriptor our own, and close-on-exec: no child of ours gets it by accident.
///
/// # Safety
/// Nothing else in this process owns it.
unsafe fn adopt(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers and touches no memory; one that isn't open is answered with EBADF.
    let answer = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if answer < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::BADF));
    }
    // SAFETY: it is open, as the kernel just answered, and by the caller's word nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    /// What is said with these variables; `me` stands for this process.
    fn with(variables: &[(&str, &str)]) -> Result<Vec<Option<String>>, PassedError> {
        let me = std::process::id().to_string();
        said(|name| {
            let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
            Some(OsString::from(value.replace("me", &me)))
        })
    }

    fn named(names: &[&str]) -> Vec<Option<String>> {
        names.iter().map(|name| Some((*name).to_owned())).collect()
    }

    #[test]
    fn what_is_for_another_process_or_not_there_is_not_taken() {
        for variables in [
            &[][..],
            &[("LISTEN_FDS", "2")],
            &[("LISTEN_PID", "me")],
            &[("LISTEN_PID", "1"), ("LISTEN_FDS", "2")],
            &[("LISTEN_PID", "me"), ("LISTEN_FDS", "0"), ("LISTEN_FDNAMES", "")],
        ] {
            assert_eq!(with(variables), Ok(Vec::new()), "{variables:?}");
        }
    }

    #[test]
    fn names_are_as_many_as_descriptors_or_none() {
        let two = [("LISTEN_PID", "me"), ("LISTEN_FDS", "2")];
        assert_eq!(with(&two), Ok(vec![None, None]));
        let three = |names| with(&[two[0], two[1], ("LISTEN_FDNAMES", names)]);
        assert_eq!(three("grpc:http"), Ok(named(&["grpc", "http"])));
        assert_eq!(three("grpc:"), Ok(named(&["grpc", ""])));
        assert_eq!(three("grpc"), Err(PassedError::Names { names: 1, fds: 2 }));
        assert_eq!(three("a:b:c"), Err(PassedError::Names { names: 3, fds: 2 }));
    }

    #[test]
    fn what_is_no_number_is_named() {
        for (pid, fds, wrong) in [
            ("me", "two", "LISTEN_FDS"),
            ("me", "-1", "LISTEN_FDS"),
            ("me", "4000000000", "LISTEN_FDS"),
            ("somebody", "1", "LISTEN_PID"),
        ] {
            let error = with(&[("LISTEN_PID", pid), ("LISTEN_FDS", fds)]).expect_err(fds);
            assert!(error.to_string().starts_with(wrong), "{error}");
        }
    }

    #[test]
    fn a_descriptor_is_adopted_close_on_exec_and_a_closed_one_is_not() {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let number = reader.into_raw_fd();
        // SAFETY: it was given away on the line before.
        let reader = unsafe { adopt(number) }.expect("it is open");
        let flags = rustix::io::fcntl_getfd(&reader).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        rustix::io::write(&writer, b"x").expect("written");
        let mut byte = [0; 1];
        assert_eq!(rustix::io::read(&reader, &mut byte), Ok(1));
        // SAFETY: nobody has it: numbers as high as this are not given out.
        assert_eq!(unsafe { adopt(RawFd::MAX) }.map(drop), Err(Errno::BADF));
    }

    #[test]
    fn a_test_is_passed_nothing() {
        assert!(passed_fds().expect("nothing is wrong").is_empty());
    }
}
