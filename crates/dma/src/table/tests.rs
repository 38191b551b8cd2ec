//! The table against a list of pages.

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;
const PAGES: u64 = 96;

fn range(first_page: u64, pages: u64) -> IovaRange {
    IovaRange { start: first_page * PAGE, last: (first_page + pages) * PAGE - 1 }
}

fn table(permitted: &[IovaRange]) -> Table {
    let mut table = Table::new(PAGE);
    table.permit(permitted.to_vec());
    table
}

/// Tiles cover everything, free ones are as large as can be, and all of them are in their bins.
fn check(table: &Table) {
    let (mut at, mut next, mut free) = (table.first, 0_u64, 0);
    let mut before = NONE;
    while at != NONE {
        let tile = *table.tile(at);
        assert_eq!((tile.start, tile.before), (next, before), "a gap before {tile:?}");
        assert!(tile.last >= tile.start && tile.kind != Kind::Spare, "{tile:?}");
        if tile.kind == Kind::Free {
            free += 1;
            assert!(table.permitting(tile.range()).is_some(), "{tile:?} isn't permitted");
            if before != NONE && table.tile(before).kind == Kind::Free {
                let both = IovaRange { start: table.tile(before).start, last: tile.last };
                assert!(table.permitting(both).is_none(), "{tile:?} and the one before are one");
            }
        }
        before = at;
        at = tile.after;
        if at == NONE {
            assert_eq!(tile.last, u64::MAX);
        } else {
            next = tile.last + 1;
        }
    }
    let mut listed: Vec<u32> = table.bins.perhaps(&table.tiles, 1).collect();
    assert!(listed.iter().all(|tile| table.tile(*tile).kind == Kind::Free));
    assert_eq!(listed.len(), free);
    listed.sort_unstable();
    listed.dedup();
    assert_eq!(listed.len(), free, "one is listed twice");
}

#[test]
fn free_ranges_are_given_out_and_grow_together_again() {
    let mut table = table(&[range(0, 16), range(32, 16)]);
    let take = |table: &mut Table, pages| table.take_any(pages * PAGE, 0).expect("room");
    // Of both ranges, the smaller one has what is needed; address 0 is never given out.
    let first = take(&mut table, 2);
    assert_eq!(table.range(first), range(1, 2));
    let (second, third) = (take(&mut table, 3), take(&mut table, 10));
    assert_eq!((table.range(second), table.range(third)), (range(3, 3), range(6, 10)));
    assert_eq!(table.taken().collect::<Vec<_>>(), [first, second, third]);
    assert_eq!(table.take_any(17 * PAGE, 0), Err(16 * PAGE));
    for tile in [first, third, second] {
        table.release(tile);
        check(&table);
    }
    let all = take(&mut table, 15);
    assert_eq!(table.range(all), range(1, 15));
}

#[test]
fn a_run_is_given_back_as_one() {
    // The run goes over the end of a permitted range into the next, which touches.
    let mut table = table(&[range(1, 8), range(9, 8)]);
    let mut before = None;
    let tiles: Vec<u32> = (1..17)
        .map(|page| {
            let tile = table.take(before, page * PAGE, PAGE, false).expect("free");
            before = Some(tile);
            tile
        })
        .collect();
    let numbers = table.numbers();
    table.release_run(tiles[2..13].iter().copied());
    check(&table);
    let left: Vec<u32> = [&tiles[..2], &tiles[13..]].concat();
    assert_eq!(table.taken().collect::<Vec<_>>(), left);
    assert_eq!(table.take_any(7 * PAGE, 0), Err(6 * PAGE), "pages 3 to 8 are one, 9 to 13 another");
    table.release_run(left[..2].iter().copied());
    table.release_run([]);
    table.release_run(left[2..].iter().copied());
    check(&table);
    for _ in 0..16 {
        table.take_any(PAGE, 0).expect("all is free again");
    }
    assert_eq!(table.numbers(), numbers, "tiles are used again");
}

