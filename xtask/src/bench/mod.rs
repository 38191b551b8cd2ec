//! `cargo xtask bench`: builds what is measured and its peers, runs `berth-bench` and `berth-dma-bench`
//! here and in guests, prints.

mod guest;
mod peers;
pub(crate) mod quote;
mod table;
mod tools;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::run::cargo;

use self::table::Row;
use crate::workspace;

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// reserve_release, grpc_read, grpc_mut, rest_get, cold_start_10k, fd_claim,
    /// watch_fanout, handover, vm_death, region; of the fast path (dma for all of them)
    /// map_call_null, translate, iova_alloc, populate, map_call, map_batch, unmap_range, guest_ram,
    /// big_region, rust_vmm; all without any. region, fd_claim, vm_death and those from map_call on
    /// run on real devices in a guest; fd_claim and vm_death here, too, on a simulated host.
    names: Vec<String>,
    /// The guest's kernel: own (iommufd), stock (type1), path (the image that BERTH_VM_KERNEL names),
    /// all, or none for no guest.
    #[arg(long, default_value = "all")]
    kernel: String,
    /// After how many fetches fd_claim counts descriptors.
    #[arg(long, value_name = "COUNT", default_value_t = 100_000)]
    fetches: u64,
    /// Write the results here, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put the table into docs/benchmarks.md and its quotation into README.md, and lines of the fast
    /// path into docs/dma.md. Benches that did not run keep their lines.
    #[arg(long)]
    write_docs: bool,
}

/// What measures the daemon, and what the fast path.
const PROGRAM: &str = "berth-bench";
const DMA_PROGRAM: &str = "berth-dma-bench";
/// Where their results are written.
const DOCUMENT: &str = "docs/benchmarks.md";
const DMA_DOCUMENT: &str = "docs/dma.md";
/// All benches of the fast path, by one name.
const DMA: &str = "dma";
/// Those of them that need no IOMMU.
const DMA_HERE: [&str; 4] = ["map_call_null", "translate", "iova_alloc", "populate"];

/// Whether a bench is one of the fast path.
fn is_dma(name: &str) -> bool {
    DMA_HERE.contains(&name) || guest::DMA.contains(&name)
}

impl Arguments {
    fn runs(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    fn runs_dma(&self, name: &str) -> bool {
        self.runs(name) || self.runs(DMA)
    }

    /// What the daemon's program runs here; `None` where nothing does, and an empty list for
    /// everything.
    fn here(&self) -> Option<Vec<&str>> {
        let elsewhere = |name: &str| name == guest::ONLY || name == DMA || is_dma(name);
        let here: Vec<&str> =
            self.names.iter().map(String::as_str).filter(|name| !elsewhere(name)).collect();
        (self.names.is_empty() || !here.is_empty()).then_some(here)
    }

    /// What the fast path's program runs here.
    fn dma_here(&self) -> Vec<&'static str> {
        DMA_HERE.into_iter().filter(|name| self.runs_dma(name)).collect()
    }

    /// The packages whose programs take part.
    fn packages(&self, in_guests: [bool; 2]) -> Vec<&'static str> {
        let [daemon, dma] = in_guests;
        let mut packages = Vec::new();
        if daemon || self.here().is_some() {
            packages.extend(["berthd", "berth-helper", "berth", "berth-bench"]);
        }
        if dma || !self.dma_here().is_empty() {
            packages.push("berth-dma-bench");
        }
        if daemon || dma {
            packages.push("berth-testvm");
        }
        packages
    }
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    if arguments.runs("cold_start_10k") {
        tools::look_for_lspci();
    }
    let guests = guest::Guests::of(arguments)?;
    build(&arguments.packages(guests.programs()))?;
    let programs = workspace::target().join("release");
    let dir = workspace::target().join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    peers::build(&dir, arguments.runs("reserve_release"))?;
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    if let Some(names) = arguments.here() {
        let outcome = here(arguments, &names, &programs, &dir, &mut rows);
        failed.extend(outcome.err().map(|error| format!("{error:#}")));
    }
    let dma = arguments.dma_here();
    if !dma.is_empty() {
        let outcome = run_here(Command::new(programs.join(DMA_PROGRAM)).args(dma), &dir, &mut rows);
        failed.extend(outcome.err().map(|error| format!("{error:#}")));
    }
    failed.extend(guests.run(&programs, &dir, &mut rows));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows)?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    println!("{}", table::render(&rows));
    if arguments.write_docs {
        table::write(&rows)?;
        quote::write(&workspace::root())?;
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
}

/// Runs `berth-bench` on this machine.
fn here(
    arguments: &Arguments,
    names: &[&str],
    programs: &Path,
    dir: &Path,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let mut command = Command::new(programs.join(PROGRAM));
    command.args(names).arg("--programs").arg(programs).arg("--disk").arg(dir);
    command.args(["--fetches", &arguments.fetches.to_string()]);
    run_here(&mut command, dir, rows)
}

/// Runs what measures, with the peers of a directory, and takes its rows.
fn run_here(command: &mut Command, dir: &Path, rows: &mut Vec<Row>) -> Result<()> {
    let json = dir.join("last.json");
    // Results of an earlier run must not be taken for those of this one; mostly there are none.
    let _ = fs::remove_file(&json);
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_owned();
    let name = name.display();
    let status = command
        .arg("--peers")
        .arg(dir)
        .arg("--json")
        .arg(&json)
        .status()
        .with_context(|| format!("start {name}"))?;
    let text = fs::read_to_string(&json)
        .with_context(|| format!("read the results: {name} ended with {status}"))?;
    let more: Vec<Row> = serde_json::from_str(&text).context("understand the results")?;
    rows.extend(more);
    if status.success() { Ok(()) } else { bail!("{name} ended with {status}") }
}

fn build(packages: &[&str]) -> Result<()> {
    let status = cargo(&workspace::root())
        .args(["build", "--release", "--bins"])
        .args(packages.iter().flat_map(|package| ["-p", package]))
        .status()
        .context("start cargo build")?;
    if status.success() { Ok(()) } else { bail!("cargo build ended with {status}") }
}
