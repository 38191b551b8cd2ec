//! What all handles of one simulated host share: the kernel, its faults, its processes, and the
//! descriptors that left.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
};

use rustix::io::Errno;

use super::{
    context::Groups,
    export::{Export, identity},
    fault::{At, Faults, Site},
    kernel::{Kernel, files::FileId},
    process::Processes,
};
use crate::{PciAddress, VfioError};

/// What an open file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Container,
    Iommufd,
    Group(u32),
    Device(PciAddress),
    /// The node through which the host driver of a device gets a domain of its own.
    Vhost(PciAddress),
}

/// One simulated machine.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) release: String,
    pub(crate) boot_id: String,
    pub(crate) helper_timeout_ms: u64,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) faults: Faults,
    pub(crate) processes: Mutex<Processes>,
    /// Devices that an act is at which may wait.
    pub(crate) waiting: Mutex<Vec<PciAddress>>,
    /// What was written to sysfs, path and value, since somebody wants to know.
    pub(crate) written: Mutex<Option<Vec<(String, String)>>>,
    kernel: Mutex<Kernel>,
    /// Something was closed: who waits for a device may go on.
    closed: Condvar,
    exports: Mutex<BTreeMap<FileId, Export>>,
    /// What this process has open, and no scripted one.
    ours: Mutex<BTreeMap<FileId, Kind>>,
    /// Open contexts, for descriptors that come back.
    contexts: Mutex<BTreeMap<FileId, Weak<Groups>>>,
}

