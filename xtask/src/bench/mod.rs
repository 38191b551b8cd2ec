//! `cargo xtask bench`: builds what is measured and its peers, runs `berth-bench` here and in guests,
//! prints.

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

use self::table::Row;
use crate::workspace;

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// reserve_release, grpc_read, grpc_mut, rest_get, cold_start_10k, fd_claim,
    /// watch_fanout, handover, vm_death, region; all without any. region, fd_claim and vm_death run
    /// on real devices in a guest; the last two here, too, on a simulated host.
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
    /// Put the table into docs/benchmarks.md and its quotation into README.md. Benches that did not
    /// run keep their lines.
    #[arg(long)]
    write_docs: bool,
}

impl Arguments {
    fn runs(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    /// What runs here; `None` where nothing does, and an empty list for everything.
    fn here(&self) -> Option<Vec<&str>> {
        let here: Vec<&str> =
            self.names.iter().map(String::as_str).filter(|name| *name != guest::ONLY).collect();
        (self.names.is_empty() || !here.is_empty()).then_some(here)
    }
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    if arguments.runs("cold_start_10k") {
        tools::look_for_lspci();
    }
    let guests = guest::Guests::of(arguments)?;
    build()?;
    let programs = workspace::target().join("release");
    let dir = workspace::target().join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    peers::build(&dir, arguments.runs("reserve_release"))?;
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    if let Some(names) = arguments.here() {
        let outcome = here(arguments, &names, &programs, &dir, &mut rows);
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
    let json = dir.join("last.json");
    // Results of an earlier run must not be taken for those of this one; mostly there are none.
    let _ = fs::remove_file(&json);
    let status = Command::new(programs.join("berth-bench"))
        .args(names)
        .arg("--programs")
        .arg(programs)
        .arg("--peers")
        .arg(dir)
        .arg("--disk")
        .arg(dir)
        .args(["--fetches", &arguments.fetches.to_string()])
        .arg("--json")
        .arg(&json)
        .status()
        .context("start berth-bench")?;
    let text = fs::read_to_string(&json)
        .with_context(|| format!("read the results: berth-bench ended with {status}"))?;
    let more: Vec<Row> = serde_json::from_str(&text).context("understand the results")?;
    rows.extend(more);
    if status.success() { Ok(()) } else { bail!("berth-bench ended with {status}") }
}

/// The packages whose programs take part, in guests, too.
const PACKAGES: [&str; 5] = ["berthd", "berth-helper", "berth", "berth-bench", "berth-testvm"];

fn build() -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args(["build", "--release", "--bins"])
        .args(PACKAGES.iter().flat_map(|package| ["-p", package]))
        .current_dir(workspace::root())
        .status()
        .context("start cargo build")?;
    if status.success() { Ok(()) } else { bail!("cargo build ended with {status}") }
}
