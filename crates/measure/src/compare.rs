//! Two sides in turn: the peer against itself first, then ours beside the peer.
//!
//! A machine drifts by more than what is measured here, so that only ratios of slices that ran
//! one after the other count. A round is ours, peer, peer, ours.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    Side,
    report::Row,
    target::{Question, Range, Seen},
};

/// How many rounds make a ratio.
pub const ROUNDS: usize = 9;
/// How many resamples make a confidence interval.
const RESAMPLES: usize = 2000;

/// Measures.
///
/// # Errors
/// Of either side.
pub fn compare(question: &Question, ours: Side<'_>, peer: Side<'_>) -> Result<Row> {
    compare_in(ROUNDS, question, ours, peer)
}

/// Measures in so many rounds, for what takes too long for the usual number.
///
/// # Errors
/// Of either side.
pub fn compare_in(
    rounds: usize,
    question: &Question,
    ours: Side<'_>,
    peer: Side<'_>,
) -> Result<Row> {
    let began = Instant::now();
    ours()?;
    peer()?;
    let mut itself = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let (first, second) = (peer()?, peer()?);
        itself.push(if round % 2 == 0 { first / second } else { second / first });
    }
    let (mut ratios, mut over) = (Vec::new(), Vec::new());
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let first = ours()?;
        let (second, third) = (peer()?, peer()?);
        let fourth = ours()?;
        ratios.push((first + fourth) / (second + third));
        over.push((first + fourth - second - third) / 2.0);
        own.push((first + fourth) / 2.0);
        others.extend([second, third]);
    }
    let seen = Seen {
        ratio: interval(&ratios),
        ours: interval(&own),
        over: interval(&over),
        itself: median(&itself),
    };
    let row = Row::new(question, &seen, median(&others));
    eprintln!("{row}   [{:.0} s]", began.elapsed().as_secs_f64());
    Ok(row)
}

/// Operations in a second.
#[must_use]
pub fn rate(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64().max(1e-9)
}

/// The middle value; 0 of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { at(middle) } else { (at(middle.wrapping_sub(1)) + at(middle)) / 2.0 }
}

/// The value that so many of a hundred are not above; 0 of none.
#[must_use]
pub fn percentile(values: &[f64], of_hundred: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) * of_hundred / 100).copied().unwrap_or(0.0)
}

/// The median and its 95% interval by bootstrap, with a fixed seed.
fn interval(values: &[f64]) -> Range {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn: Vec<f64> = values.iter().map(|_| pick(values, &mut seed)).collect();
            median(&drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |index: usize| medians.get(index).copied().unwrap_or(0.0);
    let (low, high) = (at(RESAMPLES / 40), at(RESAMPLES - 1 - RESAMPLES / 40));
    Range { middle: median(values), low, high }
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
    use crate::{Target, Verdict};

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
        let hundred: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!((percentile(&hundred, 99), percentile(&[], 99)), (99.0, 0.0));
    }

    #[test]
    fn an_interval_holds_the_median_and_lies_within_the_values() {
        let ratios = [0.8, 0.9, 0.95, 1.0, 1.01, 1.02, 1.1, 1.2, 1.3];
        let Range { middle, low, high } = interval(&ratios);
        assert_eq!(middle, 1.01);
        assert!((0.8..=1.01).contains(&low) && (1.01..=1.3).contains(&high), "{low} {high}");
        assert!(low < high);
    }

    #[test]
    fn a_round_is_ours_peer_peer_ours() {
        let turns = std::cell::RefCell::new(String::new());
        let side = |letter, time: f64| {
            turns.borrow_mut().push(letter);
            Ok(time)
        };
        let (mut ours, mut peer) = (|| side('o', 15.0), || side('p', 10.0));
        let question =
            Question { name: "n", case: "c".to_owned(), unit: "ns", target: Target::Over(5.0) };
        let row = compare_in(2, &question, &mut ours, &mut peer).unwrap();
        assert_eq!(*turns.borrow(), "oppppp".to_owned() + "oppooppo");
        assert_eq!((row.ours, row.peer, row.ratio, row.itself), (15.0, 10.0, 1.5, 1.0));
        assert_eq!(
            (row.holds, row.target.as_str()),
            (Verdict::Holds, "<= +5 ns: +5.0 [+5.0, +5.0]")
        );
    }
}