#[test]
fn places_at_both_ends_can_be_taken() {
    let mut table = table(&[IovaRange { start: 0, last: u64::MAX }]);
    let top = u64::MAX - (PAGE - 1);
    assert_eq!(table.take(None, 0, PAGE, false), Err(Refused::NotFree));
    let zero = table.take(None, 0, 2 * PAGE, true).expect("nothing is there");
    let last = table.take(None, top, PAGE, false).expect("free");
    assert_eq!(table.take(Some(zero), PAGE, PAGE, true), Err(Refused::Taken(zero)));
    check(&table);
    table.release(zero);
    table.release(last);
    check(&table);
    assert_eq!(table.take(None, 0, PAGE, false), Err(Refused::NotFree), "0 is a hole again");
}

#[test]
fn large_pages_are_kept_whole() {
    let mut table = table(&[IovaRange { start: 0, last: (1 << 48) - 1 }]);
    let mut at = |length, memory| {
        let tile = table.take_any(length, memory).expect("room");
        table.range(tile).start
    };
    assert_eq!(at(4 << 20, 0), 2 << 20);
    assert_eq!(at(4 << 20, 0x7f00_0000_3000) % (2 << 20), 0x3000);
    assert_eq!(at(3 << 30, 0x7f00_4020_0000) % (1 << 30), 0x20_0000);
    assert_eq!(at(PAGE, 0x7f00_0000_3000), 6 << 20, "small ones fill the gaps");
    // Where no aligned place is left, any page will do.
    let mut table = self::table(&[range(1, 512)]);
    let tile = table.take_any(512 * PAGE, 0).expect("just enough");
    assert_eq!(table.range(tile), range(1, 512));
}

#[test]
fn what_another_user_has_is_left_alone_until_asked_again() {
    let mut table = table(&[range(0, 16)]);
    let tile = table.take_any(PAGE, 0).expect("room");
    table.surrender(tile, 4 * PAGE);
    check(&table);
    let next = table.take_any(PAGE, 0).expect("room");
    assert_eq!(table.range(next), range(6, 1));
    table.permit(vec![range(0, 16)]);
    check(&table);
    let again = table.take_any(5 * PAGE, 0).expect("room");
    assert_eq!(table.range(again), range(1, 5));
}

/// A full space of one size, in which any two thirds come and go, never fails before it is full.
#[test]
fn one_size_does_not_fragment_into_failure() {
    const COUNT: u64 = 20_000;
    let mut table = table(&[range(1, COUNT)]);
    let mut live: Vec<u32> =
        (0..COUNT).map(|_| table.take_any(PAGE, 0).expect("not full yet")).collect();
    let most = table.numbers();
    assert_eq!(table.take_any(PAGE, 0), Err(0));
    let mut random = 1_u64;
    for _ in 0..10 {
        for _ in 0..2 * COUNT / 3 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = usize::try_from((random >> 33) % live.len() as u64).unwrap();
            table.release(live.swap_remove(at));
        }
        while live.len() < usize::try_from(COUNT).unwrap() {
            live.push(table.take_any(PAGE, 0).expect("as much is free"));
        }
        assert_eq!(table.take_any(PAGE, 0), Err(0));
    }
    assert!(table.numbers() <= most + 2, "nothing is allocated once it was as large");
    check(&table);
}

#[derive(Debug, Clone)]
enum Op {
    Any(u64),
    Fixed(u64, u64, bool),
    Release(usize),
    Permit(Vec<(u64, u64)>),
    Surrender(usize, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let ranges = prop::collection::vec((0..40_u64, 1..40_u64), 0..4);
    prop_oneof![
        6 => (1..12_u64).prop_map(Op::Any),
        4 => (0..PAGES, 1..12_u64, any::<bool>()).prop_map(|(at, n, force)| Op::Fixed(at, n, force)),
        8 => any::<usize>().prop_map(Op::Release),
        1 => ranges.prop_map(Op::Permit),
        1 => (any::<usize>(), 0..6_u64).prop_map(|(at, n)| Op::Surrender(at, n)),
    ]
}

/// What the table should know, page by page.
#[derive(Default)]
struct Model {
    taken: Vec<(u32, IovaRange)>,
    /// What other users may have.
    foreign: Vec<IovaRange>,
    permitted: Vec<IovaRange>,
}

impl Model {
    fn meets(&self, range: IovaRange) -> Option<u32> {
        let meets =
            |(_, taken): &&(u32, IovaRange)| taken.start <= range.last && range.start <= taken.last;
        self.taken.iter().filter(meets).min_by_key(|(_, taken)| taken.start).map(|(tile, _)| *tile)
    }

