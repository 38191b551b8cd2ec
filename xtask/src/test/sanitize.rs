//! With `--long`: the tests of the crates that have unsafe code, built with AddressSanitizer.

use anyhow::Result;

use super::cargo::{cargo, run_tests};
use crate::{fuzz::triple, tally::Tally, workspace};

/// The crates, as far as they run without a device.
const PACKAGES: [&str; 2] = ["berth-dma", "berth-uapi"];

/// Builds and runs them in a target directory of their own: everything that they are made of gets
/// the flag. The pinned compiler has the sanitizer's library, but wants to be told that it may.
pub(super) fn run() -> Result<Tally> {
    let mut command = cargo()?;
    command.args(["test", "--no-fail-fast", "--lib", "--tests", "--target", &triple()?]);
    command.arg("--target-dir").arg(workspace::target().join("asan"));
    command.args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    // Memory that a device may still use is leaked on purpose.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    run_tests(command, "the tests with AddressSanitizer")
}
