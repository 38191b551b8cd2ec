//! `cargo xtask fuzz`.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn main(_: &Arguments) -> Result<()> {
    bail!("this version has no `cargo xtask fuzz` yet")
}
