//! Sockets in containers: how a container gets descriptors instead of nodes.
//!
//! Each allocation that is delivered by socket has a directory of its own with one socket in it,
//! which its CDI file mounts into its container, and no other has. Here stands the plugin and not
//! `berthd`: to that one a user is a number, and the number of a user in a container is also that of
//! others. So the plugin looks whose process asks, and names it as the holder.

mod desk;
mod serve;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use berth_handover::asynchronous::bind_socket;
use tokio::task::AbortHandle;

use crate::{config::Config, core::Records, node::names_in};

/// The socket's name in its directory.
pub const SOCKET: &str = "handover.sock";

/// Where the directory of an allocation is in its container.
#[must_use]
pub fn container_dir(allocation: &str) -> String {
    format!("/run/berth/{allocation}")
}

/// Where its socket is in its container.
#[must_use]
pub fn container_socket(allocation: &str) -> String {
    format!("{}/{SOCKET}", container_dir(allocation))
}

/// The sockets of all allocations.
#[derive(Debug)]
pub struct Sockets {
    dir: PathBuf,
    desk: Arc<desk::Desk>,
    served: Mutex<BTreeMap<String, Served>>,
}

/// Dropped, it is served no more, and neither is who is connected.
#[derive(Debug)]
struct Served(AbortHandle);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sockets {
    /// None yet.
    #[must_use]
    pub fn new(config: &Config, records: Arc<Records>) -> Self {
        let desk = desk::Desk::new(config, records);
        Self { dir: config.socket_dir.clone(), desk: Arc::new(desk), served: Mutex::default() }
    }

    /// Where the directory of an allocation is on the host.
    #[must_use]
    pub fn host_dir(&self, allocation: &str) -> PathBuf {
        self.dir.join(allocation)
    }

    /// Serves the socket of an allocation, in the directory that is there already where a container
    /// has it mounted. It is open to every user: those of the host don't get to the directory.
    ///
    /// # Errors
    /// Of the system, with the file.
    pub fn open(&self, allocation: &str) -> io::Result<()> {
        let path = self.host_dir(allocation).join(SOCKET);
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.get(allocation).is_some_and(|one| !one.0.is_finished()) && path.exists() {
            return Ok(());
        }
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let listener = self.listen(&path).map_err(named)?;
        let task =
            tokio::spawn(serve::serve(listener, Arc::clone(&self.desk), Arc::from(allocation)));
        served.insert(allocation.to_owned(), Served(task.abort_handle()));
        Ok(())
    }

    fn listen(&self, path: &Path) -> io::Result<std::os::fd::OwnedFd> {
        let parent = path.parent().unwrap_or(&self.dir);
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        fs::set_permissions(parent, fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = bind_socket(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        Ok(listener)
    }

    /// Serves an allocation's socket no more, and removes its directory; also where there is none.
    ///
    /// # Errors
    /// Of the system.
    pub fn close(&self, allocation: &str) -> io::Result<()> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).remove(allocation);
        match fs::remove_dir_all(self.host_dir(allocation)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the directories of allocations that are not among these.
    ///
    /// # Errors
    /// Of the system.
    pub fn keep_only(&self, names: &BTreeSet<String>) -> io::Result<()> {
        for name in names_in(&self.dir)? {
            if name.starts_with("a-") && !names.contains(&name) {
                self.close(&name)?;
            }
        }
        Ok(())
    }
}