impl Shared {
    pub(crate) fn new(
        kernel: Kernel,
        name: &str,
        release: &str,
        helper_timeout_ms: u64,
        memory_bytes: Option<u64>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            release: release.to_owned(),
            boot_id: boot_id(),
            helper_timeout_ms,
            memory_bytes,
            faults: Faults::default(),
            processes: Mutex::default(),
            waiting: Mutex::default(),
            written: Mutex::default(),
            kernel: Mutex::new(kernel),
            closed: Condvar::new(),
            exports: Mutex::default(),
            ours: Mutex::default(),
            contexts: Mutex::default(),
        }
    }

    /// The kernel, after descriptors that were closed elsewhere took effect.
    pub(crate) fn kernel(&self) -> MutexGuard<'_, Kernel> {
        let gone: Vec<(FileId, Kind)> = {
            let mut exports = lock(&self.exports);
            let gone: Vec<_> = exports
                .iter()
                .filter(|(_, export)| export.ended())
                .map(|(id, export)| (*id, export.kind))
                .collect();
            for (id, _) in &gone {
                exports.remove(id);
            }
            gone
        };
        let mut kernel = lock(&self.kernel);
        for (id, kind) in gone {
            release(&mut kernel, id, kind);
            self.closed.notify_all();
        }
        kernel
    }

    /// Waits until a device isn't open, and gives the kernel.
    pub(crate) fn kernel_without_users(&self, device: PciAddress) -> MutexGuard<'_, Kernel> {
        let mut kernel = self.kernel();
        while kernel.in_use(device) {
            let step = std::time::Duration::from_millis(20);
            let (guard, _) =
                self.closed.wait_timeout(kernel, step).unwrap_or_else(PoisonError::into_inner);
            // Descriptors that other processes close are only seen by asking.
            drop(guard);
            kernel = self.kernel();
        }
        kernel
    }

    /// Passes the scripted faults of a call.
    pub(crate) fn pass(
        &self,
        site: Site,
        device: Option<PciAddress>,
        group: Option<u32>,
    ) -> Result<(), Errno> {
        let group = group.or_else(|| device.and_then(|device| self.kernel().group_of(device).ok()));
        self.faults.pass(&At { site, device, group })
    }

    /// Wraps a file that was just opened.
    pub(crate) fn own(self: &Arc<Self>, id: FileId, kind: Kind) -> Arc<OpenFile> {
        lock(&self.ours).insert(id, kind);
        Arc::new(OpenFile { shared: Arc::clone(self), id, kind })
    }

    /// A file is a scripted process's.
    pub(crate) fn is_foreign(&self, file: &OpenFile) {
        lock(&self.ours).remove(&file.id);
    }

    /// Closes all that this process has open, but for what handles that are still used close.
    pub(crate) fn process_ends(&self) {
        lock(&self.contexts).clear();
        let ours = std::mem::take(&mut *lock(&self.ours));
        for (id, kind) in ours {
            self.close(id, kind);
        }
    }

    /// The same of a file that lives outside.
    pub(crate) fn own_again(self: &Arc<Self>, id: FileId, kind: Kind) -> Arc<OpenFile> {
        if let Some(export) = lock(&self.exports).get_mut(&id) {
            export.reopen();
        }
        self.own(id, kind)
    }

    /// A descriptor for a file: what other processes get.
    pub(crate) fn descriptor(&self, file: &OpenFile, note: &str) -> Result<OwnedFd, Errno> {
        let mut exports = lock(&self.exports);
        if let Some(export) = exports.get(&file.id) {
            return export.duplicate();
        }
        let export = Export::new(file.kind, note)?;
        let duplicate = export.duplicate();
        exports.insert(file.id, export);
        duplicate
    }

    /// The file that a descriptor of this host stands for.
    pub(crate) fn recognise(&self, fd: &OwnedFd) -> Option<(FileId, Kind)> {
        let seen = identity(fd).ok()?;
        let exports = lock(&self.exports);
        exports.iter().find(|(_, e)| e.identity() == Ok(seen)).map(|(id, e)| (*id, e.kind))
    }

    /// Descriptors that left, by what they are.
    pub(crate) fn exported(&self, wanted: &dyn Fn(Kind) -> bool) -> Vec<(Kind, (u64, u64))> {
        let exports = lock(&self.exports);
        let wanted = exports.values().filter(|export| wanted(export.kind));
        wanted.filter_map(|export| Some((export.kind, export.identity().ok()?))).collect()
    }

    /// The file of a kind that left last, of those that are open outside.
    pub(crate) fn last_exported(&self, wanted: Kind) -> Option<FileId> {
        drop(self.kernel());
        let exports = lock(&self.exports);
        exports.iter().rev().find(|(_, export)| export.kind == wanted).map(|(id, _)| *id)
    }

    /// The live context of a file, or a new handle on one that only lives outside.
    pub(crate) fn context(self: &Arc<Self>, id: FileId, kind: Kind) -> Arc<Groups> {
        let mut contexts = lock(&self.contexts);
        if let Some(groups) = contexts.get(&id).and_then(Weak::upgrade) {
            return groups;
        }
        let groups = Arc::new(Groups::new(self.own_again(id, kind)));
        contexts.retain(|_, known| known.strong_count() > 0);
        contexts.insert(id, Arc::downgrade(&groups));
        groups
    }

    fn close(&self, id: FileId, kind: Kind) {
        lock(&self.ours).remove(&id);
        // A descriptor that another process still has keeps the file open.
        if let Some(export) = lock(&self.exports).get_mut(&id) {
            export.close();
        } else {
            release(&mut lock(&self.kernel), id, kind);
        }
        drop(self.kernel());
        self.closed.notify_all();
    }
}

/// A file of the simulated kernel that this process has open. Dropping it closes it.
pub(crate) struct OpenFile {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: FileId,
    pub(crate) kind: Kind,
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenFile").field("id", &self.id).field("kind", &self.kind).finish()
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.shared.close(self.id, self.kind);
    }
}

fn release(kernel: &mut Kernel, id: FileId, kind: Kind) {
    match kind {
        Kind::Container => kernel.close_container(id),
        Kind::Iommufd => kernel.close_iommufd(id),
        Kind::Group(_) => kernel.put_group_file(id),
        Kind::Device(_) => kernel.close_device_file(id),
        Kind::Vhost(_) => kernel.close_vhost(id),
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a [`VfioError`] of an errno.
pub(crate) fn failed(op: &str, object: impl Into<String>) -> impl FnOnce(Errno) -> VfioError {
    let object = object.into();
    move |errno| VfioError::new(op, object, errno)
}

/// A boot id of its own for each simulated boot.
fn boot_id() -> String {
    use sha2::{Digest, Sha256};
    use std::sync::atomic::{AtomicU64, Ordering};
    static BOOTS: AtomicU64 = AtomicU64::new(0);
    let boot = BOOTS.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_nanos());
    let seed = format!("{}-{boot}-{now}", std::process::id());
    let hex: String =
        Sha256::digest(seed).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}
