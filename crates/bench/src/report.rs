//! What a bench says.

use std::fmt;

use serde::Serialize;

/// Whether a target is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// It is, over the whole interval.
    Holds,
    /// It isn't, over the whole interval.
    Missed,
    /// The interval has the target in it, or the peer differs from itself by too much.
    Unsure,
    /// There is none.
    Beside,
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// The bench.
    pub(crate) name: String,
    /// Which of its cases.
    pub(crate) case: String,
    /// The median of our slices.
    pub(crate) ours: f64,
    /// That of the peer's.
    pub(crate) peer: f64,
    /// Of both.
    pub(crate) unit: String,
    /// The median of the rounds' ratios of ours to the peer's.
    pub(crate) ratio: f64,
    /// Where its 95% interval begins,
    pub(crate) low: f64,
    /// and ends.
    pub(crate) high: f64,
    /// The same ratio of the peer to itself.
    pub(crate) itself: f64,
    /// What the ratio should be.
    pub(crate) target: String,
    /// Whether it is.
    pub(crate) holds: Verdict,
    /// What there is to say.
    pub(crate) notes: Vec<String>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, case, ours, peer, unit, ratio, low, high, itself, target, .. } = self;
        write!(
            f,
            "{name:16} {case:44} {ours:>9.1} / {peer:>9.1} {unit:7} = {ratio:.2}x \
             [{low:.2}, {high:.2}] a/a {itself:.2}  {target}: {:?}",
            self.holds
        )
    }
}
