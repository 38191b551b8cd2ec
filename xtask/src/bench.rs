//! `cargo xtask bench`.

use anyhow::{Result, bail};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn main(_: &Arguments) -> Result<()> {
    bail!("this version has no `cargo xtask bench` yet")
}
