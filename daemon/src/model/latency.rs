//! Counted latencies.

/// How long calls of one kind took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency {
    /// Calls that took less than 1, 2, 4, ... microseconds and not less than half of it; the last
    /// has the rest.
    pub buckets: [u64; Self::BUCKETS],
    /// All of them together, in microseconds.
    pub sum_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
}

/// Of maps and of unmaps, refused ones included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DmaLatencies {
    /// Of maps.
    pub map: Latency,
    /// Of unmaps.
    pub unmap: Latency,
}

impl Latency {
    /// Up to 16 seconds, and one for what takes longer.
    pub const BUCKETS: usize = 26;

    /// Where a call that took so many microseconds is counted.
    #[must_use]
    pub fn bucket(us: u64) -> usize {
        let bits = usize::try_from(u64::BITS - us.leading_zeros()).unwrap_or(usize::MAX);
        bits.min(Self::BUCKETS - 1)
    }

    /// What calls in a bucket took less than, in microseconds; `None` for the last one.
    #[must_use]
    pub fn below_us(bucket: usize) -> Option<u64> {
        (bucket < Self::BUCKETS - 1).then(|| 1 << bucket)
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The least bound, in microseconds, that so many in a hundred calls stayed below: a power of two,
    /// or the longest that a call took. 0 without any call.
    #[must_use]
    pub fn percentile_us(&self, percent: u64) -> u64 {
        let wanted = self.count().saturating_mul(percent).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Self::below_us(bucket).map_or(self.max_us, |us| us.min(self.max_us));
            }
        }
        self.max_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(calls: &[u64]) -> Latency {
        let mut latency = Latency::default();
        for us in calls {
            latency.buckets[Latency::bucket(*us)] += 1;
            latency.sum_us += us;
            latency.max_us = latency.max_us.max(*us);
        }
        latency
    }

    #[test]
    fn a_call_is_counted_below_its_bound_and_not_below_the_half() {
        for us in [0, 1, 2, 3, 4, 1023, 1024, (1 << 24) - 1] {
            let bucket = Latency::bucket(us);
            let below = Latency::below_us(bucket).expect("a bound");
            assert!(us < below && (us == 0 || us >= below / 2), "{us}");
        }
        assert_eq!(Latency::below_us(Latency::bucket(u64::MAX)), None);
    }

    #[test]
    fn percentiles_are_bounds_and_never_more_than_the_longest() {
        assert_eq!(of(&[]).percentile_us(99), 0);
        let mut calls = vec![3; 98];
        calls.extend([900, 100_000_000]);
        let latency = of(&calls);
        assert_eq!(latency.count(), 100);
        assert_eq!(latency.percentile_us(50), 4);
        assert_eq!(latency.percentile_us(99), 1024);
        assert_eq!(latency.percentile_us(100), 100_000_000);
        assert_eq!(of(&[5]).percentile_us(50), 5);
    }
}
