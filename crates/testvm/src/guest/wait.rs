//! Waiting for something to become true.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Asks until there is a value.
///
/// # Errors
/// There is none within `patience`; `what` names it.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = ask() {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Asks until the answer is yes.
///
/// # Errors
/// It isn't within `patience`; `what` names it.
pub fn eventually(what: &str, patience: Duration, mut ask: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, patience, || ask().then_some(()))
}
