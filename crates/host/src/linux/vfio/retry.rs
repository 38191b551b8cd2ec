//! Trying again where the kernel says "not now" for a moment.

use std::{thread::sleep, time::Duration};

use berth_uapi::{Errno, IoctlError};

/// How often, and after which first pause; each further pause is twice as long.
const TRIES: u32 = 6;
const FIRST_PAUSE_MS: u64 = 5;

/// Calls until the answer is something else than `transient`, 155 ms at the longest.
pub(super) fn while_transient<T>(
    transient: Errno,
    mut call: impl FnMut() -> Result<T, IoctlError>,
) -> Result<T, IoctlError> {
    let mut pause = Duration::from_millis(FIRST_PAUSE_MS);
    for _ in 1..TRIES {
        match call() {
            Err(error) if error.errno == transient => sleep(pause),
            answer => return answer,
        }
        pause *= 2;
    }
    call()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_up_and_stops_at_other_answers() {
        let busy = || IoctlError::new("op", "object", Errno::BUSY);
        let mut calls = 0;
        let answer: Result<(), _> = while_transient(Errno::BUSY, || {
            calls += 1;
            Err(busy())
        });
        assert_eq!((answer, calls), (Err(busy()), TRIES));
        let mut calls = 0;
        let answer = while_transient(Errno::BUSY, || {
            calls += 1;
            if calls < 3 { Err(busy()) } else { Ok(calls) }
        });
        assert_eq!(answer, Ok(3));
        let other = IoctlError::new("op", "object", Errno::PERM);
        assert_eq!(while_transient::<()>(Errno::BUSY, || Err(other.clone())), Err(other));
    }
}
