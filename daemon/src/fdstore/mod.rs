//! Descriptors that outlive the process: kept by the service manager, and given to the next one.
//!
//! What is in the store stays open, whatever becomes of this process: so do its claims and its DMA.
//! What is to be closed has to leave the store first, as the kernel waits for the last close.

mod note;
mod systemd;

use std::{
    collections::HashSet,
    fmt::Debug,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use berth_host::PciAddress;
use berth_ownership::ContextId;

pub(crate) use note::{DeviceNote, Note, NoteFile, RegistrationNote};
pub use systemd::{SystemdStore, manager};

use crate::acts::runtime::lock;

/// What names of kept descriptors begin with.
const PREFIX: &str = "berth.";

/// Somebody who keeps duplicates of descriptors by name.
pub trait FdStore: Send + Sync + Debug {
    /// Keeps a duplicate.
    ///
    /// # Errors
    /// It could not be sent.
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()>;

    /// Lets go of all of this name.
    ///
    /// # Errors
    /// It could not be sent.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Waits until what was said before is done.
    ///
    /// # Errors
    /// No answer in time.
    fn settle(&self) -> io::Result<()>;

    /// How many it has room for, where that is known.
    fn room(&self) -> Option<usize>;
}

/// A descriptor that came back.
#[derive(Debug)]
pub struct KeptFd {
    /// Under which name it was kept.
    pub name: String,
    /// The descriptor.
    pub fd: OwnedFd,
}

impl KeptFd {
    /// Whether a descriptor that was passed to this process is one that it kept before.
    #[must_use]
    pub fn is_kept(name: &str) -> bool {
        name.starts_with(PREFIX)
    }
}

/// The context's own descriptor.
pub(crate) fn context_name(context: &ContextId) -> String {
    format!("{PREFIX}context.{context}")
}

/// The note of what is in a context.
pub(crate) fn note_name(context: &ContextId) -> String {
    format!("{PREFIX}note.{context}")
}

/// The context that a note is of.
pub(crate) fn context_of_note(name: &str) -> Option<ContextId> {
    name.strip_prefix(PREFIX)?.strip_prefix("note.").map(ContextId::new)
}

/// A device. A name can't have colons.
pub(crate) fn device_name(device: PciAddress) -> String {
    format!("{PREFIX}device.{}", device.to_string().replace(':', "_"))
}

/// One of the descriptors of a hold.
pub(crate) fn hold_name(group: u32, index: usize) -> String {
    format!("{PREFIX}hold.{group}.{index}")
}

/// What a daemon makes of a stored note and writes in its place, for fuzzers and for the replay of
/// what they found.
///
/// # Errors
/// It is no note that this build understands.
pub fn note_again(stored: &[u8]) -> io::Result<Vec<u8>> {
    note::again(stored)
}

/// The context that a stored descriptor's name says that it is a note of, and the name that such a
/// note is stored under.
#[must_use]
pub fn note_named(name: &str) -> Option<(String, String)> {
    context_of_note(name).map(|context| (context.to_string(), note_name(&context)))
}

/// What this process has in the store, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    store: Option<Arc<dyn FdStore>>,
    names: Mutex<HashSet<String>>,
    /// This process ends, and what is kept stays.
    leaving: AtomicBool,
}

impl Keeper {
    pub(crate) fn new(store: Option<Arc<dyn FdStore>>) -> Self {
        Self { store, ..Self::default() }
    }

    /// Whether there is a store.
    pub(crate) fn is_there(&self) -> bool {
        self.store.is_some()
    }

    /// From now on nothing is removed any more.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    /// Sends descriptors to the store; [`Self::settle`] waits for it. `None` where they aren't kept.
    pub(crate) fn keep(self: &Arc<Self>, fds: Vec<(String, OwnedFd)>) -> Option<Kept> {
        let store = self.store.as_ref()?;
        if store.room().is_some_and(|room| lock(&self.names).len() + fds.len() > room) {
            tracing::error!("the file descriptor store is full: raise FileDescriptorStoreMax=");
            return None;
        }
        let mut kept = Kept { keeper: Arc::clone(self), names: Vec::new() };
        for (name, fd) in fds {
            if let Err(error) = store.keep(&name, fd.as_fd()) {
                tracing::error!(name, %error, "a descriptor could not be stored");
                return None;
            }
            lock(&self.names).insert(name.clone());
            kept.names.push(name);
        }
        Some(kept)
    }

    /// What is in the store under these names from a process before.
    pub(crate) fn kept_before(self: &Arc<Self>, names: Vec<String>) -> Kept {
        lock(&self.names).extend(names.iter().cloned());
        Kept { keeper: Arc::clone(self), names }
    }

    /// Waits until what was sent is in the store.
    pub(crate) fn settle(&self) {
        if let Some(store) = &self.store
            && let Err(error) = store.settle()
        {
            tracing::error!(%error, "the file descriptor store doesn't answer");
        }
    }

    /// Lets go of names.
    pub(crate) fn remove(&self, names: &[String]) {
        let Some(store) = self.store.as_ref().filter(|_| !self.leaving.load(Ordering::SeqCst))
        else {
            return;
        };
        for name in names {
            if let Err(error) = store.remove(name) {
                tracing::error!(name, %error, "a descriptor stays stored");
            }
            lock(&self.names).remove(name);
        }
        self.settle();
    }
}

/// What is kept of one thing. Dropping it takes that out of the store, and waits for it.
#[derive(Debug)]
pub(crate) struct Kept {
    keeper: Arc<Keeper>,
    names: Vec<String>,
}

impl Kept {
    /// Under which names.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeper.remove(&self.names);
    }
}
