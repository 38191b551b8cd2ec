//! `populate`: having new memory there before it is mapped, by two threads beside one.

use std::{num::NonZero, time::Instant};

use anyhow::{Context as _, Result};
use berth_dma::DmaBuffer;
use berth_measure::{Question, Row, Target, compare_in};

use crate::Places;

const BYTES: usize = 4 << 30;
/// Of four slices each; one takes a second or more.
const ROUNDS: usize = 5;

/// GiB in a second; giving the memory back is in no time.
fn populate(threads: usize) -> Result<f64> {
    let buffer = DmaBuffer::new(BYTES)?;
    let threads = NonZero::new(threads).context("no thread")?;
    let began = Instant::now();
    buffer.populate(threads)?;
    Ok(4.0 / began.elapsed().as_secs_f64())
}

/// Runs it.
///
/// # Errors
/// There is no memory.
pub(crate) fn bench(_: &Places) -> Result<Vec<Row>> {
    let question = Question {
        name: "populate",
        case: "4 GiB of new memory, 2 threads / 1 thread".to_owned(),
        unit: "GiB/s",
        target: Target::AtLeast(1.6),
    };
    Ok(vec![compare_in(ROUNDS, &question, &mut || populate(2), &mut || populate(1))?])
}
