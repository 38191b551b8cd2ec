//! Other processes on a simulated machine, which know nothing of Berth.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::io::Errno;

use super::{
    kernel::files::FileId,
    process::start_time,
    shared::{Kind, OpenFile, Shared, lock},
};
use crate::PciAddress;

/// A scripted process. Dropping it ends it: its files close.
#[derive(Debug)]
pub struct Foreign {
    shared: Arc<Shared>,
    pid: i32,
}

impl Foreign {
    pub(crate) fn start(shared: &Arc<Shared>, name: &str) -> Self {
        let pid = lock(&shared.processes).start(name);
        Self { shared: Arc::clone(shared), pid }
    }

    /// Its pid: larger than any of a real process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What stands in the place of `/proc/PID/stat`'s start time.
    #[must_use]
    pub fn start_time(&self) -> u64 {
        start_time(self.pid)
    }

    /// Whether it still runs: somebody may have killed it.
    #[must_use]
    pub fn running(&self) -> bool {
        lock(&self.shared.processes).get(self.pid).is_some()
    }

    /// Whether somebody stopped it.
    #[must_use]
    pub fn stopped(&self) -> bool {
        lock(&self.shared.processes).get(self.pid).is_some_and(|process| process.stopped)
    }

    /// The limit that somebody set it.
    ///
    /// # Units
    /// Bytes.
    #[must_use]
    pub fn memlock_bytes(&self) -> Option<u64> {
        lock(&self.shared.processes).get(self.pid)?.memlock_bytes
    }

    /// Opens `/dev/vfio/N`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_group(&self, group: u32) -> Result<(), Errno> {
        let id = self.shared.kernel().open_group(group)?;
        self.keep(id, Kind::Group(group))
    }

    /// Opens `/dev/vfio/N` and puts it into a container.
    ///
    /// # Errors
    /// The kernel's; nothing stays open then.
    pub fn hold_group(&self, group: u32) -> Result<(), Errno> {
        let container = self.shared.kernel().open_container()?;
        let container = self.shared.own(container, Kind::Container);
        let id = self.shared.kernel().open_group(group)?;
        let file = self.shared.own(id, Kind::Group(group));
        self.shared.kernel().set_container(file.id, container.id)?;
        self.keep_files([file, container])
    }

    /// Opens the cdev of a device, without binding it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_cdev(&self, device: PciAddress) -> Result<(), Errno> {
        let id = self.shared.kernel().open_cdev(device)?;
        self.keep(id, Kind::Device(device))
    }

    /// Opens the vhost node of a device: its host driver attaches a domain of its own meanwhile.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_vhost(&self, device: PciAddress) -> Result<(), Errno> {
        let id = self.shared.kernel().open_vhost(device)?;
        self.keep(id, Kind::Vhost(device))
    }

    /// Opens a device and binds it to an iommufd of its own.
    ///
    /// # Errors
    /// The kernel's; nothing stays open then.
    pub fn bind(&self, device: PciAddress) -> Result<(), Errno> {
        let context = self.shared.kernel().open_iommufd()?;
        let context = self.shared.own(context, Kind::Iommufd);
        let id = self.shared.kernel().open_cdev(device)?;
        let file = self.shared.own(id, Kind::Device(device));
        self.shared.kernel().bind_iommufd(file.id, context.id)?;
        self.keep_files([file, context])
    }

    /// Takes a descriptor, as from the hand-over socket.
    ///
    /// # Errors
    /// EBADFD: it isn't one of this host. ESRCH: the process doesn't run any more.
    pub fn receive(&self, fd: OwnedFd) -> Result<(), Errno> {
        let (_, kind) = self.shared.recognise(&fd).ok_or(Errno::BADFD)?;
        let mut processes = lock(&self.shared.processes);
        processes.get(self.pid).ok_or(Errno::SRCH)?.received.push((kind, fd));
        Ok(())
    }

    /// Closes everything.
    pub fn close_all(&self) {
        let closing = {
            let mut processes = lock(&self.shared.processes);
            processes.get(self.pid).map(|process| {
                (std::mem::take(&mut process.files), std::mem::take(&mut process.received))
            })
        };
        // The files close here, with no lock held.
        drop(closing);
        drop(self.shared.kernel());
    }

    fn keep(&self, id: FileId, kind: Kind) -> Result<(), Errno> {
        let file = self.shared.own(id, kind);
        self.keep_files([file])
    }

    fn keep_files<const N: usize>(&self, files: [Arc<OpenFile>; N]) -> Result<(), Errno> {
        let mut processes = lock(&self.shared.processes);
        processes.get(self.pid).ok_or(Errno::SRCH)?.files.extend(files);
        Ok(())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let ended = lock(&self.shared.processes).end(self.pid);
        drop(ended);
        drop(self.shared.kernel());
    }
}
