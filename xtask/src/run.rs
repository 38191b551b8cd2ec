//! `cargo xtask run`: the daemon with its page, on this machine or on a simulated one.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::run::cargo;

use crate::check::root;

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `linux`, `sim`, `sim:NAME` or `sim:FILE`; `linux` where this machine has IOMMU groups and
    /// the caller is root, else `sim:small`.
    #[arg(long)]
    host: Option<String>,
    /// Where the page listens.
    #[arg(long, default_value = "127.0.0.1:7711")]
    listen: String,
}

/// Builds and starts the daemon in the foreground.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = root()?;
    build(&root)?;
    let host = args.host.clone().unwrap_or_else(|| default_host().to_owned());
    let state = root.join("target/run");
    fs::create_dir_all(&state).with_context(|| format!("create {}", state.display()))?;
    let socket = socket_dir()?;
    let grpc = socket.join("berthd.sock");
    println!("host      {host}");
    println!("page      http://{}/", args.listen);
    println!("state     {}", state.display());
    println!("endpoint  export BERTH_ENDPOINT=unix:{}", grpc.display());
    println!("then      {} group list", root.join("target/debug/berth").display());
    println!("stop with Ctrl-C");
    let status = Command::new(root.join("target/debug/berthd"))
        .args(["--host", &host])
        .arg("--state-dir")
        .arg(state.join(if host == "linux" { "linux" } else { "sim" }))
        .args(["--listen-grpc", &format!("unix:{}", grpc.display())])
        .args(["--listen-http", &format!("unix:{}", socket.join("http.sock").display())])
        .args(["--listen-http", &args.listen])
        .args(["--listen-handover", &format!("unix:{}", socket.join("handover.sock").display())])
        .status()
        .context("start berthd")?;
    if status.success() { Ok(()) } else { bail!("berthd ended with {status}") }
}

/// The programs that a running host needs.
fn build(root: &Path) -> Result<()> {
    cargo_build(root, &["-p", "berthd", "-p", "berth", "-p", "berth-helper"])
}

/// The same programs for tests that start them. They are built with all that tests have: an example
/// turns on the features that only tests ask of dependencies, so that none of these is compiled twice.
pub(crate) fn build_for_tests(root: &Path) -> Result<()> {
    let programs = ["--bin", "berthd", "--bin", "berth", "--bin", "berth-helper"];
    cargo_build(root, &[&["--workspace", "--example", "next_release"], &programs[..]].concat())
}

fn cargo_build(root: &Path, what: &[&str]) -> Result<()> {
    let status = cargo(root).arg("build").args(what).status().context("start cargo build")?;
    if status.success() { Ok(()) } else { bail!("cargo build ended with {status}") }
}

fn default_host() -> &'static str {
    let groups = fs::read_dir("/sys/kernel/iommu_groups").map(Iterator::count).unwrap_or(0);
    if groups > 0 && rustix::process::geteuid().is_root() { "linux" } else { "sim:small" }
}

/// Sockets stand in the runtime directory: a checkout's path can be too long for a socket's name.
fn socket_dir() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let uid = rustix::process::geteuid().as_raw();
    let directory = base.join(format!("berth-run-{uid}"));
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.with_context(|| format!("create {}", directory.display()))?;
    let owner = fs::symlink_metadata(&directory).context("look at the socket directory")?.uid();
    if owner != uid {
        bail!("{} belongs to uid {owner}; remove it or set XDG_RUNTIME_DIR", directory.display());
    }
    Ok(directory)
}
