//! What must always hold.
use crate::State;

/// Checks a state.
///
/// # Errors
///
/// The invariant that is broken, in words.
pub fn check(state: &State) -> Result<(), String> {
    let _ = state;
    Ok(())
}
