//! `iova_alloc`: finding free IOVAs. A million takes and returns of mixed sizes, on the table of
//! `berth-dma`, which is compiled in from its source since it isn't public. The peer keeps free ranges in
//! a `BTreeMap` by address and in a `BTreeSet` by size, takes the smallest that fits, and joins
//! neighbours.
//!
//! Both make the same requests. Neither aligns anything here: large pages are another question.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use berth_measure::{Question, Row, Target, compare, median};
use berth_uapi::IovaRange;

use crate::{Places, counted::allocations, table::Table, timing::cpu};

const PAGE: u64 = 4096;
/// Operations of a slice.
const OPERATIONS: u64 = 1_000_000;
/// How often it is looked at how much lies between what is taken.
const LOOKS: usize = 40;
/// As many are taken at once on average.
const LIVE: usize = 4096;
const SPACE: IovaRange = IovaRange { start: PAGE, last: (1 << 40) - 1 };

/// What gives addresses out.
trait GiveOut {
    type Place: Copy;
    fn take(&mut self, length: u64) -> Option<Self::Place>;
    fn give(&mut self, place: Self::Place, length: u64);
    /// The first address behind all that is taken, where everything is taken from below.
    fn last(&self, place: Self::Place, length: u64) -> u64;
}

impl GiveOut for Table {
    type Place = u32;

    fn take(&mut self, length: u64) -> Option<u32> {
        self.take_any(length, 0).ok()
    }

    fn give(&mut self, place: u32, _: u64) {
        self.release(place);
    }

    fn last(&self, place: u32, _: u64) -> u64 {
        self.range(place).last
    }
}

/// The peer.
struct BestFit {
    by_start: BTreeMap<u64, u64>,
    by_size: BTreeSet<(u64, u64)>,
}

impl BestFit {
    fn new(range: IovaRange) -> Self {
        let mut new = Self { by_start: BTreeMap::new(), by_size: BTreeSet::new() };
        new.add(range.start, range.last - range.start + 1);
        new
    }

    fn add(&mut self, start: u64, length: u64) {
        self.by_start.insert(start, length);
        self.by_size.insert((length, start));
    }

    fn drop_free(&mut self, start: u64, length: u64) {
        self.by_start.remove(&start);
        self.by_size.remove(&(length, start));
    }
}

impl GiveOut for BestFit {
    type Place = u64;

    fn take(&mut self, length: u64) -> Option<u64> {
        let (found, start) = *self.by_size.range((length, 0)..).next()?;
        self.drop_free(start, found);
        if found > length {
            self.add(start + length, found - length);
        }
        Some(start)
    }

    fn give(&mut self, mut start: u64, mut length: u64) {
        if let Some(after) = self.by_start.get(&(start + length)).copied() {
            self.drop_free(start + length, after);
            length += after;
        }
        let before = self.by_start.range(..start).next_back().map(|(at, length)| (*at, *length));
        if let Some((at, before)) = before.filter(|(at, length)| at + length == start) {
            self.drop_free(at, before);
            (start, length) = (at, length + before);
        }
        self.add(start, length);
    }

    fn last(&self, place: u64, length: u64) -> u64 {
        place + length - 1
    }
}

struct Work<P: GiveOut> {
    places: P,
    live: Vec<(P::Place, u64)>,
    seed: u64,
}

impl<P: GiveOut> Work<P> {
    fn new(places: P) -> Self {
        Self { places, live: Vec::with_capacity(2 * LIVE), seed: 0x2545_f491_4f6c_dd1d }
    }

    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed >> 11
    }

    /// Mostly pages and a few of them, sometimes up to a MiB.
    fn length(&mut self) -> u64 {
        let random = self.random();
        let pages = match random % 16 {
            0..8 => 1,
            8..12 => 2 + (random >> 8) % 15,
            12..15 => 16 + (random >> 8) % 48,
            _ => 64 + (random >> 8) % 192,
        };
        pages * PAGE
    }

    fn run(&mut self, operations: u64) -> Result<()> {
        for _ in 0..operations {
            // The fewer there are, the more likely is another one.
            let taken = u64::try_from(self.live.len())?;
            let full = 2 * u64::try_from(LIVE)?;
            if self.random() % full >= taken {
                let length = self.length();
                let place = self.places.take(length).context("no room")?;
                self.live.push((place, length));
            } else {
                let random = usize::try_from(self.random())?;
                let (place, length) = self.live.swap_remove(random % self.live.len());
                self.places.give(place, length);
            }
        }
        Ok(())
    }

    /// Million operations in a second of processor time.
    fn slice(&mut self) -> Result<f64> {
        let before = cpu();
        self.run(OPERATIONS)?;
        Ok(OPERATIONS as f64 / 1e6 / (cpu() - before))
    }

    /// What lies between the bottom and the last that is taken, beside what is taken: 1 without a gap.
    fn spread(&self) -> Result<f64> {
        let taken: u64 = self.live.iter().map(|(_, length)| length).sum();
        let lasts = self.live.iter().map(|(place, length)| self.places.last(*place, *length));
        let last = lasts.max().context("nothing is taken")?;
        ensure!(taken > 0, "nothing is taken");
        Ok((last + 1 - SPACE.start) as f64 / taken as f64)
    }
}

fn table() -> Table {
    let mut table = Table::new(PAGE);
    table.permit(vec![SPACE]);
    table
}

/// Runs it.
///
/// # Errors
/// There was no room.
pub(crate) fn bench(_: &Places) -> Result<Vec<Row>> {
    let question = |case: &str, unit, target| Question {
        name: "iova_alloc",
        case: case.to_owned(),
        unit,
        target,
    };
    let (mut ours, mut peer) = (Work::new(table()), Work::new(BestFit::new(SPACE)));
    let case = format!("{OPERATIONS} mixed, {LIVE} taken / best fit in BTrees");
    let time =
        compare(&question(&case, "M/s", Target::AtLeast(3.0)), &mut || ours.slice(), &mut || {
            peer.slice()
        })?;
    let allocated = allocations(|| ours.run(OPERATIONS))? as f64 / OPERATIONS as f64;
    let others = allocations(|| peer.run(OPERATIONS))? as f64 / OPERATIONS as f64;
    let heap = question("heap allocations", "an op.", Target::Exactly(0.0));
    let mut rows = vec![time, Row::counted(&heap, allocated, others)];
    // From here on with the same random numbers: what is taken has the same sizes.
    let (mut ours, mut peer) = (Work::new(table()), Work::new(BestFit::new(SPACE)));
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for _ in 0..LOOKS {
        ours.run(OPERATIONS / 4)?;
        peer.run(OPERATIONS / 4)?;
        own.push(ours.spread()?);
        others.push(peer.spread()?);
    }
    let spread = question("addresses used / bytes taken", "x", Target::AtMost(1.0));
    rows.push(Row::counted(&spread, median(&own), median(&others)));
    Ok(rows)
}
