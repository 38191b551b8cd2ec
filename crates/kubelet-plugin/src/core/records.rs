//! What was allocated: a file that outlives this program, because the kubelet asks only once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::config::{Delivery, Resource};

/// A node that a container opens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Node {
    /// The same on the host and in the container.
    pub path: String,
}

/// The devices of one resource that one container got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// `a-` and 12 hexadecimal digits; never used again.
    pub name: String,
    /// The resource.
    pub resource: String,
    /// How the container comes to its devices: what it was told when it was admitted stays.
    #[serde(default)]
    pub delivery: Delivery,
    /// Stable ids of the groups.
    pub groups: BTreeSet<String>,
    /// Counts up: of those with the same groups the highest is the one that the kubelet means.
    pub serial: u64,
    /// When it was made, or last allowed to start; unix milliseconds.
    pub touched_ms: u64,
    /// The request id of the reservation that is being made, so that a second attempt is the same.
    pub request_id: String,
    /// Its reservation in `berthd`, once it was made.
    pub reservation: Option<String>,
    /// The nodes in its CDI file.
    pub nodes: Vec<Node>,
    /// `namespace/name`, once the kubelet has told.
    pub pod: Option<String>,
    /// The control groups in which its processes were seen.
    pub cgroups: BTreeSet<String>,
}

impl Allocation {
    /// How people are told of it.
    #[must_use]
    pub fn title(&self) -> String {
        match &self.pod {
            Some(pod) => format!("pod {pod} ({})", self.name),
            None => format!("allocation {}", self.name),
        }
    }

    /// Whether a runtime can make a container with it.
    #[must_use]
    pub fn is_delivered(&self) -> bool {
        self.delivery.by_socket() || !self.nodes.is_empty()
    }

    /// As it was before it started.
    #[must_use]
    pub fn without_reservation(&self) -> Self {
        Self {
            request_id: String::new(),
            reservation: None,
            nodes: Vec::new(),
            cgroups: BTreeSet::new(),
            ..self.clone()
        }
    }

    /// Whether any group is in both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        !self.groups.is_disjoint(&other.groups)
    }
}

/// The records, in memory and in their file.
#[derive(Debug)]
pub struct Records {
    file: PathBuf,
    all: Mutex<BTreeMap<String, Allocation>>,
}

/// Now, in unix milliseconds.
#[must_use]
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Records {
    /// Reads them; none where there is no file yet.
    ///
    /// # Errors
    /// Of the system, or a file that isn't what was written.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(state_dir)?;
        let file = state_dir.join("allocations.json");
        let all: BTreeMap<String, Allocation> = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| io::Error::other(format!("{}: {error}", file.display())))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { file, all: Mutex::new(all) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Allocation>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new one. It counts even where it can't be written: an error would end the pod, and the
    /// next change writes it, too.
    pub fn add(&self, resource: &Resource, groups: &BTreeSet<String>) -> Allocation {
        let digits = uuid::Uuid::new_v4().simple().to_string();
        let mut all = self.lock();
        let serial = all.values().map(|one| one.serial).max().unwrap_or(0) + 1;
        let allocation = Allocation {
            name: format!("a-{}", digits.get(..12).unwrap_or(&digits)),
            resource: resource.name.clone(),
            delivery: resource.delivery,
            groups: groups.clone(),
            serial,
            touched_ms: now_ms(),
            ..Allocation::default()
        };
        all.insert(allocation.name.clone(), allocation.clone());
        if let Err(error) = self.write(&all) {
            tracing::error!(%error, allocation = allocation.name, "the allocation is not on disk");
        }
        allocation
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Allocation> {
        self.lock().values().cloned().collect()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Allocation> {
        self.lock().get(name).cloned()
    }

    /// The newest with exactly these groups.
    #[must_use]
    pub fn newest(&self, resource: &str, groups: &BTreeSet<String>) -> Option<Allocation> {
        let all = self.lock();
        let same = all.values().filter(|one| one.resource == resource && one.groups == *groups);
        same.max_by_key(|one| one.serial).cloned()
    }

    /// Replaces one, and writes it.
    ///
    /// # Errors
    /// Of the system.
    pub fn put(&self, allocation: &Allocation) -> io::Result<()> {
        let mut all = self.lock();
        all.insert(allocation.name.clone(), allocation.clone());
        self.write(&all)
    }

    /// Forgets one.
    ///
    /// # Errors
    /// Of the system.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let mut all = self.lock();
        all.remove(name);
        self.write(&all)
    }

    fn write(&self, all: &BTreeMap<String, Allocation>) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(all).map_err(io::Error::other)?;
        crate::node::replace_file(&self.file, &bytes)
    }
}
