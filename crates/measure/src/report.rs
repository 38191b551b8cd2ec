//! What a bench says.

use std::fmt;

use serde::Serialize;

use crate::target::{Question, Range, Seen};

/// Whether a target is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
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
pub struct Row {
    /// The bench.
    pub name: String,
    /// Which of its cases.
    pub case: String,
    /// The median of our slices.
    pub ours: f64,
    /// That of the peer's.
    pub peer: f64,
    /// Of both.
    pub unit: String,
    /// The median of the rounds' ratios of ours to the peer's.
    pub ratio: f64,
    /// Where its 95% interval begins,
    pub low: f64,
    /// and ends.
    pub high: f64,
    /// The same ratio of the peer to itself.
    pub itself: f64,
    /// What the ratio should be, or what is asked instead and was seen.
    pub target: String,
    /// Whether it is.
    pub holds: Verdict,
    /// What there is to say.
    pub notes: Vec<String>,
}

impl Row {
    pub(crate) fn new(question: &Question, seen: &Seen, peer: f64) -> Self {
        let Range { middle: ratio, low, high } = seen.ratio;
        Self {
            name: question.name.to_owned(),
            case: question.case.clone(),
            ours: seen.ours.middle,
            peer,
            unit: question.unit.to_owned(),
            ratio,
            low,
            high,
            itself: seen.itself,
            target: question.target.text(question.unit, seen),
            holds: question.target.verdict(seen),
            notes: Vec::new(),
        }
    }

    /// Of what is counted and is the same each time.
    #[must_use]
    pub fn counted(question: &Question, ours: f64, peer: f64) -> Self {
        // Nothing beside nothing is the same.
        let ratio = if ours == peer { 1.0 } else { ours / peer.max(f64::MIN_POSITIVE) };
        let (ratio, over) = (Range::exact(ratio), Range::exact(ours - peer));
        let seen = Seen { ratio, ours: Range::exact(ours), over, itself: 1.0 };
        let row = Self::new(question, &seen, peer);
        eprintln!("{row}");
        row
    }

    /// The same with something said of it, which is printed now.
    #[must_use]
    pub fn with_note(mut self, note: String) -> Self {
        eprintln!("{note}");
        self.notes.push(note);
        self
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, case, ours, peer, unit, ratio, low, high, itself, target, .. } = self;
        write!(
            f,
            "{name:16} {case:44} {ours:>9.1} / {peer:>9.1} {unit:7} = {ratio:.3}x \
             [{low:.3}, {high:.3}] a/a {itself:.3}  {target}: {:?}",
            self.holds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Target;

    #[test]
    fn counts_are_exact() {
        let mut question = Question {
            name: "n",
            case: "c".to_owned(),
            unit: "ioctls",
            target: Target::Exactly(1.0),
        };
        let row = Row::counted(&question, 1.0, 1.0);
        assert_eq!((row.holds, row.ratio, row.target.as_str()), (Verdict::Holds, 1.0, "= 1.00"));
        assert_eq!(Row::counted(&question, 1.5, 1.0).holds, Verdict::Missed);
        question.target = Target::Exactly(0.0);
        let row = Row::counted(&question, 0.0, 0.0);
        assert_eq!((row.holds, row.ratio), (Verdict::Holds, 1.0));
    }
}
