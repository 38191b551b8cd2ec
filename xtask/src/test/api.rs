//! The OpenAPI document passes a linter, and a client that is made from it and sends what it likes finds
//! no answer of 500 or above, and none that the document doesn't describe.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{daemon::Daemon, python};
use crate::tally::Tally;

/// How long it may send.
const SECONDS: &str = "75";

pub(super) fn run(root: &Path) -> Result<Tally> {
    let Some(python) = python::ensure(root)? else { return Ok(Tally::skipped()) };
    let daemon = Daemon::start(root, "sim:small")?;
    let status = Command::new(python)
        .arg(root.join("xtask/python/fuzz_api.py"))
        .arg(daemon.socket("http.sock"))
        .arg(SECONDS)
        .status()
        .context("start the client of the API")?;
    println!("docs api ... {}", if status.success() { "ok" } else { "FAILED" });
    Ok(Tally::one(status.success()))
}
