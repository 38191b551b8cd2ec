//! The stages that `cargo test` runs.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use berth_testvm::host::packages::{self, Tool};

use super::{orders, sanitize};
use crate::{check::root, tally::Tally};

/// Tests inside the crates, and the examples of the documentation.
pub(super) fn unit(long: bool) -> Result<Tally> {
    let mut tally = cargo_test(&["--workspace", "--lib", "--bins"], &[])?;
    tally += cargo_test(
        &[
            "--doc",
            "-p",
            "berth-ownership",
            "-p",
            "berth-uapi",
            "-p",
            "berth-dma",
            "-p",
            "berth-handover",
            "-p",
            "berth-host",
        ],
        &[],
    )?;
    // A feature that nothing else turns on.
    tally += cargo_test(&["-p", "berth-dma", "--features", "tracing", "--test", "tracing"], &[])?;
    tally += orders::run()?;
    if long {
        tally += sanitize::run()?;
    }
    Ok(tally)
}

/// Tests beside the crates: whole programs on the simulated host.
pub(super) fn sim(long: bool) -> Result<Tally> {
    // What is durable before an answer leaves is seen in the program's system calls.
    packages::ensure(&[Tool { package: "strace", proof: "strace" }])?;
    let env: &[(&str, &str)] = if long { &[("BERTH_TEST_LONG", "1")] } else { &[] };
    let mut tally = build()?;
    tally += cargo_test(&["--workspace", "--test", "*"], env)?;
    Ok(tally)
}

/// Tests start the real programs, which `cargo test` doesn't build by itself.
fn build() -> Result<Tally> {
    crate::run::build_for_tests(&root()?)?;
    Ok(Tally::default())
}

fn cargo_test(args: &[&str], env: &[(&str, &str)]) -> Result<Tally> {
    let mut command = cargo()?;
    command.args(["test", "--no-fail-fast"]).args(args).envs(env.iter().copied());
    run_tests(command, &format!("cargo test {}", args.join(" ")))
}

/// Cargo, in the workspace.
pub(super) fn cargo() -> Result<Command> {
    Ok(berth_testvm::host::run::cargo(&root()?))
}

/// Runs tests, shows what they say, and counts.
pub(super) fn run_tests(mut command: Command, what: &str) -> Result<Tally> {
    let spawned = command.stdout(Stdio::piped()).spawn();
    let mut child = spawned.with_context(|| format!("start {what}"))?;
    let mut tally = Tally::default();
    let output = child.stdout.take().context("tests have no output")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("read what tests print")?;
        println!("{line}");
        tally += counts(&line);
    }
    let status = child.wait().with_context(|| format!("wait for {what}"))?;
    if !status.success() && tally.failed == 0 {
        println!("{what} ended with {status}");
        tally.failed += 1;
    }
    Ok(tally)
}

/// Counts of a line `test result: ok. 4 passed; 0 failed; 1 ignored; ...`.
fn counts(line: &str) -> Tally {
    let Some(rest) = line.strip_prefix("test result: ") else { return Tally::default() };
    let number = |word: &str| {
        rest.split([';', '.'])
            .filter_map(|part| part.trim().strip_suffix(word))
            .find_map(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    Tally { passed: number("passed"), failed: number("failed"), skipped: number("ignored") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_runners_line() {
        let line =
            "test result: FAILED. 14 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(counts(line), Tally { passed: 14, failed: 2, skipped: 1 });
        assert_eq!(counts("running 3 tests"), Tally::default());
    }
}
