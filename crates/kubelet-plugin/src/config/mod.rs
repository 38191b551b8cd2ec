//! The configuration: which groups are which resource, and where everything is.

mod check;
mod delivery;
mod door;
mod raw;
mod reload;
mod size;

use std::path::{Path, PathBuf};

use berth_proto::v1;

pub use delivery::Delivery;
pub use door::Door;

/// Where the file is unless told otherwise.
pub const FILE: &str = "/etc/berth/kubelet-plugin.toml";

/// A configuration that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("read {}: {message}; name a file with --config", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The system's word for it.
        message: String,
    },
    /// A line of the file is wrong.
    #[error("{}:{line}: {message}; {way_out}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
        /// What to do.
        way_out: String,
    },
}

/// Everything that a run needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `berthd`'s gRPC socket.
    pub berthd: PathBuf,
    /// `berthd`'s hand-over socket.
    pub handover: PathBuf,
    /// Where the kubelet looks for device plugins.
    pub device_plugins: PathBuf,
    /// The kubelet's PodResources socket.
    pub pod_resources: PathBuf,
    /// Where CDI files are written.
    pub cdi_dir: PathBuf,
    /// Where the allocations are recorded.
    pub state_dir: PathBuf,
    /// Where the sockets are that go into containers.
    pub socket_dir: PathBuf,
    /// Where the control groups are.
    pub cgroup_root: PathBuf,
    /// What containers may lock; as their runtime may where it isn't said.
    pub memlock: Option<Limit>,
    /// The runtime's socket; that of a known one where it isn't said.
    pub runtime: Option<PathBuf>,
    /// What must pass after a start before a container that nobody sees counts as gone, in
    /// milliseconds.
    pub settle_ms: u64,
    /// How often it is looked what is free again, in milliseconds.
    pub release_ms: u64,
    /// Where the metrics are served; unset: nowhere.
    pub metrics: Option<Door>,
    /// What is offered. A group belongs to the first that it fits.
    pub resources: Vec<Resource>,
}

/// One resource of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// `example.com/gpu`.
    pub name: String,
    /// Which groups.
    pub selector: Selector,
    /// How they are claimed.
    pub policy: v1::Policy,
    /// On which interface of the kernel.
    pub backend: v1::Backend,
    /// How containers come to them.
    pub delivery: Delivery,
    /// What one container maps for them, in bytes, where that is said.
    pub memory_bytes: Option<u64>,
    /// The trust label of the reservations.
    pub label: String,
    /// Take devices from their host drivers, where the host doesn't use them.
    pub take_from_host: bool,
    /// What its devices are while nobody has them.
    pub baseline: Baseline,
}

/// What a resource's devices are while nobody has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Baseline {
    /// Whatever they were before: each pod's start and end may change drivers.
    #[default]
    Original,
    /// On their VFIO driver, bound ahead of time: no pod waits for a driver. Others aren't offered.
    Vfio,
}

/// A limit of what may be locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// None, or a capability that is above it.
    Unlimited,
    /// Bytes.
    Bytes(u64),
}

/// Which groups: by a member that all of these fit. An empty one fits every device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// The beginning of a class code, in lower case.
    pub class: String,
    /// The vendor's id.
    pub vendor: Option<u32>,
    /// The device's id.
    pub device: Option<u32>,
    /// The NUMA node.
    pub numa_node: Option<i32>,
    /// An address with `*` for any text.
    pub address: Option<String>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// What is wrong, in which line, and the way out.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError::File {
            file: file.to_owned(),
            message: error.to_string().to_lowercase(),
        })?;
        Self::parse(file, &text)
    }

    /// A resource by its name.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|one| one.name == name)
    }

    /// The same of a text that a file had.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        check::resolve(file, text)
    }
}

/// The kind of a resource's CDI devices. No dot after the slash: those need CDI 0.6.0.
#[must_use]
pub(crate) fn cdi_kind(resource: &str) -> String {
    let (domain, name) = resource.split_once('/').unwrap_or(("berth", resource));
    format!("{domain}/{}", name.replace('.', "-"))
}

impl Resource {
    /// How the name appears in the names of environment variables.
    #[must_use]
    pub fn env(&self) -> String {
        self.name.to_uppercase().replace(['/', '.'], "_")
    }

    /// The kind of its CDI devices.
    #[must_use]
    pub fn cdi_kind(&self) -> String {
        cdi_kind(&self.name)
    }

    /// The name of its socket, and of the file that keeps a second instance away.
    #[must_use]
    pub fn file_stem(&self) -> String {
        format!("berth-{}", self.name.replace('/', "_"))
    }
}
