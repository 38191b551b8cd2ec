//! The daemon's settings: `berthd.toml`, overridden by the command line.
//!
//! A file is read in two steps. `raw` takes its shape from TOML and refuses unknown keys;
//! `check` gives every value its meaning. Both name the line, the key and a way out.

mod access;
mod args;
mod check;
mod condition;
mod devices;
mod error;
mod hardening;
mod helper;
mod limits;
mod listen;
mod quotas;
mod rates;
mod raw;
mod system;
mod web;
mod whom;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

pub use access::{Access, Rule};
pub use args::{Args, HostChoice, SimTopology};
pub use error::ConfigError;
pub use hardening::{Hardening, Strictness};
pub(crate) use listen::GRPC_NEEDS_TLS;
pub use web::Web;

use crate::model::{ConditionRules, DeviceRules, Quotas, Rates};

/// Where the configuration is looked for when `--config` is not given.
pub const DEFAULT_FILE: &str = "/etc/berth/berthd.toml";

/// Everything that berthd is told at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file that was read; `None` when there was none.
    pub file: Option<PathBuf>,
    /// The machine, real or simulated.
    pub host: HostChoice,
    /// Where `sys` and `proc` are looked for.
    pub sysfs_root: PathBuf,
    /// Where the database lives.
    pub state_dir: PathBuf,
    /// Who does the privileged acts.
    pub helper: Helper,
    /// Where berthd listens.
    pub listen: Vec<Listener>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// What is kept.
    pub retention: Retention,
    /// How much is let in.
    pub limits: Limits,
    /// What must hold about a reset, by class. The most specific that fits counts.
    pub reset: Vec<ResetRule>,
    /// Which devices may be given away.
    pub devices: DeviceRules,
    /// What is made of the condition of devices.
    pub condition: ConditionRules,
    /// How much each may have.
    pub quotas: Quotas,
    /// How often each may call.
    pub rates: Rates,
    /// What is logged, in the words of `BERTH_LOG`, which outranks it.
    pub log: String,
    /// What berthd gives up once it runs.
    pub hardening: Hardening,
    /// Sessions of browsers.
    pub web: Web,
}

/// Who does the privileged acts: always a process per act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Helper {
    /// berthd starts this program; `None` looks beside berthd's own.
    Forked(Option<PathBuf>),
    /// The service manager starts one for each connection to this socket.
    Socket(PathBuf),
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Serve {
    /// gRPC: HTTP/2 only.
    Grpc,
    /// REST, events, metrics and the page.
    Http,
    /// The hand-over of descriptors (`SOCK_SEQPACKET`).
    Handover,
}

impl Serve {
    /// The word that the file uses.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Handover => "handover",
        }
    }

    /// What a word says.
    #[must_use]
    pub fn by_word(word: &str) -> Option<Self> {
        [Self::Grpc, Self::Http, Self::Handover].into_iter().find(|serve| serve.word() == word)
    }
}

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The group that it is given to, already looked up.
        gid: Option<u32>,
    },
    /// TCP. Without TLS: HTTP for reading, on names that are allowed.
    Tcp {
        /// Address and port.
        address: SocketAddr,
        /// Names besides the loopback ones that `Host` may say.
        hosts: Vec<String>,
        /// TLS, in which clients show a certificate.
        tls: Option<Tls>,
    },
}

/// The PEM files of a listener with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// berthd's certificate, followed by what is between it and its root.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The roots that client certificates must come from.
    pub client_ca: PathBuf,
    /// Whether TLS 1.2 is spoken, too.
    pub tls12: bool,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Self::Tcp { address, .. } => write!(f, "{address}"),
        }
    }
}

/// One listener: a door with a ceiling of rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// What it speaks.
    pub serve: Serve,
    /// Where it is.
    pub endpoint: Endpoint,
    /// The most that a caller through it can be; `None` lets nobody in.
    pub access: Access,
    /// Named by the file or an argument. Those that aren't are there by default.
    pub given: bool,
}

/// How long things may take.
///
/// # Units
/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// What an order waits for kernel work when it doesn't say.
    pub wait_ms: u64,
    /// What one privileged act may take before its device counts as wedged.
    pub act_ms: u64,
    /// What a client may take to send its request's head.
    pub header_ms: u64,
    /// What a client may take for the handshake of TLS, and to begin HTTP/2.
    pub handshake_ms: u64,
    /// What a client may take to send the body of a REST request.
    pub body_ms: u64,
    /// What running requests get when the daemon is told to stop.
    pub drain_ms: u64,
    /// How often the host is read again without being told to.
    pub rescan_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            wait_ms: 30_000,
            act_ms: 10_000,
            header_ms: 10_000,
            handshake_ms: 10_000,
            body_ms: 30_000,
            drain_ms: 10_000,
            rescan_ms: 30_000,
        }
    }
}

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How many events are kept.
    pub events: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { events: 1_000_000 }
    }
}

/// How much is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections that one listener serves at a time.
    pub connections: usize,
    /// Requests under way on one connection.
    pub streams: u32,
    /// The largest request.
    pub body_bytes: usize,
    /// Clients that follow events at a time.
    pub watchers: usize,
    /// Connections that one uid has to one listener at a time; on TCP, one address.
    pub connections_per_uid: usize,
    /// The largest head of a request.
    pub header_bytes: u32,
    /// Commands that wait to be decided.
    pub waiting_commands: usize,
    /// Connections to one hand-over socket at a time.
    pub handover_connections: usize,
    /// The same of one uid.
    pub handover_connections_per_uid: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            streams: 256,
            body_bytes: 1 << 20,
            watchers: 256,
            connections_per_uid: 512,
            header_bytes: 32 << 10,
            waiting_commands: 4096,
            handover_connections: 1024,
            handover_connections_per_uid: 64,
        }
    }
}

/// What must hold about the reset of the devices of one class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResetRule {
    /// The beginning of the class code in hexadecimal, e.g. `0108`; `None` is every other class.
    pub class: Option<String>,
    /// The policy.
    pub policy: berth_ownership::ResetPolicy,
}

impl Config {
    /// Reads the file that `args` name, or the default one where there is any, and lets `args`
    /// override it.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line, key and a way out.
    pub fn load(args: &Args) -> Result<Self, ConfigError> {
        let (file, text) = match &args.config {
            Some(path) => (Some(path.clone()), system::read(path)?),
            None if Path::new(DEFAULT_FILE).exists() => {
                let path = PathBuf::from(DEFAULT_FILE);
                let text = system::read(&path)?;
                (Some(path), text)
            }
            None => (None, String::new()),
        };
        Self::parse(&text, file, args)
    }

    /// What a file with this text and `args` amount to.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, file: Option<PathBuf>, args: &Args) -> Result<Self, ConfigError> {
        let named = file.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let source = error::Source { file: &named, text };
        let raw = raw::parse(&source)?;
        check::resolve(raw, &source, args, file)
    }

    /// The listeners that speak `serve`.
    pub fn listeners(&self, serve: Serve) -> impl Iterator<Item = &Listener> {
        self.listen.iter().filter(move |listener| listener.serve == serve)
    }
}
