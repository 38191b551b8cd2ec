//! `cargo xtask mutants`.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask mutants`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn main(_: &Arguments) -> Result<()> {
    bail!("this version has no `cargo xtask mutants` yet")
}
