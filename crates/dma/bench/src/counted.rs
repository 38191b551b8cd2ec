//! What a call costs, counted: allocations here, ioctls and instructions by a program that traces this
//! one.
#![expect(unsafe_code, reason = "counts allocations")]

#[path = "../../tests/counting/mod.rs"]
mod counting;

use std::{env, process::Command};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Signal, getpid, kill_process};

use crate::Places;

/// Allocations of this thread.
pub(crate) fn allocations(act: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = counting::allocations();
    act()?;
    Ok(counting::allocations() - before)
}

/// What the tracing program counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    Ioctls,
    Instructions,
}

/// Runs this program once more, under the one that counts, for one of its [`crate::COUNTED`].
///
/// # Errors
/// It failed, or it may not be traced.
pub(crate) fn by_tracing(places: &Places, what: What, name: &str) -> Result<f64> {
    let mut command = Command::new(places.peers.join("count"));
    command.arg(match what {
        What::Ioctls => "ioctls",
        What::Instructions => "instructions",
    });
    command.arg(env::current_exe().context("where is this program?")?);
    command.args(["--counted", name]).args(places.words());
    let output = command.output().context("start the program that counts")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let counted = text.lines().find_map(|line| line.strip_prefix("counted ")?.parse().ok());
    match counted {
        Some(number) if output.status.success() => Ok(number),
        _ => bail!("counting {name}: {}{text}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Runs what is to be counted, between two marks.
pub(crate) fn marked(act: impl FnOnce() -> Result<()>) -> Result<()> {
    let mark = || kill_process(getpid(), Signal::USR1).context("send a mark");
    mark()?;
    act()?;
    mark()
}