    fn free(&self, range: IovaRange) -> bool {
        let foreign = |hole: &IovaRange| hole.start <= range.last && range.start <= hole.last;
        range.start >= PAGE
            && self.meets(range).is_none()
            && !self.foreign.iter().any(foreign)
            && self
                .permitted
                .iter()
                .any(|permitted| permitted.start <= range.start && range.last <= permitted.last)
    }

    fn room(&self, pages: u64) -> bool {
        (0..4 * PAGES).any(|first| self.free(range(first, pages)))
    }

    fn near(&self, iova: u64) -> Option<u32> {
        let below = self.taken.iter().filter(|(_, taken)| taken.start <= iova);
        below.max_by_key(|(_, taken)| taken.start).map(|(tile, _)| *tile)
    }
}

fn run(table: &mut Table, model: &mut Model, op: Op) -> Result<(), TestCaseError> {
    match op {
        Op::Any(pages) => match table.take_any(pages * PAGE, 0) {
            Ok(tile) => {
                let found = table.range(tile);
                prop_assert!(model.free(found), "{:?} wasn't free", found);
                prop_assert_eq!(found.last - found.start + 1, pages * PAGE);
                model.taken.push((tile, found));
            }
            Err(largest) => {
                prop_assert!(!model.room(pages) && !model.room(largest / PAGE + 1));
                prop_assert!(largest == 0 || model.room(largest / PAGE));
            }
        },
        Op::Fixed(first, pages, force) => {
            let wanted = range(first, pages);
            let answer = table.take(model.near(wanted.start), wanted.start, pages * PAGE, force);
            let expected = match model.meets(wanted) {
                Some(tile) => Err(Refused::Taken(tile)),
                None if force || model.free(wanted) => Ok(()),
                None => Err(Refused::NotFree),
            };
            prop_assert_eq!(answer.map(drop), expected);
            if let Ok(tile) = answer {
                prop_assert_eq!(table.range(tile), wanted);
                model.taken.push((tile, wanted));
                // A forced one is the user's knowledge: what was foreign there isn't any more.
                model.foreign =
                    model.foreign.iter().flat_map(|hole| minus(*hole, wanted)).collect();
            }
        }
        Op::Release(_) | Op::Surrender(..) if model.taken.is_empty() => {}
        Op::Release(at) => {
            let (tile, _) = model.taken.swap_remove(at % model.taken.len());
            table.release(tile);
        }
        Op::Permit(gaps) => {
            let mut next = 0;
            model.permitted.clear();
            for (gap, pages) in gaps {
                model.permitted.push(range(next + gap, pages));
                next += gap + pages;
            }
            model.foreign.clear();
            table.permit(model.permitted.clone());
        }
        Op::Surrender(at, more) => {
            let (tile, mut found) = model.taken.swap_remove(at % model.taken.len());
            table.surrender(tile, more * PAGE);
            let free = |model: &Model, first: u64| {
                model.free(IovaRange { start: first, last: first + PAGE - 1 })
            };
            for _ in 0..more {
                if !free(model, found.last + 1) || !free(model, found.last + 1 + PAGE) {
                    break;
                }
                let both = IovaRange { start: found.last + 1, last: found.last + 2 * PAGE };
                if !model.free(both) {
                    break;
                }
                found.last += PAGE;
            }
            model.foreign.push(found);
        }
    }
    check(table);
    Ok(())
}

fn minus(hole: IovaRange, taken: IovaRange) -> Vec<IovaRange> {
    let below = (hole.start < taken.start)
        .then(|| IovaRange { start: hole.start, last: hole.last.min(taken.start - 1) });
    let above = (hole.last > taken.last)
        .then(|| IovaRange { start: hole.start.max(taken.last + 1), last: hole.last });
    below.into_iter().chain(above).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_answers_as_a_list_of_pages(ops in prop::collection::vec(op(), 1..120)) {
        let mut table = table(&[range(0, 20), range(30, 30)]);
        let mut model = Model { permitted: table.permitted().to_vec(), ..Model::default() };
        check(&table);
        for op in ops {
            run(&mut table, &mut model, op)?;
        }
        for (tile, _) in std::mem::take(&mut model.taken) {
            table.release(tile);
        }
        check(&table);
    }
}
