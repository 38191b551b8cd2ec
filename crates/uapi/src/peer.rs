//! The process at the other end of a unix socket, as a descriptor that can't be mistaken.
#![expect(unsafe_code, reason = "SO_PEERPIDFD and SO_PEERGROUPS have no safe wrapper")]

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

/// The same number on every architecture that has VFIO.
const SO_PEERGROUPS: libc::c_int = 59;

/// The most groups that a process can have (`NGROUPS_MAX`).
const NGROUPS_MAX: usize = 65_536;

/// The supplementary groups that the peer of a unix socket had when it connected.
///
/// # Errors
///
/// `ENODATA`: nobody is connected. `ENOTSOCK`, `ENOPROTOOPT`: it is no unix socket.
pub fn peer_groups(socket: impl AsFd) -> Result<Vec<u32>, IoctlError> {
    let socket = socket.as_fd().as_raw_fd();
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let room = size_of::<libc::gid_t>() * groups.len();
        let mut length = libc::socklen_t::try_from(room).unwrap_or(0);
        // SAFETY: `groups` is valid for writes of `length` bytes, and `length` of its own size.
        let answer = unsafe {
            libc::getsockopt(
                socket,
                libc::SOL_SOCKET,
                SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let needed = usize::try_from(length).unwrap_or(0) / size_of::<libc::gid_t>();
        if answer == 0 {
            groups.truncate(needed);
            return Ok(groups);
        }
        let error = std::io::Error::last_os_error();
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
        // The kernel says how much room it needs.
        if errno != Errno::RANGE || needed <= groups.len() || needed > NGROUPS_MAX {
            return Err(IoctlError::new("SO_PEERGROUPS", format!("fd {socket}"), errno));
        }
        groups.resize(needed, 0);
    }
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
    fn the_groups_of_a_pair_made_here_are_ours() {
        let (a, _b) = UnixStream::pair().expect("a pair");
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).expect("a line");
        let mut ours: Vec<u32> =
            line.split_ascii_whitespace().map(|gid| gid.parse().expect("a gid")).collect();
        let mut found = peer_groups(&a).expect("groups");
        ours.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, ours);
    }

    #[test]
    fn what_is_no_unix_socket_has_no_peer() {
        let file = std::fs::File::open("/proc/self/stat").expect("a file");
        assert_eq!(peer_pidfd(&file).expect_err("a file").errno, Errno::NOTSOCK);
    }
}
