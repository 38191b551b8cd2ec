//! Measures the fast path beside its peers; `cargo xtask bench dma` builds and starts it.
//!
//! Every bench says what is compared in the module that has it. The peers in C are in `peers/`, and
//! linked: both sides have the same descriptors, memory and clock.

mod counted;
mod null;
mod raw;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use berth_measure::Row;
use clap::Parser;

/// Measures the fast path beside its peers.
#[derive(Debug, Parser)]
struct Arguments {
    /// Benches to run; all without any.
    names: Vec<String>,
    /// The directory of the peers in C.
    #[arg(long, value_name = "DIR")]
    peers: PathBuf,
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
}

impl Places {
    /// As arguments.
    pub(crate) fn words(&self) -> Vec<String> {
        vec!["--peers".to_owned(), self.peers.display().to_string()]
    }
}

type Bench = fn(&Places) -> Result<Vec<Row>>;

/// Those that need no IOMMU.
const HERE: &[(&str, Bench)] = &[("map_call_null", null::bench)];

type Counted = fn(&Places) -> Result<()>;

/// What is counted by tracing.
const COUNTED: &[(&str, Counted)] = &[("null", null::ours), ("null in C", null::in_c)];

fn main() -> Result<()> {
    let Arguments { names, peers, json, counted } = Arguments::parse();
    let places = Places { peers };
    if let Some(name) = counted {
        let found = COUNTED.iter().find(|(known, _)| *known == name);
        let (_, run) = found.with_context(|| format!("nothing to count is called {name}"))?;
        return run(&places);
    }
    let benches = HERE;
    if let Some(unknown) = names.iter().find(|name| benches.iter().all(|(known, _)| known != name))
    {
        let known: Vec<&str> = benches.iter().map(|(name, _)| *name).collect();
        bail!("no bench is called {unknown} here; there are {}", known.join(", "));
    }
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for (name, bench) in benches {
        if !names.is_empty() && names.iter().all(|wanted| wanted != name) {
            continue;
        }
        match bench(&places) {
            Ok(more) => rows.extend(more),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(*name);
            }
        }
    }
    let text = serde_json::to_string_pretty(&rows)?;
    std::fs::write(&json, text).with_context(|| format!("write {}", json.display()))?;
    if failed.is_empty() { Ok(()) } else { bail!("not measured: {}", failed.join(", ")) }
}
