//! How long the kernel takes to map and unmap, counted without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::model::{DmaLatencies, Latency};

/// Of one operation: calls that took less than 1, 2, 4, ... microseconds; the last has the rest.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; Latency::BUCKETS],
    sum_us: AtomicU64,
    max_us: AtomicU64,
}

impl Histogram {
    fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[Latency::bucket(us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
        self.max_us.fetch_max(us, Relaxed);
    }

    fn now(&self) -> Latency {
        Latency {
            buckets: self.buckets.each_ref().map(|count| count.load(Relaxed)),
            sum_us: self.sum_us.load(Relaxed),
            max_us: self.max_us.load(Relaxed),
        }
    }
}

/// Of maps and of unmaps.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    map: Histogram,
    unmap: Histogram,
}

impl Latencies {
    pub(crate) fn now(&self) -> DmaLatencies {
        DmaLatencies { map: self.map.now(), unmap: self.unmap.now() }
    }
}

/// Times what is mapped, in each of these.
pub(crate) fn mapping<T>(into: [&Latencies; 2], act: impl FnOnce() -> T) -> T {
    timed(into.map(|latencies| &latencies.map), act)
}

/// Times what is unmapped, in each of these.
pub(crate) fn unmapping<T>(into: [&Latencies; 2], act: impl FnOnce() -> T) -> T {
    timed(into.map(|latencies| &latencies.unmap), act)
}

fn timed<T>(into: [&Histogram; 2], act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let answer = act();
    let took = start.elapsed();
    into.iter().for_each(|histogram| histogram.record(took));
    answer
}
