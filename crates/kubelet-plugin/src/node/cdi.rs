//! CDI files: one for each allocation, written when a container may start, removed when the groups
//! are free. Nodes have no uid, gid or mode: the runtime makes them the container user's. Who gets
//! descriptors has no nodes, but the directory of its socket.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    core::{Allocation, Node},
    handout,
};

/// The lowest version that has all that is written, as a runtime refuses what it doesn't know.
const VERSION: &str = "0.5.0";
const PREFIX: &str = "berth-";

/// The directory of the files.
#[derive(Debug, Clone)]
pub struct Cdi {
    dir: PathBuf,
    socket_dir: PathBuf,
}

impl Cdi {
    /// In a directory, which is made when it is needed; with sockets in another one.
    #[must_use]
    pub fn new(dir: &Path, socket_dir: &Path) -> Self {
        Self { dir: dir.to_owned(), socket_dir: socket_dir.to_owned() }
    }

    fn file(&self, allocation: &str) -> PathBuf {
        self.dir.join(format!("{PREFIX}{allocation}.json"))
    }

    /// Writes the file of an allocation, unless it is there already as it should be.
    ///
    /// # Errors
    /// Of the system.
    pub fn write(&self, kind: &str, allocation: &Allocation) -> io::Result<()> {
        let edits = if allocation.delivery.by_socket() {
            json!({"mounts": [mount(&allocation.name, &self.socket_dir.join(&allocation.name))]})
        } else {
            json!({"deviceNodes": nodes(&allocation.nodes)})
        };
        let bytes = serde_json::to_vec_pretty(&spec(kind, &allocation.name, &edits))
            .map_err(io::Error::other)?;
        let file = self.file(&allocation.name);
        if fs::read(&file).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        fs::create_dir_all(&self.dir)?;
        super::replace_file(&file, &bytes)
    }

    /// Removes the file of an allocation; also where there is none.
    ///
    /// # Errors
    /// Of the system.
    pub fn remove(&self, allocation: &str) -> io::Result<()> {
        match fs::remove_file(self.file(allocation)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the files of allocations that are not among these.
    ///
    /// # Errors
    /// Of the system.
    pub fn keep_only(&self, names: &BTreeSet<String>) -> io::Result<()> {
        for name in super::names_in(&self.dir)? {
            let stem = name
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.strip_suffix(".json").or_else(|| rest.strip_suffix(".tmp")));
            // `a-`: other files of Berth's are not of an allocation.
            if let Some(stem) = stem.filter(|stem| stem.starts_with("a-"))
                && !names.contains(stem)
            {
                fs::remove_file(self.dir.join(&name))?;
            }
        }
        Ok(())
    }
}

fn nodes(nodes: &[Node]) -> Value {
    nodes.iter().map(|node| json!({"path": node.path, "permissions": "rw"})).collect()
}

/// A read-only mount lets its processes connect and nothing else.
fn mount(allocation: &str, dir: &Path) -> Value {
    json!({
        "hostPath": dir,
        "containerPath": handout::container_dir(allocation),
        "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
    })
}

fn spec(kind: &str, name: &str, edits: &Value) -> Value {
    json!({
        "cdiVersion": VERSION,
        "kind": kind,
        "devices": [{"name": name, "containerEdits": edits}],
    })
}
