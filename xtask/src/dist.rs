//! `cargo xtask dist`.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask dist`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn main(_: &Arguments) -> Result<()> {
    bail!("this version has no `cargo xtask dist` yet")
}
