//! Descriptors that stand for files of the simulated kernel in other processes.
//!
//! Each is a memfd whose open file carries a `flock`: all duplicates share that open file, wherever
//! they were sent. A second open file of the same memfd asks for the lock; it gets it once the last
//! duplicate is closed, which is the last close of the simulated file.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::{
    fs::{FlockOperation, MemfdFlags, Mode, OFlags},
    io::Errno,
};

use super::shared::Kind;

/// A descriptor that left, or may.
#[derive(Debug)]
pub(crate) struct Export {
    pub(crate) kind: Kind,
    /// This process's own duplicate, while its handle is open.
    own: Option<OwnedFd>,
    /// The other open file, which asks for the lock.
    probe: OwnedFd,
}

impl Export {
    /// Makes a descriptor; `note` is what it says when it is read.
    pub(crate) fn new(kind: Kind, note: &str) -> Result<Self, Errno> {
        let name = match kind {
            Kind::Container => "sim-vfio".to_owned(),
            Kind::Iommufd => "sim-iommu".to_owned(),
            Kind::Group(number) => format!("sim-vfio-{number}"),
            Kind::Device(address) => format!("sim-{address}"),
            Kind::Vhost(address) => format!("sim-vhost-{address}"),
        };
        let own = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
        rustix::io::write(&own, note.as_bytes())?;
        rustix::fs::flock(&own, FlockOperation::NonBlockingLockExclusive)?;
        let path = format!("/proc/self/fd/{}", own.as_raw_fd());
        let probe = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { kind, own: Some(own), probe })
    }

    /// A duplicate to give away.
    pub(crate) fn duplicate(&self) -> Result<OwnedFd, Errno> {
        let own = self.own.as_ref().ok_or(Errno::BADF)?;
        rustix::io::fcntl_dupfd_cloexec(own, 0)
    }

    /// This process's handle is closed.
    pub(crate) fn close(&mut self) {
        self.own = None;
    }

    /// A handle is made again on a file that lives outside only: whoever sent it has it open.
    pub(crate) fn reopen(&mut self) {
        if self.own.is_none() {
            self.own = rustix::io::fcntl_dupfd_cloexec(&self.probe, 0).ok();
        }
    }

    /// Whether the last duplicate is closed.
    pub(crate) fn ended(&self) -> bool {
        self.own.is_none()
            && rustix::fs::flock(&self.probe, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    /// Device and inode: the same for all duplicates.
    pub(crate) fn identity(&self) -> Result<(u64, u64), Errno> {
        identity(&self.probe)
    }
}

/// Device and inode of a descriptor.
pub(crate) fn identity(fd: &impl AsFd) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_with_the_last_duplicate_anywhere() {
        let mut export = Export::new(Kind::Iommufd, "x").unwrap();
        let duplicate = export.duplicate().unwrap();
        let sent = duplicate.try_clone().unwrap();
        assert!(!export.ended());
        export.close();
        assert!(!export.ended());
        drop(duplicate);
        assert!(!export.ended());
        drop(sent);
        assert!(export.ended());
    }
}
