//! Slices of something that is timed call by call.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use anyhow::Result;
use berth_measure::{Question, Row, compare, median, percentile};
use rustix::time::{ClockId, clock_gettime};

/// A slice is as many as fit in, and one at least.
const SLICE: Duration = Duration::from_millis(60);

/// Processor time of this thread so far: what has no kernel in it is measured by that, so that a machine
/// with others on it is no worse.
///
/// # Units
/// Seconds.
pub(crate) fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// How long something takes.
///
/// # Units
/// Microseconds.
pub(crate) fn time(act: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    act()?;
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

/// A side: what it does is timed by itself, so that it can do more in between. Each slice leaves its
/// 99th percentile.
pub(crate) struct Timed<F> {
    one: F,
    most: RefCell<Vec<f64>>,
}

impl<F: FnMut() -> Result<f64>> Timed<F> {
    pub(crate) const fn new(one: F) -> Self {
        Self { one, most: RefCell::new(Vec::new()) }
    }

    /// The median of a slice.
    pub(crate) fn slice(&mut self) -> Result<f64> {
        let began = Instant::now();
        let mut times = Vec::new();
        while times.is_empty() || began.elapsed() < SLICE {
            times.push((self.one)()?);
        }
        self.most.borrow_mut().push(percentile(&times, 99));
        Ok(median(&times))
    }

    /// The median of the slices' 99th percentiles.
    pub(crate) fn most(&self) -> f64 {
        median(&self.most.borrow())
    }
}

/// Compares times, and notes the 99th percentiles.
///
/// # Errors
/// Of either side.
pub(crate) fn compare_times(
    question: &Question,
    ours: impl FnMut() -> Result<f64>,
    peer: impl FnMut() -> Result<f64>,
) -> Result<(Row, String)> {
    let (mut ours, mut peer) = (Timed::new(ours), Timed::new(peer));
    let row = compare(question, &mut || ours.slice(), &mut || peer.slice())?;
    let note = format!("99 of 100 within {:.1} us, and {:.1} us", ours.most(), peer.most());
    Ok((row, note))
}

/// The same of so many things at once, as thousands of them in a second: where the target is a rate.
///
/// # Errors
/// Of either side.
pub(crate) fn compare_rates(
    question: &Question,
    things: u64,
    ours: impl FnMut() -> Result<f64>,
    peer: impl FnMut() -> Result<f64>,
) -> Result<Row> {
    let (mut ours, mut peer) = (Timed::new(ours), Timed::new(peer));
    let rate = |time: f64| things as f64 * 1e3 / time.max(1e-3);
    compare(question, &mut || Ok(rate(ours.slice()?)), &mut || Ok(rate(peer.slice()?)))
}
