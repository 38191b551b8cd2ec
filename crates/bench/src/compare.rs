//! Two sides in turn: the peer against itself first, then ours beside the peer.
//!
//! A machine drifts by more than what is measured here, so that only ratios of slices that ran
//! one after the other count. A round is ours, peer, peer, ours.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::report::{Row, Verdict};

/// How many rounds make a ratio.
const ROUNDS: usize = 9;
/// How many resamples make a confidence interval.
const RESAMPLES: usize = 2000;
/// A target that is far from 1 leaves no more margin than this to a peer against itself.
const WIDEST_MARGIN: f64 = 0.3;

/// What a ratio of ours to the peer's should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// A rate.
    AtLeast(f64),
    /// A time.
    AtMost(f64),
    /// Nothing: it is printed beside.
    Beside,
}

impl Target {
    fn text(self) -> String {
        match self {
            Self::AtLeast(ratio) => format!(">= {ratio:.2}x"),
            Self::AtMost(ratio) => format!("<= {ratio:.2}x"),
            Self::Beside => "beside".to_owned(),
        }
    }

    fn margin(self) -> f64 {
        match self {
            Self::AtLeast(ratio) | Self::AtMost(ratio) => (1.0 - ratio).abs().min(WIDEST_MARGIN),
            Self::Beside => WIDEST_MARGIN,
        }
    }

    /// What the interval of a ratio says; a ratio by itself is an interval of nothing.
    fn verdict(self, low: f64, high: f64, itself: f64) -> Verdict {
        let (met, missed) = match self {
            Self::AtLeast(ratio) => (low >= ratio, high < ratio),
            Self::AtMost(ratio) => (high <= ratio, low > ratio),
            Self::Beside => return Verdict::Beside,
        };
        let quiet = (itself - 1.0).abs() <= self.margin() / 3.0;
        match (met, missed) {
            (true, _) if quiet => Verdict::Holds,
            (_, true) if quiet => Verdict::Missed,
            _ => Verdict::Unsure,
        }
    }
}

/// What is compared.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// The bench.
    pub(crate) name: &'static str,
    /// Which of its cases.
    pub(crate) case: String,
    /// Of both absolutes.
    pub(crate) unit: &'static str,
    /// Whether it holds.
    pub(crate) target: Target,
}

/// One side: runs a slice and says its rate or time.
pub(crate) type Side<'a> = &'a mut dyn FnMut() -> Result<f64>;

/// Measures.
///
/// # Errors
/// Of either side.
pub(crate) fn compare(question: &Question, ours: Side<'_>, peer: Side<'_>) -> Result<Row> {
    let began = Instant::now();
    ours()?;
    peer()?;
    let mut itself = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let (first, second) = (peer()?, peer()?);
        itself.push(if round % 2 == 0 { first / second } else { second / first });
    }
    let (mut ratios, mut own, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let first = ours()?;
        let (second, third) = (peer()?, peer()?);
        let fourth = ours()?;
        ratios.push((first + fourth) / (second + third));
        own.extend([first, fourth]);
        others.extend([second, third]);
    }
    let (low, high) = interval(&ratios);
    let itself = median(&itself);
    let row = Row {
        name: question.name.to_owned(),
        case: question.case.clone(),
        ours: median(&own),
        peer: median(&others),
        unit: question.unit.to_owned(),
        ratio: median(&ratios),
        low,
        high,
        itself,
        target: question.target.text(),
        holds: question.target.verdict(low, high, itself),
        notes: Vec::new(),
    };
    eprintln!("{row}   [{:.0} s]", began.elapsed().as_secs_f64());
    Ok(row)
}

/// Operations in a second.
pub(crate) fn rate(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64().max(1e-9)
}

/// The middle value; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { at(middle) } else { (at(middle.wrapping_sub(1)) + at(middle)) / 2.0 }
}

/// The 95% interval of the median by bootstrap, with a fixed seed.
fn interval(ratios: &[f64]) -> (f64, f64) {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn: Vec<f64> = ratios.iter().map(|_| pick(ratios, &mut seed)).collect();
            median(&drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |index: usize| medians.get(index).copied().unwrap_or(0.0);
    (at(RESAMPLES / 40), at(RESAMPLES - 1 - RESAMPLES / 40))
}

fn pick(values: &[f64], seed: &mut u64) -> f64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    let index = usize::try_from(*seed >> 33).unwrap_or(0) % values.len().max(1);
    values.get(index).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn an_interval_holds_the_median_and_lies_within_the_values() {
        let ratios = [0.8, 0.9, 0.95, 1.0, 1.01, 1.02, 1.1, 1.2, 1.3];
        let (low, high) = interval(&ratios);
        assert!((0.8..=1.01).contains(&low) && (1.01..=1.3).contains(&high), "{low} {high}");
        assert!(low < high);
    }

    #[test]
    fn nothing_holds_while_the_peer_differs_from_itself() {
        let target = Target::AtLeast(0.9);
        assert_eq!(target.verdict(0.95, 0.99, 1.01), Verdict::Holds);
        assert_eq!(target.verdict(0.95, 0.99, 1.05), Verdict::Unsure);
        assert_eq!(target.verdict(0.85, 0.95, 1.0), Verdict::Unsure);
        assert_eq!(target.verdict(0.7, 0.8, 1.0), Verdict::Missed);
        assert_eq!(Target::AtMost(1.3).verdict(1.1, 1.2, 0.95), Verdict::Holds);
        assert_eq!(Target::AtMost(1.3).verdict(1.4, 1.5, 1.0), Verdict::Missed);
    }
}
