//! What a container may lock, before it starts: what it maps for its devices is pinned, and one whose
//! limit is too low would fail in the middle of its start, with ENOMEM and nothing more.
//!
//! The container isn't there yet. It gets the limit of the runtime that makes it, unless somebody
//! says otherwise, which the configuration has to know.

use std::{fmt, path::Path, time::Duration};

use tokio::net::UnixStream;

use crate::config::{Limit, Resource};

/// The sockets of runtimes, where the configuration names none.
const RUNTIMES: [&str; 2] = ["/run/containerd/containerd.sock", "/run/crio/crio.sock"];
/// How long a runtime may take to let somebody connect.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a container could not lock what it maps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Memlock {
    /// Its limit is too low.
    #[error(
        "memlock: containers of {resource} lock {need} bytes and may lock {limit}, {whose}; give the \
         runtime's unit LimitMEMLOCK={need} or more and restart it, or set delivery to bound or \
         unbound, where berthd raises the limit, or say memlock = \"unlimited\" where containers have \
         CAP_IPC_LOCK or a limit of their own"
    )]
    TooLow {
        /// The resource.
        resource: String,
        /// Bytes, as the resource's `memory` says.
        need: u64,
        /// Bytes.
        limit: u64,
        /// Whose limit that is.
        whose: Whose,
    },
    /// Nobody knows its limit.
    #[error(
        "memlock: containers of {resource} lock {need} bytes, and what they may lock can't be known: \
         {why}; name the runtime's socket as runtime, or say memlock = \"64G\" or \"unlimited\""
    )]
    Unknown {
        /// The resource.
        resource: String,
        /// Bytes, as the resource's `memory` says.
        need: u64,
        /// What was tried.
        why: String,
    },
}

/// Who says what containers may lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// `memlock` of the configuration.
    Configured,
    /// The process that listens on the runtime's socket.
    Runtime {
        /// Its name and pid.
        process: String,
        /// The socket.
        socket: String,
    },
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("as memlock of the configuration says"),
            Self::Runtime { process, socket } => {
                write!(f, "as {process} may, whose socket {socket} is")
            }
        }
    }
}

/// Whether a container that opens nodes may lock what its resource says that it maps. Who gets
/// descriptors has its limit raised as it fetches them.
///
/// # Errors
/// It may not, or nobody knows.
pub(super) async fn check(
    resource: &Resource,
    configured: Option<Limit>,
    runtime: Option<&Path>,
) -> Result<(), Memlock> {
    let Some(need) = resource.memory_bytes else { return Ok(()) };
    let (limit, whose) = match configured {
        Some(limit) => (limit, Whose::Configured),
        None => of_runtime(runtime).await.map_err(|why| Memlock::Unknown {
            resource: resource.name.clone(),
            need,
            why,
        })?,
    };
    match limit {
        Limit::Bytes(limit) if limit < need => {
            Err(Memlock::TooLow { resource: resource.name.clone(), need, limit, whose })
        }
        _ => Ok(()),
    }
}

async fn of_runtime(named: Option<&Path>) -> Result<(Limit, Whose), String> {
    let known = || RUNTIMES.map(Path::new).into_iter().find(|socket| socket.exists());
    let Some(socket) = named.or_else(known) else {
        return Err(format!("there is no {}", RUNTIMES.join(", and no ")));
    };
    let at = socket.display();
    let connected = tokio::time::timeout(PATIENCE, UnixStream::connect(socket)).await;
    let connected = connected.map_err(|_| format!("{at} doesn't answer"))?;
    let peer = connected
        .and_then(|stream| stream.peer_cred())
        .map_err(|error| format!("{at}: {error}"))?;
    // A socket of the service manager's: who will serve it is not known by it.
    let pid = peer.pid().filter(|pid| *pid > 1);
    let pid = pid.ok_or_else(|| format!("no runtime listens on {at} by itself"))?;
    let read = |file: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/{file}"))
            .map_err(|error| format!("process {pid}, of {at}: {error}"))
    };
    let limit = limit_in(&read("limits")?).ok_or_else(|| format!("the limits of process {pid}"))?;
    let process = format!("{} (pid {pid})", read("comm")?.trim());
    Ok((limit, Whose::Runtime { process, socket: at.to_string() }))
}

/// The soft limit: a program has to do something to get beyond it.
fn limit_in(limits: &str) -> Option<Limit> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(Limit::Unlimited),
        bytes => bytes.parse().ok().map(Limit::Bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_read_as_the_kernel_writes_it() {
        let line = |soft: &str| {
            format!("Limit   Soft Limit  Hard Limit  Units\nMax locked memory  {soft}  99  bytes\n")
        };
        assert_eq!(limit_in(&line("8388608")), Some(Limit::Bytes(8 << 20)));
        assert_eq!(limit_in(&line("unlimited")), Some(Limit::Unlimited));
        assert_eq!(limit_in("Max open files 1 2 files\n"), None);
    }
}
