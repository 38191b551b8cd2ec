//! `cargo xtask docs`: writes `docs/api` anew from the protocol and the routes.

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::run::cargo;

use crate::check::root;

/// The test that keeps them equal writes them when it is asked to.
pub(crate) fn run() -> Result<()> {
    let status = cargo(&root()?)
        .args(["test", "--quiet", "-p", "berthd", "--test", "api_doc"])
        .env("BERTH_BLESS", "1")
        .status()
        .context("start cargo test")?;
    if status.success() { Ok(()) } else { bail!("cargo test ended with {status}") }
}
