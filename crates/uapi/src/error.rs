//! What a failed call was, on what, and with which errno.

use rustix::io::Errno;

/// A call into the kernel that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op} on {object}: {} ({})", errno_name(*.errno), errno_text(*.errno))]
pub struct IoctlError {
    /// The ioctl's name in the kernel's headers, or the system call's.
    pub op: &'static str,
    /// What it was tried on: an address, a path, or an id within a context.
    pub object: String,
    /// The kernel's answer, unchanged.
    pub errno: Errno,
}

impl IoctlError {
    /// Records that `op` on `object` was answered with `errno`.
    pub fn new(op: &'static str, object: impl Into<String>, errno: Errno) -> Self {
        Self { op, object: object.into(), errno }
    }

    /// The kernel's answer.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// Whether the kernel does not know the call, or not the flag that was given.
    ///
    /// # Kernel
    ///
    /// `ENOTTY`: unknown ioctl. `EOPNOTSUPP`: unknown flag. `E2BIG`: a field newer than this
    /// kernel was used.
    pub fn is_unsupported(&self) -> bool {
        [Errno::NOTTY, Errno::OPNOTSUPP, Errno::TOOBIG, Errno::NOSYS].contains(&self.errno)
    }

    /// Whether the object isn't there (any more).
    pub fn is_gone(&self) -> bool {
        [Errno::NOENT, Errno::NODEV, Errno::NXIO].contains(&self.errno)
    }
}

impl From<IoctlError> for std::io::Error {
    fn from(error: IoctlError) -> Self {
        Self::new(Self::from(error.errno).kind(), error)
    }
}

/// The symbolic name of an errno, such as `EPERM`; `errno` alone for one that VFIO, iommufd,
/// sysfs and the socket calls around them never answer with.
pub fn errno_name(errno: Errno) -> &'static str {
    const NAMES: &[(Errno, &str)] = &[
        (Errno::PERM, "EPERM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::SRCH, "ESRCH"),
        (Errno::INTR, "EINTR"),
        (Errno::IO, "EIO"),
        (Errno::NXIO, "ENXIO"),
        (Errno::TOOBIG, "E2BIG"),
        (Errno::BADF, "EBADF"),
        (Errno::AGAIN, "EAGAIN"),
        (Errno::NOMEM, "ENOMEM"),
        (Errno::ACCESS, "EACCES"),
        (Errno::FAULT, "EFAULT"),
        (Errno::BUSY, "EBUSY"),
        (Errno::EXIST, "EEXIST"),
        (Errno::XDEV, "EXDEV"),
        (Errno::NODEV, "ENODEV"),
        (Errno::NOTDIR, "ENOTDIR"),
        (Errno::ISDIR, "EISDIR"),
        (Errno::INVAL, "EINVAL"),
        (Errno::NFILE, "ENFILE"),
        (Errno::MFILE, "EMFILE"),
        (Errno::NOTTY, "ENOTTY"),
        (Errno::FBIG, "EFBIG"),
        (Errno::NOSPC, "ENOSPC"),
        (Errno::ROFS, "EROFS"),
        (Errno::PIPE, "EPIPE"),
        (Errno::RANGE, "ERANGE"),
        (Errno::DEADLK, "EDEADLK"),
        (Errno::NOSYS, "ENOSYS"),
        (Errno::OVERFLOW, "EOVERFLOW"),
        (Errno::BADFD, "EBADFD"),
        (Errno::MSGSIZE, "EMSGSIZE"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::ADDRINUSE, "EADDRINUSE"),
        (Errno::ALREADY, "EALREADY"),
        (Errno::TIMEDOUT, "ETIMEDOUT"),
        (Errno::CONNREFUSED, "ECONNREFUSED"),
        (Errno::CANCELED, "ECANCELED"),
        (Errno::NOBUFS, "ENOBUFS"),
        (Errno::PROTO, "EPROTO"),
    ];
    NAMES.iter().find(|(known, _)| *known == errno).map_or("errno", |(_, name)| name)
}

fn errno_text(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.find(" (os error") {
        // An errno without a name keeps its number, else nothing would tell it.
        Some(end) if errno_name(errno) != "errno" => text[..end].to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_on_what_and_why() {
        let error = IoctlError::new("VFIO_DEVICE_BIND_IOMMUFD", "0000:00:05.0", Errno::PERM);
        assert_eq!(
            error.to_string(),
            "VFIO_DEVICE_BIND_IOMMUFD on 0000:00:05.0: EPERM (Operation not permitted)"
        );
        assert!(!error.is_unsupported());
        assert!(IoctlError::new("x", "y", Errno::NOTTY).is_unsupported());
        assert!(IoctlError::new("x", "y", Errno::NODEV).is_gone());
    }

    #[test]
    fn an_unnamed_errno_keeps_its_number() {
        let error = IoctlError::new("open", "/dev/x", Errno::from_raw_os_error(131));
        assert!(error.to_string().contains("os error 131"), "{error}");
    }
}
