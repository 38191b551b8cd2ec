//! `cargo xtask docs`: writes `docs/api` anew from the protocol and the routes.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::check::root;

/// The test that keeps them equal writes them when it is asked to.
pub(crate) fn run() -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args(["test", "--quiet", "-p", "berthd", "--test", "api_doc"])
        .env("BERTH_BLESS", "1")
        .current_dir(root()?)
        .status()
        .context("start cargo test")?;
    if status.success() { Ok(()) } else { bail!("cargo test ended with {status}") }
}
