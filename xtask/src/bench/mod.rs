//! `cargo xtask bench`: builds what is measured and its peers, runs `berth-bench`, prints.

mod peers;
pub(crate) mod quote;
mod table;
mod tools;

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use self::table::Row;
use crate::workspace;

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// reserve_release, grpc_read, grpc_mut, rest_get, cold_start_10k, fd_claim,
    /// watch_fanout, handover, vm_death; all without any.
    names: Vec<String>,
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
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    if arguments.runs("cold_start_10k") {
        tools::look_for_lspci();
    }
    build()?;
    let programs = workspace::target().join("release");
    let dir = workspace::target().join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    peers::build(&dir)?;
    let json = dir.join("last.json");
    // Results of an earlier run must not be taken for those of this one; mostly there are none.
    let _ = fs::remove_file(&json);
    let status = Command::new(programs.join("berth-bench"))
        .args(&arguments.names)
        .arg("--programs")
        .arg(&programs)
        .arg("--peers")
        .arg(&dir)
        .arg("--disk")
        .arg(&dir)
        .args(["--fetches", &arguments.fetches.to_string()])
        .arg("--json")
        .arg(&json)
        .status()
        .context("start berth-bench")?;
    let text = fs::read_to_string(&json)
        .with_context(|| format!("read the results: berth-bench ended with {status}"))?;
    if let Some(path) = &arguments.json {
        fs::write(path, &text).with_context(|| format!("write {}", path.display()))?;
    }
    let rows: Vec<Row> = serde_json::from_str(&text).context("understand the results")?;
    println!("{}", table::render(&rows));
    if arguments.write_docs {
        table::write(&rows)?;
        quote::write(&workspace::root())?;
    }
    if status.success() { Ok(()) } else { bail!("berth-bench ended with {status}") }
}

fn build() -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args(["build", "--release", "-p", "berthd", "-p", "berth-helper", "-p", "berth-bench"])
        .current_dir(workspace::root())
        .status()
        .context("start cargo build")?;
    if status.success() { Ok(()) } else { bail!("cargo build ended with {status}") }
}
