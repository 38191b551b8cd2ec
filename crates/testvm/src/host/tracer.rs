//! The tracer that lets calls fail, compiled for the guest.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::run::succeed;

/// Compiles it as the daemon's own tests do.
pub(super) fn stage(root: &Path, stage: &Path) -> Result<()> {
    let mut command = Command::new("cc");
    command.args(["-O2", "-Wall", "-Wextra", "-o"]).arg(stage.join("failnth"));
    command.arg(root.join("daemon/tests/failnth/failnth.c"));
    succeed(command)
}
