//! cargo-mutants: which mutants there are, and what becomes of those that can't be switched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{outcome::Mutant, sources::CRATES};
use crate::workspace;

const VERSION: &str = "27.1.0";

/// The installed program, in cargo's target directory.
pub(super) fn ensure() -> Result<PathBuf> {
    let tools = workspace::target().join("tools");
    let program = tools.join("bin/cargo-mutants");
    let told = Command::new(&program).args(["mutants", "--version"]).output();
    let is_it = |text: &[u8]| String::from_utf8_lossy(text).trim().ends_with(VERSION);
    if told.is_ok_and(|output| is_it(&output.stdout)) {
        return Ok(program);
    }
    println!("installing cargo-mutants {VERSION} into {}", tools.display());
    let mut command = cargo();
    command.args(["install", "--locked", "cargo-mutants", "--version", VERSION, "--root"]);
    let status = command.arg(&tools).status().context("start cargo install")?;
    if !status.success() {
        bail!("cargo install cargo-mutants ended with {status}");
    }
    Ok(program)
}

pub(super) fn cargo() -> Command {
    berth_testvm::host::run::cargo(&workspace::root())
}

/// All mutants of some files, in their order.
pub(super) fn list(program: &Path, root: &Path, files: &[String]) -> Result<Vec<Mutant>> {
    let mut command = Command::new(program);
    command.args(["mutants", "--list", "--json"]);
    command.args(packages()).args(files.iter().map(|file| format!("--file={file}")));
    let output = command.current_dir(root).output().context("start cargo-mutants")?;
    if !output.status.success() {
        bail!("cargo mutants --list: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("the list of cargo-mutants")
}

fn packages() -> impl Iterator<Item = String> {
    CRATES.into_iter().map(|(package, _)| format!("--package={package}"))
}

/// Builds and runs some mutants one after another, in a copy of the tree. What became of them
/// is then in `out`.
pub(super) fn run(
    program: &Path,
    (tree, build, out): (&Path, &Path, &Path),
    mutants: &[&Mutant],
    (level, limit): (&[&str], u64),
) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let status = Command::new(program)
        .args(["mutants", "--in-place", "--profile=mutants", "--cargo-arg=--lib"])
        .args(["--cap-lints=false", "--no-times", "--build-timeout=600"])
        .arg(format!("--timeout={limit}"))
        .args(packages())
        .args(mutants.iter().map(|mutant| format!("--re=^{}$", escaped(&mutant.name))))
        .arg("--output")
        .arg(out)
        .args(["--", "--"])
        .args(level)
        .current_dir(tree)
        .envs(super::build::environment(build))
        .status()
        .context("start cargo-mutants")?;
    // 2 and 3: there were some that nothing caught, or that took too long.
    match status.code() {
        Some(0 | 2 | 3) => Ok(()),
        _ => bail!("cargo mutants ended with {status}"),
    }
}

/// For a regular expression that is this text.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for sign in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(sign) {
            escaped.push('\\');
        }
        escaped.push(sign);
    }
    escaped
}
