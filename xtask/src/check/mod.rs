//! `cargo xtask check`: what can be judged without running anything.

mod arrows;
mod sizes;
mod tree;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::tally::Tally;

type Step = (&'static str, fn(&Path) -> Result<()>);

const STEPS: &[Step] = &[
    ("dependency arrows", arrows::check),
    ("file and function sizes", sizes::check),
    ("unsafe only in uapi, dma and the guest", tree::unsafe_code),
    ("nothing of this machine in the tree", tree::machine_traces),
    ("migrations are numbered", tree::migrations),
    ("mutants were run of what there is", crate::mutants::check),
    ("the README quotes the benchmarks as they are", crate::bench::quote::check),
    ("format", format),
    ("clippy", clippy),
    ("documentation", documentation),
    ("cargo-deny: licences, bans, sources", deny),
    ("cargo-deny: advisories", advisories),
];

/// Runs every step, also after a failure, and says which failed.
pub(crate) fn run() -> Result<Tally> {
    let root = root()?;
    let mut tally = Tally::default();
    for (name, step) in STEPS {
        let start = Instant::now();
        let outcome = step(&root);
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                println!("check {name} ... ok ({seconds:.1} s)");
                tally.passed += 1;
            }
            Err(error) if error.is::<Skipped>() => {
                println!("check {name} ... skipped: {error}");
                tally.skipped += 1;
            }
            Err(error) => {
                println!("check {name} ... FAILED\n{error:#}");
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}

/// A step that can't run here, with the reason.
#[derive(Debug)]
struct Skipped(&'static str);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Skipped {}

/// The root of the workspace.
pub(crate) fn root() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(own.parent().context("xtask has no parent directory")?.to_owned())
}

/// All files of the tree.
pub(crate) fn files(root: &Path) -> Result<Vec<String>> {
    tree::files(root, &[""])
}

/// What is Rust of the tree.
pub(crate) fn rust_files(root: &Path) -> Result<Vec<String>> {
    tree::files(root, &[".rs"])
}

/// The documents of the tree.
pub(crate) fn documents(root: &Path) -> Result<Vec<String>> {
    tree::files(root, &[".md"])
}

fn format(root: &Path) -> Result<()> {
    cargo(root, &["fmt", "--all", "--check"], &[])
}

fn clippy(root: &Path) -> Result<()> {
    cargo(root, &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"], &[])
}

fn documentation(root: &Path) -> Result<()> {
    cargo(root, &["doc", "--workspace", "--no-deps", "--quiet"], &[("RUSTDOCFLAGS", "-D warnings")])
}

/// What needs no network.
fn deny(root: &Path) -> Result<()> {
    has_deny()?;
    cargo(root, &["deny", "--all-features", "check", "licenses", "bans", "sources"], &[])
}

fn advisories(root: &Path) -> Result<()> {
    has_deny()?;
    let output = Command::new("cargo-deny")
        .args(["--all-features", "check", "advisories"])
        .current_dir(root)
        .output()
        .context("start cargo-deny")?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if said.contains("failed to fetch advisory database") => {
            Err(Skipped("the advisory database can't be fetched here").into())
        }
        false => bail!("{}{said}", String::from_utf8_lossy(&output.stdout)),
    }
}

fn has_deny() -> Result<()> {
    let installed = Command::new("cargo-deny").arg("--version").output();
    if installed.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    Err(Skipped("cargo-deny is not installed (cargo install --locked cargo-deny)").into())
}

fn cargo(root: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let status = berth_testvm::host::run::cargo(root)
        .args(args)
        .envs(env.iter().copied())
        .status()
        .with_context(|| format!("start cargo {}", args.join(" ")))?;
    if !status.success() {
        bail!("cargo {} ended with {status}", args.join(" "));
    }
    Ok(())
}
