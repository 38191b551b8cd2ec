//! The system calls that berthd needs once its configuration is read.

use berth_confine::{
    Sysno,
    calls::{Allowed, Test},
};
use rustix::net::AddressFamily;

/// Requests of `ioctl` besides those of VFIO and iommufd.
const FIONBIO: u32 = 0x5421;
const FIOCLEX: u32 = 0x5451;
const TCGETS: u32 = 0x5401;

/// The type that VFIO's requests and iommufd's have, `;`.
const VFIO: Test = Test::Masked { mask: 0xffff_ff00, bits: 0x3b00 };

/// What `prctl` may do: name a thread, and a piece of memory.
const PR_SET_NAME: u32 = 15;
const PR_SET_VMA: u32 = 0x5356_4d41;

/// All of them; sockets of the internet's only where TCP is listened at.
pub(super) fn allowed(tcp: bool) -> Allowed {
    let mut families = vec![AddressFamily::UNIX, AddressFamily::NETLINK];
    if tcp {
        families.extend([AddressFamily::INET, AddressFamily::INET6]);
    }
    let mut allowed = Allowed::base().threads().all(CALLS);
    for family in families {
        allowed = allowed.only(Sysno::socket, 0, Test::Is(u32::from(family.as_raw())));
    }
    for request in [FIONBIO, FIOCLEX, TCGETS] {
        allowed = allowed.only(Sysno::ioctl, 1, Test::Is(request));
    }
    allowed.only(Sysno::ioctl, 1, VFIO).only(Sysno::prctl, 0, Test::Is(PR_SET_NAME)).only(
        Sysno::prctl,
        0,
        Test::Is(PR_SET_VMA),
    )
}

const CALLS: &[Sysno] = &[
    // The runtime.
    Sysno::epoll_create1,
    Sysno::epoll_ctl,
    Sysno::epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    Sysno::epoll_wait,
    Sysno::eventfd2,
    Sysno::pipe2,
    // Sockets, which ones is tested for, and what is passed over them.
    Sysno::accept,
    Sysno::accept4,
    Sysno::bind,
    Sysno::connect,
    Sysno::getpeername,
    Sysno::getsockname,
    Sysno::getsockopt,
    Sysno::listen,
    Sysno::recvfrom,
    Sysno::recvmsg,
    Sysno::sendmsg,
    Sysno::sendto,
    Sysno::setsockopt,
    Sysno::shutdown,
    Sysno::socketpair,
    // The store and its copies, the sockets' files.
    #[cfg(target_arch = "x86_64")]
    Sysno::chmod,
    Sysno::copy_file_range,
    Sysno::fadvise64,
    Sysno::fallocate,
    Sysno::fchmod,
    Sysno::fchmodat,
    Sysno::fchown,
    Sysno::fchownat,
    #[cfg(target_arch = "x86_64")]
    Sysno::chown,
    Sysno::fdatasync,
    Sysno::flock,
    Sysno::fstatfs,
    Sysno::fsync,
    Sysno::ftruncate,
    #[cfg(target_arch = "x86_64")]
    Sysno::mkdir,
    Sysno::mkdirat,
    #[cfg(target_arch = "x86_64")]
    Sysno::open,
    Sysno::openat,
    Sysno::pwrite64,
    #[cfg(target_arch = "x86_64")]
    Sysno::rename,
    Sysno::renameat,
    Sysno::renameat2,
    #[cfg(target_arch = "x86_64")]
    Sysno::rmdir,
    Sysno::sendfile,
    Sysno::statfs,
    Sysno::umask,
    #[cfg(target_arch = "x86_64")]
    Sysno::unlink,
    Sysno::unlinkat,
    // Clients' memory and notes of what is kept.
    Sysno::memfd_create,
    // Holders: who they are, that they live, and which file they show.
    Sysno::kcmp,
    Sysno::pidfd_open,
    #[cfg(target_arch = "x86_64")]
    Sysno::getpgrp,
    Sysno::getpgid,
    Sysno::getsid,
    Sysno::waitid,
    Sysno::wait4,
    // What the machine has.
    Sysno::sysinfo,
    // How busy this process is.
    Sysno::getrusage,
];
