//! Measures Berth beside its peers; `cargo xtask bench` builds and starts it.
//!
//! Every bench says what is compared in the module that has it. The peers in C are in `peers/`.
#![forbid(unsafe_code)]

mod claim;
mod cold;
mod daemon;
mod death;
mod front;
mod handover;
mod ledger;
mod orders;
mod peer;
mod region;
mod site;
mod watch;

use std::path::PathBuf;

use anyhow::Result;
use berth_measure::Bench;
use clap::Parser;
use site::{Backend, Kernel};

/// As in the daemon.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures Berth beside its peers.
#[derive(Debug, Parser)]
struct Arguments {
    /// Benches to run; all without any.
    names: Vec<String>,
    /// The directory of berthd and berth-helper.
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,
    /// The directory of the peers in C.
    #[arg(long, value_name = "DIR")]
    peers: PathBuf,
    /// A directory on a disk, for what has to be durable.
    #[arg(long, value_name = "DIR")]
    disk: PathBuf,
    /// A directory in memory, for what has not.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    memory: PathBuf,
    /// After how many fetches `fd_claim` counts descriptors.
    #[arg(long, value_name = "COUNT", default_value_t = 100_000)]
    fetches: u64,
    /// Work on real devices of this kernel, on this back end: `region`, `vm_death`, `fd_claim`.
    #[arg(long, requires_all = ["device", "beside"])]
    backend: Option<Backend>,
    /// The daemon's device, which is on vfio-pci.
    #[arg(long, value_name = "ADDRESS", requires = "backend")]
    device: Option<String>,
    /// The peer's device, which is on vfio-pci in another group.
    #[arg(long, value_name = "ADDRESS", requires = "backend")]
    beside: Option<String>,
    /// Where the results go as JSON.
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
}

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) programs: PathBuf,
    pub(crate) peers: PathBuf,
    pub(crate) disk: PathBuf,
    pub(crate) memory: PathBuf,
    pub(crate) fetches: u64,
    /// Real devices, where benches are to work on some.
    pub(crate) kernel: Option<Kernel>,
}

const BENCHES: &[Bench<Places>] = &[
    ("reserve_release", ledger::bench),
    ("grpc_read", front::grpc_read),
    ("grpc_mut", front::grpc_mut),
    ("rest_get", front::rest_get),
    ("cold_start_10k", cold::bench),
    ("fd_claim", claim::bench),
    ("watch_fanout", watch::bench),
    ("handover", handover::bench),
    ("vm_death", death::bench),
];

/// Those that work on real devices.
const ON_KERNEL: &[Bench<Places>] =
    &[("region", region::bench), ("vm_death", death::bench), ("fd_claim", claim::bench)];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let Arguments { names, programs, peers, disk, memory, fetches, json, .. } = arguments;
    let kernel = match (arguments.backend, arguments.device, arguments.beside) {
        (Some(backend), Some(device), Some(beside)) => Some(Kernel { backend, device, beside }),
        _ => None,
    };
    let benches = if kernel.is_some() { ON_KERNEL } else { BENCHES };
    let places = Places { programs, peers, disk, memory, fetches, kernel };
    berth_measure::run(benches, &names, &places, &json)
}
