//! What is asked, and when the answer is good.

use crate::report::Verdict;

/// A target that is close to 1 leaves this: no machine is as quiet as some ask for.
const NARROWEST_MARGIN: f64 = 0.03;
/// A target that is far from 1 leaves no more margin than this to a peer against itself.
const WIDEST_MARGIN: f64 = 0.3;

/// What ours should be beside the peer's, or by itself.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// The ratio of a rate.
    AtLeast(f64),
    /// The ratio of a time.
    AtMost(f64),
    /// Ours by itself, in the question's unit.
    Within(f64),
    /// Ours less the peer's, in the question's unit.
    Over(f64),
    /// Ours is counted, and exactly this.
    Exactly(f64),
    /// Nothing: it is printed beside.
    Beside,
}

/// What is compared.
#[derive(Debug, Clone)]
pub struct Question {
    /// The bench.
    pub name: &'static str,
    /// Which of its cases.
    pub case: String,
    /// Of both absolutes.
    pub unit: &'static str,
    /// Whether it holds.
    pub target: Target,
}

/// A number and the interval that it lies in.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Range {
    pub(crate) middle: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Range {
    /// Of something counted.
    pub(crate) const fn exact(value: f64) -> Self {
        Self { middle: value, low: value, high: value }
    }
}

/// All that a target may be about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) ratio: Range,
    pub(crate) ours: Range,
    pub(crate) over: Range,
    /// The ratio of the peer to itself.
    pub(crate) itself: f64,
}

impl Target {
    /// What it asks, and what was seen where the ratio doesn't say it.
    pub(crate) fn text(self, unit: &str, seen: &Seen) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {least:.2}x"),
            Self::AtMost(most) => format!("<= {most:.2}x"),
            Self::Within(most) => {
                let Range { middle, low, high } = seen.ours;
                format!("<= {most} {unit}: {middle:.1} [{low:.1}, {high:.1}]")
            }
            Self::Over(most) => {
                let Range { middle, low, high } = seen.over;
                format!("<= {most:+} {unit}: {middle:+.1} [{low:+.1}, {high:+.1}]")
            }
            Self::Exactly(value) => format!("= {value:.2}"),
            Self::Beside => "beside".to_owned(),
        }
    }

    fn margin(self) -> f64 {
        match self {
            Self::AtLeast(ratio) | Self::AtMost(ratio) => {
                (1.0 - ratio).abs().clamp(NARROWEST_MARGIN, WIDEST_MARGIN)
            }
            Self::Within(_) | Self::Over(_) | Self::Exactly(_) | Self::Beside => WIDEST_MARGIN,
        }
    }

    /// What the interval says; a ratio by itself is an interval of nothing.
    pub(crate) fn verdict(self, seen: &Seen) -> Verdict {
        let at_most = |most: f64, range: Range| (range.high <= most, range.low > most);
        let (met, missed) = match self {
            Self::AtLeast(least) => (seen.ratio.low >= least, seen.ratio.high < least),
            Self::AtMost(most) => at_most(most, seen.ratio),
            Self::Within(most) => at_most(most, seen.ours),
            Self::Over(most) => at_most(most, seen.over),
            Self::Exactly(value) => {
                let same = (seen.ours.middle - value).abs() < 0.005;
                (same, !same)
            }
            Self::Beside => return Verdict::Beside,
        };
        let quiet = (seen.itself - 1.0).abs() <= self.margin() / 3.0;
        match (met, missed) {
            (true, _) if quiet => Verdict::Holds,
            (_, true) if quiet => Verdict::Missed,
            _ => Verdict::Unsure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(low: f64, high: f64, itself: f64) -> Seen {
        let ratio = Range { middle: (low + high) / 2.0, low, high };
        Seen { ratio, ours: ratio, over: ratio, itself }
    }

    #[test]
    fn nothing_holds_while_the_peer_differs_from_itself() {
        let target = Target::AtLeast(0.9);
        assert_eq!(target.verdict(&seen(0.95, 0.99, 1.01)), Verdict::Holds);
        assert_eq!(target.verdict(&seen(0.95, 0.99, 1.05)), Verdict::Unsure);
        assert_eq!(target.verdict(&seen(0.85, 0.95, 1.0)), Verdict::Unsure);
        assert_eq!(target.verdict(&seen(0.7, 0.8, 1.0)), Verdict::Missed);
        assert_eq!(Target::AtMost(1.3).verdict(&seen(1.1, 1.2, 0.95)), Verdict::Holds);
        assert_eq!(Target::AtMost(1.3).verdict(&seen(1.4, 1.5, 1.0)), Verdict::Missed);
    }

    #[test]
    fn absolutes_are_judged_by_themselves() {
        let mut seen = seen(9.0, 9.0, 1.0);
        seen.ours = Range { middle: 4.0, low: 3.0, high: 4.9 };
        seen.over = Range { middle: 31.0, low: 30.5, high: 32.0 };
        assert_eq!(Target::Within(5.0).verdict(&seen), Verdict::Holds);
        assert_eq!(Target::Within(2.0).verdict(&seen), Verdict::Missed);
        assert_eq!(Target::Over(30.0).verdict(&seen), Verdict::Missed);
        assert_eq!(Target::Over(31.0).verdict(&seen), Verdict::Unsure);
        assert_eq!(Target::Exactly(4.0).verdict(&seen), Verdict::Holds);
        assert_eq!(Target::Exactly(4.01).verdict(&seen), Verdict::Missed);
        let text = Target::Over(30.0).text("ns", &seen);
        assert_eq!(text, "<= +30 ns: +31.0 [+30.5, +32.0]");
        assert_eq!(Target::Within(5.0).text("ns", &seen), "<= 5 ns: 4.0 [3.0, 4.9]");
        assert_eq!(Target::AtMost(1.03).text("ns", &seen), "<= 1.03x");
    }
}
