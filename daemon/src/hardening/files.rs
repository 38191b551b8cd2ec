//! The files and ports that berthd needs once its configuration is read.

use std::path::{Path, PathBuf};

use berth_confine::files::{Allowed, Right};

use crate::config::{Config, Endpoint, HostChoice, SimTopology};

/// Where VFIO's nodes are.
const NODES: &str = "/dev/vfio";

/// What stays within reach.
pub(super) fn allowed(config: &Config, nodes: &Nodes) -> Allowed {
    let mut allowed = Allowed::nothing()
        .path(&config.state_dir, Right::Keep)
        .path(memory(), Right::Keep)
        .path("/dev/null", Right::Device)
        .path("/dev/urandom", Right::Read)
        .path("/etc/group", Right::Read)
        .path("/proc", Right::Read);
    if let Some(file) = &config.file {
        allowed = readable(allowed, file);
    }
    for listener in &config.listen {
        allowed = match &listener.endpoint {
            Endpoint::Unix { path, .. } => allowed.path(directory(path), Right::Sockets),
            Endpoint::Tcp { address, tls, .. } => {
                let files = tls.iter().flat_map(|tls| [&tls.cert, &tls.key, &tls.client_ca]);
                files.fold(allowed.port(address.port()), |allowed, file| readable(allowed, file))
            }
        };
    }
    match &config.host {
        HostChoice::Sim(SimTopology::File(file)) => allowed.path(file, Right::Read),
        HostChoice::Sim(SimTopology::Builtin(_)) => allowed,
        HostChoice::Linux => machine(allowed, &config.sysfs_root, nodes),
    }
}

/// Where a state is copied to that can't be read where it is: the first place that takes it.
fn memory() -> PathBuf {
    let runtime = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let mut places = runtime.into_iter().chain([PathBuf::from("/run/berth")]);
    let takes = |place: &PathBuf| rustix::fs::access(place, rustix::fs::Access::WRITE_OK).is_ok();
    places.find(takes).unwrap_or_else(|| PathBuf::from("/dev/shm"))
}

/// A file, also when it is replaced by another one of its name; and where a link leads to.
fn readable(allowed: Allowed, file: &Path) -> Allowed {
    let allowed = allowed.path(directory(file), Right::Read);
    match file.canonicalize() {
        Ok(found) if found != file => allowed.path(directory(&found), Right::Read),
        _ => allowed,
    }
}

fn machine(allowed: Allowed, root: &Path, nodes: &Nodes) -> Allowed {
    ["sys", "proc", "lib/modules", "usr/share"]
        .into_iter()
        .fold(allowed, |allowed, below| allowed.path(root.join(below), Right::Read))
        .path(nodes.directory(), Right::Device)
        .path("/dev/iommu", Right::Device)
}

/// Where VFIO's nodes are, or will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nodes {
    There,
    /// The directory is made with the first node, and only its parent can be named until then.
    ToCome,
}

impl Nodes {
    pub(super) fn look() -> Self {
        if Path::new(NODES).is_dir() { Self::There } else { Self::ToCome }
    }

    fn directory(self) -> &'static str {
        match self {
            Self::There => NODES,
            Self::ToCome => "/dev",
        }
    }
}

fn directory(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}
