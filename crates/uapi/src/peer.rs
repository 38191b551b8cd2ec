//! The process at the other end of a unix socket, as a descriptor that can't be mistaken.
#![expect(unsafe_code, reason = "SO_PEERPIDFD has no safe wrapper")]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::IoctlError;

/// The same number on every architecture that has VFIO.
const SO_PEERPIDFD: libc::c_int = 77;

/// A pidfd of the process that connected (or bound, or made the pair): unlike a pid it can't have
/// become another process's meanwhile.
///
/// # Errors
///
/// `ENOPROTOOPT`: a kernel before 6.5. `ESRCH` or `EINVAL`: the process is gone and was reaped.
pub fn peer_pidfd(socket: impl AsFd) -> Result<OwnedFd, IoctlError> {
    let socket = socket.as_fd().as_raw_fd();
    let mut pidfd: RawFd = -1;
    let mut length: libc::socklen_t = 4;
    // SAFETY: `pidfd` and `length` are valid for writes of 4 bytes each, which `length` says.
    let answer = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut pidfd).cast(),
            &raw mut length,
        )
    };
    if answer == 0 && pidfd >= 0 {
        // SAFETY: the kernel made this descriptor for us just now; nobody else owns it.
        return Ok(unsafe { OwnedFd::from_raw_fd(pidfd) });
    }
    let error = std::io::Error::last_os_error();
    let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
    Err(IoctlError::new("SO_PEERPIDFD", format!("fd {socket}"), errno))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pair_made_here_is_this_process() {
        let (a, _b) = UnixStream::pair().expect("a pair");
        match peer_pidfd(&a) {
            Ok(pidfd) => {
                let info =
                    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
                        .expect("fdinfo");
                assert!(info.contains(&format!("Pid:\t{}\n", std::process::id())), "{info}");
            }
            Err(error) => assert_eq!(error.errno, Errno::NOPROTOOPT),
        }
    }

    #[test]
    fn what_is_no_unix_socket_has_no_peer() {
        let file = std::fs::File::open("/proc/self/stat").expect("a file");
        assert_eq!(peer_pidfd(&file).expect_err("a file").errno, Errno::NOTSOCK);
    }
}
