//! Trying again where the kernel says "not now" for a moment.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

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

/// How long a node that has just appeared may take to be given to its owner.
const GIVEN_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(20);

/// Opens a node that another process may still be giving to us: the kernel makes it root's, and
/// udev, which changes that, comes a moment after the bind.
pub(super) fn when_given<T>(open: impl FnMut() -> Result<T, IoctlError>) -> Result<T, IoctlError> {
    when_given_within(GIVEN_WITHIN, open)
}

fn when_given_within<T>(
    patience: Duration,
    mut open: impl FnMut() -> Result<T, IoctlError>,
) -> Result<T, IoctlError> {
    let end = Instant::now() + patience;
    loop {
        match open() {
            Err(error) if error.errno == Errno::ACCESS && Instant::now() < end => sleep(LOOK),
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_waited_for_until_it_is_given_and_not_for_ever() {
        let denied = || IoctlError::new("open", "/dev/vfio/8", Errno::ACCESS);
        let mut calls = 0;
        let opened = when_given(|| {
            calls += 1;
            if calls < 3 { Err(denied()) } else { Ok(calls) }
        });
        assert_eq!(opened, Ok(3));
        let never = when_given_within(Duration::from_millis(50), || Err::<(), _>(denied()));
        assert_eq!(never, Err(denied()));
        let other = IoctlError::new("open", "/dev/vfio/8", Errno::BUSY);
        let mut calls = 0;
        let answer: Result<(), _> = when_given(|| {
            calls += 1;
            Err(other.clone())
        });
        assert_eq!((answer, calls), (Err(other), 1));
    }

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
