//! A histogram of seconds, as Prometheus reads it.

use std::{fmt::Write as _, time::Duration};

/// Upper ends in seconds: from what a list takes on an idle node to what makes pods wait.
const BOUNDS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How often each range was hit.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Histogram {
    /// Of each range by itself; what is above the last bound is in `count` alone.
    ranges: [u64; BOUNDS.len()],
    sum: f64,
    count: u64,
}

impl Histogram {
    pub(super) fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let range = BOUNDS.iter().position(|bound| seconds <= *bound);
        if let Some(hit) = range.and_then(|at| self.ranges.get_mut(at)) {
            *hit += 1;
        }
        self.sum += seconds;
        self.count += 1;
    }

    /// The lines of one series; `labels` without braces.
    pub(super) fn write(&self, text: &mut String, name: &str, labels: &str) {
        let mut below = 0;
        // Writing to a String can't fail.
        for (bound, hits) in BOUNDS.iter().zip(&self.ranges) {
            below += hits;
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(text, "{name}_sum{{{labels}}} {}", self.sum);
        let _ = writeln!(text, "{name}_count{{{labels}}} {}", self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_add_up_and_the_last_has_everything() {
        let mut histogram = Histogram::default();
        for ms in [10, 60, 60, 45_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut text = String::new();
        histogram.write(&mut text, "x", "resource=\"r\"");
        for line in [
            "x_bucket{resource=\"r\",le=\"0.01\"} 1\n",
            "x_bucket{resource=\"r\",le=\"0.05\"} 1\n",
            "x_bucket{resource=\"r\",le=\"0.1\"} 3\n",
            "x_bucket{resource=\"r\",le=\"30\"} 3\n",
            "x_bucket{resource=\"r\",le=\"+Inf\"} 4\n",
            "x_sum{resource=\"r\"} 45.13\n",
            "x_count{resource=\"r\"} 4\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
