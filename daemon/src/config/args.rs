//! The command line of berthd.

use std::path::PathBuf;

/// Decides, records and explains who may do DMA through every IOMMU group of this host.
#[derive(Debug, Clone, Default, clap::Parser)]
#[command(
    name = "berthd",
    version,
    after_help = "Arguments override the configuration file. One --listen-KIND replaces all \
        listeners of that kind. Sockets that a service manager passes (LISTEN_FDS, named grpc, http \
        or handover) are the listeners with the same path or address; default ones that it doesn't \
        pass are left out then.\n\nExamples:\n  \
        berthd --check-config --config /etc/berth/berthd.toml\n  \
        berthd --host sim:gpu-server --state-dir /tmp/berth \\\n         \
        --listen-grpc unix:/tmp/berth/berthd.sock --listen-http 127.0.0.1:7711\n\n\
        Log lines are chosen by BERTH_LOG, e.g. BERTH_LOG=berthd=debug."
)]
pub struct Args {
    /// Configuration file [default: /etc/berth/berthd.toml where it exists].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Check configuration and arguments, then exit: 0 when they can be used.
    #[arg(long)]
    pub check_config: bool,

    /// Write the man page to a directory, then exit.
    #[arg(long, value_name = "DIR")]
    pub man: Option<PathBuf>,

    /// The machine: linux, sim (topology `small`), sim:NAME (small, gpu-server, sriov-nic,
    /// desktop-no-acs, large) or sim:FILE [default: linux].
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,

    /// Read `sys` and `proc` below this directory [default: /].
    #[arg(long, value_name = "DIR")]
    pub sysfs_root: Option<PathBuf>,

    /// Directory of the database [default: /var/lib/berth].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// The berth-helper binary, which berthd starts for each privileged act [default: beside
    /// berthd, unless there is a --helper-socket].
    #[arg(long, value_name = "FILE", conflicts_with = "helper_socket")]
    pub helper: Option<PathBuf>,

    /// The socket behind which the service manager starts a berth-helper for each connection
    /// [default: /run/berth/helper.sock where it exists].
    #[arg(long, value_name = "PATH")]
    pub helper_socket: Option<PathBuf>,

    /// gRPC at unix:PATH [default: unix:/run/berth/berthd.sock]. Repeatable.
    #[arg(long, value_name = "WHERE")]
    pub listen_grpc: Vec<String>,

    /// REST and the page at unix:PATH or ADDRESS:PORT (reading only)
    /// [default: unix:/run/berth/http.sock and 127.0.0.1:7711]. Repeatable.
    #[arg(long, value_name = "WHERE")]
    pub listen_http: Vec<String>,

    /// Starts helpers for a berthd that can't start anything any more.
    #[arg(long, hide = true, num_args = 2, value_names = ["PROGRAM", "ROOT"])]
    pub spawn_helpers: Option<Vec<PathBuf>>,

    /// Hand-over of descriptors at unix:PATH [default: handover.sock beside the gRPC socket].
    #[arg(long, value_name = "WHERE")]
    pub listen_handover: Vec<String>,
}

/// Which machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostChoice {
    /// This one.
    Linux,
    /// A built-in topology, by name, or a topology file.
    Sim(SimTopology),
}

/// Where a simulated host comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SimTopology {
    /// One of the built-in ones.
    Builtin(String),
    /// A file.
    File(PathBuf),
}

impl HostChoice {
    /// Reads `linux`, `sim`, `sim:NAME`, `sim:FILE`. A file's name holds a `/` or a `.`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "linux" => Some(Self::Linux),
            None if text == "sim" => Some(Self::Sim(SimTopology::Builtin("small".to_owned()))),
            Some(("sim", what)) if what.contains(['/', '.']) => {
                Some(Self::Sim(SimTopology::File(PathBuf::from(what))))
            }
            Some(("sim", name)) if !name.is_empty() => {
                Some(Self::Sim(SimTopology::Builtin(name.to_owned())))
            }
            _ => None,
        }
    }

    /// True for a simulated machine.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        matches!(self, Self::Sim(_))
    }
}
