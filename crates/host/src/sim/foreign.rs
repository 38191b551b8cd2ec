//! Other processes on a simulated machine, which know nothing of Berth.

use std::{os::fd::OwnedFd, sync::Arc};

use berth_uapi::VfToken;
use rustix::io::Errno;

use super::{
    kernel::files::FileId,
    process::start_time,
    shared::{Kind, OpenFile, Shared, lock},
};
use crate::{Node, PciAddress};

/// A scripted process. Dropping it ends it: its files close.
#[derive(Debug)]
pub struct Foreign {
    shared: Arc<Shared>,
    pid: i32,
    uid: u32,
}

impl Foreign {
    pub(crate) fn start(shared: &Arc<Shared>, name: &str, uid: u32) -> Self {
        let pid = lock(&shared.processes).start(name, uid);
        Self { shared: Arc::clone(shared), pid, uid }
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

    /// Puts it into a unit of the service manager.
    pub fn enter_unit(&self, unit: &str) {
        if let Some(process) = lock(&self.shared.processes).get(self.pid) {
            unit.clone_into(&mut process.unit);
        }
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
    /// The kernel's; EACCES for a user whom its access list doesn't name.
    pub fn open_group(&self, group: u32) -> Result<(), Errno> {
        let file = self.group(group)?;
        self.keep_files([file])
    }

    /// Opens `/dev/vfio/N` and puts it into a container.
    ///
    /// # Errors
    /// As [`Self::open_group`]; nothing stays open then.
    pub fn hold_group(&self, group: u32) -> Result<(), Errno> {
        let files = self.contained(group)?;
        self.keep_files(files)
    }

    /// Opens a device through its group, as a driver in user space does.
    ///
    /// # Errors
    /// As [`Self::open_group`]; nothing stays open then.
    pub fn open_by_group(&self, device: PciAddress) -> Result<(), Errno> {
        self.open_by_group_showing(device, None)
    }

    /// The same, with a VF token.
    ///
    /// # Errors
    /// As [`Self::open_by_group`]; EACCES: it is another one. EINVAL: it takes none.
    pub fn open_by_group_showing(
        &self,
        device: PciAddress,
        token: Option<VfToken>,
    ) -> Result<(), Errno> {
        let number = self.shared.kernel().group_of(device)?;
        let [file, container] = self.contained(number)?;
        self.shared.kernel().set_iommu(container.id)?;
        let id = self.shared.kernel().get_device_fd_by(file.id, device, token)?;
        let opened = self.shared.own(id, Kind::Device(device));
        self.keep_files([opened, file, container])
    }

    fn group(&self, number: u32) -> Result<Arc<OpenFile>, Errno> {
        let id = {
            let mut kernel = self.shared.kernel();
            kernel.may_open(Node::Group(number), self.uid)?;
            kernel.open_group(number)?
        };
        Ok(self.shared.own(id, Kind::Group(number)))
    }

    /// A group and the container that it is in.
    fn contained(&self, number: u32) -> Result<[Arc<OpenFile>; 2], Errno> {
        let container = self.shared.kernel().open_container()?;
        let container = self.shared.own(container, Kind::Container);
        let file = self.group(number)?;
        self.shared.kernel().set_container(file.id, container.id)?;
        Ok([file, container])
    }

    /// Opens the cdev of a device, without binding it.
    ///
    /// # Errors
    /// The kernel's; EACCES for a user whom its access list doesn't name.
    pub fn open_cdev(&self, device: PciAddress) -> Result<(), Errno> {
        let file = self.cdev(device)?;
        self.keep_files([file])
    }

    fn cdev(&self, device: PciAddress) -> Result<Arc<OpenFile>, Errno> {
        let id = {
            let mut kernel = self.shared.kernel();
            kernel.may_open(Node::Cdev(device), self.uid)?;
            kernel.open_cdev(device)?
        };
        Ok(self.shared.own(id, Kind::Device(device)))
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
        let id = {
            let mut kernel = self.shared.kernel();
            kernel.may_open(Node::Iommu, self.uid)?;
            kernel.open_iommufd()?
        };
        let context = self.shared.own(id, Kind::Iommufd);
        let file = self.cdev(device)?;
        self.shared.kernel().bind_iommufd(file.id, context.id)?;
        self.keep_files([file, context])
    }

    /// Binds a cdev that it was handed to the iommufd that it was handed.
    ///
    /// # Errors
    /// EBADF: it has no such descriptors. Else the kernel's.
    pub fn bind_received(&self, device: PciAddress) -> Result<(), Errno> {
        self.bind_received_showing(device, None)
    }

    /// The same, with a VF token.
    ///
    /// # Errors
    /// As [`Self::bind_received`]; EACCES: it is another one. EINVAL: it takes none.
    pub fn bind_received_showing(
        &self,
        device: PciAddress,
        token: Option<VfToken>,
    ) -> Result<(), Errno> {
        let cdev = self.received(Kind::Device(device)).ok_or(Errno::BADF)?;
        let context = self.received(Kind::Iommufd).ok_or(Errno::BADF)?;
        self.shared.kernel().bind_iommufd_by(cdev, context, token).map(drop)
    }

    /// Maps a page at an address in an I/O address space that it makes in the iommufd that it was
    /// handed, and attaches a device to that.
    ///
    /// # Errors
    /// As [`Self::bind_received`].
    pub fn map_received(&self, device: PciAddress, iova: u64) -> Result<(), Errno> {
        let cdev = self.received(Kind::Device(device)).ok_or(Errno::BADF)?;
        let context = self.received(Kind::Iommufd).ok_or(Errno::BADF)?;
        let mut kernel = self.shared.kernel();
        let ioas = kernel.ioas_alloc(context)?;
        kernel.attach_pt(cdev, ioas)?;
        kernel.iommufds.get(&context).ok_or(Errno::BADF)?.space(ioas)?.map_page(iova)
    }

    /// Whether a device in one of the I/O address spaces of the iommufd that it was handed reaches
    /// memory at an address.
    #[must_use]
    pub fn reaches(&self, iova: u64) -> bool {
        let Some(context) = self.received(Kind::Iommufd) else { return false };
        let spaces = self.shared.kernel().iommufds.get(&context).map(|ctx| ctx.spaces());
        spaces.unwrap_or_default().iter().any(|space| space.lookup(iova).is_some())
    }

    fn received(&self, wanted: Kind) -> Option<FileId> {
        let processes = &mut lock(&self.shared.processes);
        let received = &processes.get(self.pid)?.received;
        let (_, fd) = received.iter().rev().find(|(kind, _)| *kind == wanted)?;
        self.shared.recognise(fd).map(|(id, _)| id)
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
        files.iter().for_each(|file| self.shared.is_foreign(file));
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
