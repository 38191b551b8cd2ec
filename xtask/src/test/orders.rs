//! The model checker: tests named `orders` of the crates that share without locks, built with
//! `--cfg loom`. The flag is given to the crate alone, so that nothing else is built anew.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::cargo::{cargo, run_tests};
use crate::tally::Tally;

/// The crates.
const PACKAGES: [&str; 1] = ["berth-dma"];

/// Builds and runs them.
pub(super) fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    for package in PACKAGES {
        let program = build(package)?;
        println!("every order of threads in {package}: {}", program.display());
        let mut command = Command::new(&program);
        command.arg("orders::");
        let found = run_tests(command, package)?;
        if found.passed + found.failed == 0 {
            bail!("{package} has no test named orders");
        }
        tally += found;
    }
    Ok(tally)
}

fn build(package: &str) -> Result<PathBuf> {
    let mut command = cargo()?;
    command.args(["rustc", "-p", package, "--lib", "--profile", "test"]);
    command.args(["--message-format", "json-render-diagnostics", "--", "--cfg", "loom"]);
    let output = command.stderr(Stdio::inherit()).output().context("start cargo rustc")?;
    if !output.status.success() {
        bail!("cargo rustc -p {package} ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    executable(&text).with_context(|| format!("cargo made no test program of {package}"))
}

/// The program among cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter_map(|message| Some(message["executable"].as_str()?.into()));
    programs.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/deps/berth_dma-1\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/deps/berth_dma-1")));
        assert_eq!(executable(""), None);
    }
}
