//! `cargo xtask fuzz`: libFuzzer on the targets in `fuzz/`, which go on from the corpora there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::{
    packages::{self, Tool},
    run::cargo,
};

use crate::workspace;

/// What libFuzzer needs of the compiler: counters at every edge, and what is compared. Without
/// `-Zsanitizer`, so that the pinned compiler has it.
const INSTRUMENTED: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Clink-dead-code",
    "--cfg=fuzzing",
];

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The targets, by the names of their files in fuzz/targets; all without any.
    targets: Vec<String>,
    /// How long each is run.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    seconds: u64,
    /// Put what was found, reduced to what covers something of its own, into the corpus in the tree.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let dir = workspace::root().join("fuzz");
    let targets = chosen(&names(&dir)?, &arguments.targets)?;
    packages::ensure(&[Tool { package: "g++", proof: "g++" }])?;
    let programs = build(&dir, &targets)?;
    let mut told = Vec::new();
    for target in &targets {
        let line = one(&dir, &programs, target, arguments)?;
        println!("{target}: {line}");
        told.push(format!("{target}: {line}"));
    }
    println!("\n{}", told.join("\n"));
    Ok(())
}

/// Every target has a file.
fn names(dir: &Path) -> Result<Vec<String>> {
    let targets = dir.join("targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&targets).with_context(|| format!("read {}", targets.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn chosen(all: &[String], wanted: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(name)) {
        bail!("there is no target {unknown}; there are {}", all.join(", "));
    }
    Ok(if wanted.is_empty() { all.to_vec() } else { wanted.to_vec() })
}

/// The targets that are made with the whole daemon.
const OF_DAEMON: [&str; 4] = ["config", "note", "request", "rest"];

/// Builds them apart from everything else, as their flags are for everything that they are made of.
/// The host triple is said, so that the flags don't reach build scripts.
fn build(dir: &Path, targets: &[String]) -> Result<PathBuf> {
    let (target, triple) = (workspace::target().join("fuzz"), triple()?);
    let mut command = cargo(dir);
    command.args(["build", "--release", "--target", &triple, "--target-dir"]).arg(&target);
    for name in targets {
        command.args(["--bin", name]);
    }
    if !targets.iter().any(|name| OF_DAEMON.contains(&name.as_str())) {
        command.arg("--no-default-features");
    }
    let status =
        command.env("RUSTFLAGS", INSTRUMENTED.join(" ")).status().context("start cargo build")?;
    if !status.success() {
        bail!("cargo build in {} ended with {status}", dir.display());
    }
    Ok(target.join(triple).join("release"))
}

/// What the compiler builds for.
pub(crate) fn triple() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("ask rustc for its host")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// Runs one, and answers how often, and what it covers.
fn one(dir: &Path, programs: &Path, target: &str, arguments: &Arguments) -> Result<String> {
    let kept = dir.join("corpus").join(target);
    let work = workspace::target().join("fuzz/corpus").join(target);
    let crashes = workspace::target().join("fuzz/crashes").join(target);
    for place in [&work, &crashes] {
        fs::create_dir_all(place).with_context(|| format!("create {}", place.display()))?;
    }
    let output = Command::new(programs.join(target))
        .arg(&work)
        .arg(&kept)
        .args([format!("-max_total_time={}", arguments.seconds), "-print_final_stats=1".to_owned()])
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .output()
        .with_context(|| format!("start {target}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let end: Vec<&str> = text.lines().rev().take(30).collect();
        let end: Vec<&str> = end.into_iter().rev().collect();
        bail!(
            "{target} failed; what made it fail is in {}:\n{}",
            crashes.display(),
            end.join("\n")
        );
    }
    if arguments.keep {
        keep(&programs.join(target), &work, &kept)?;
    }
    summary(&text).with_context(|| format!("{target} says nothing of what it did:\n{text}"))
}

/// Merges what was found into the corpus of the tree.
fn keep(program: &Path, work: &Path, kept: &Path) -> Result<()> {
    let status = Command::new(program)
        // As few as cover every edge that all of them do.
        .arg("-set_cover_merge=1")
        .args([kept, work])
        .status()
        .context("merge what was found")?;
    if status.success() {
        Ok(())
    } else {
        bail!("merging into {} ended with {status}", kept.display())
    }
}

/// libFuzzer's count of executions, and its last word on coverage.
fn summary(text: &str) -> Option<String> {
    let count = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().parse::<u64>().ok()
    };
    let executions = count("stat::number_of_executed_units")?;
    let covered = text.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once(" cov: ")?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    })?;
    Some(format!("{executions} executions, {covered} edges covered, nothing failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_read() {
        let text = "#2\tINITED cov: 300 ft: 301 corp: 1/1b\n#9\tDONE   cov: 412 ft: 900 corp: 7/9b\n\
                    stat::number_of_executed_units: 123456\nstat::average_exec_per_sec:     99\n";
        let told = "123456 executions, 412 edges covered, nothing failed";
        assert_eq!(summary(text).as_deref(), Some(told));
        assert_eq!(summary("Segmentation fault"), None);
    }

    #[test]
    fn an_unknown_target_is_named() {
        let all = ["batch".to_owned(), "wire".to_owned()];
        assert_eq!(chosen(&all, &[]).unwrap(), all);
        let error = chosen(&all, &["bach".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("bach") && error.contains("batch, wire"), "{error}");
    }
}
