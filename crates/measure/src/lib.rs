//! Two sides in turn: how every bench compares, and the line that it says.
#![forbid(unsafe_code)]

mod compare;
mod program;
mod report;
mod target;

pub use compare::{ROUNDS, compare, compare_in, median, percentile, rate};
pub use program::{Backend, Bench, run};
pub use report::{Row, Verdict};
pub use target::{Question, Target};

/// One side: runs a slice and says its rate or time.
pub type Side<'a> = &'a mut dyn FnMut() -> anyhow::Result<f64>;
