//! Measures the fast path beside its peers; `cargo xtask bench dma` builds and starts it.
//!
//! Every bench says what is compared in the module that has it. The peers in C are in `peers/`, and
//! linked: both sides have the same descriptors, memory and clock.

#[path = "../../src/alloc.rs"]
#[allow(dead_code, reason = "the table needs a part of it")]
mod alloc;
mod batch;
mod big;
mod call;
mod counted;
mod guest_ram;
mod memory;
mod null;
mod places;
mod populate;
mod raw;
mod site;
#[path = "../../src/table/mod.rs"]
#[allow(dead_code, reason = "what an address space needs beside")]
mod table;
mod timing;
mod translate;
mod vmm;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use berth_measure::Bench;
use clap::Parser;
use site::{Backend, Kernel};

/// Measures the fast path beside its peers.
#[derive(Debug, Parser)]
struct Arguments {
    /// Benches to run; all without any.
    names: Vec<String>,
    /// The directory of the peers in C.
    #[arg(long, value_name = "DIR")]
    peers: PathBuf,
    /// Work on a real device of this kernel, on this back end.
    #[arg(long, requires = "device")]
    backend: Option<Backend>,
    /// The device, which is on vfio-pci.
    #[arg(long, value_name = "ADDRESS", requires = "backend")]
    device: Option<String>,
    /// Where the results go as JSON.
    #[arg(long, value_name = "FILE", default_value = "/dev/null")]
    json: PathBuf,
    /// Runs only what is to be counted, between two signals to itself.
    #[arg(long, value_name = "NAME", hide = true)]
    counted: Option<String>,
}

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) peers: PathBuf,
    /// A real device, where benches are to work on one.
    pub(crate) kernel: Option<Kernel>,
}

impl Places {
    /// As arguments.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words = vec!["--peers".to_owned(), self.peers.display().to_string()];
        if let Some(Kernel { backend, device }) = &self.kernel {
            words.extend(["--backend", backend.word(), "--device", device].map(str::to_owned));
        }
        words
    }
}

/// Those that need no IOMMU.
const HERE: &[Bench<Places>] = &[
    ("map_call_null", null::bench),
    ("translate", translate::bench),
    ("iova_alloc", places::bench),
    ("populate", populate::bench),
];

/// Those that work on a real device.
const ON_KERNEL: &[Bench<Places>] = &[
    ("map_call", call::bench),
    ("map_batch", batch::map),
    ("unmap_range", batch::unmap),
    ("guest_ram", guest_ram::bench),
    ("big_region", big::bench),
    ("rust_vmm", vmm::bench),
];

type Counted = fn(&Places) -> Result<()>;

/// What is counted by tracing.
const COUNTED: &[(&str, Counted)] = &[
    ("null", null::ours),
    ("null in C", null::in_c),
    ("map_call", call::counted),
    ("translate", translate::ours),
    ("translate in an array", translate::in_an_array),
];

fn main() -> Result<()> {
    let Arguments { names, peers, backend, device, json, counted } = Arguments::parse();
    let kernel = backend.zip(device).map(|(backend, device)| Kernel { backend, device });
    let benches = if kernel.is_some() { ON_KERNEL } else { HERE };
    let places = Places { peers, kernel };
    if let Some(name) = counted {
        let found = COUNTED.iter().find(|(known, _)| *known == name);
        let (_, run) = found.with_context(|| format!("nothing to count is called {name}"))?;
        return run(&places);
    }
    berth_measure::run(benches, &names, &places, &json)
}
