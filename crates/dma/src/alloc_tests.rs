//! The allocator against a search of every page.

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;

fn range(first_page: u64, pages: u64) -> IovaRange {
    IovaRange { start: first_page * PAGE, last: (first_page + pages) * PAGE - 1 }
}

fn wanted(pages: u64) -> Wanted {
    Wanted { length: pages * PAGE, page: PAGE, memory: 0 }
}

#[test]
fn takes_the_lowest_gap_that_fits() {
    let permitted = [range(0, 16), range(32, 16)];
    let taken = [range(1, 3), range(6, 1)];
    let place = |pages| place(wanted(pages), &permitted, taken.into_iter());
    assert_eq!(place(2), Ok(4 * PAGE));
    assert_eq!(place(3), Ok(7 * PAGE));
    assert_eq!(place(10), Ok(32 * PAGE));
    assert_eq!(place(17), Err(16 * PAGE));
}

#[test]
fn never_gives_out_zero_and_reaches_the_top() {
    let all = [IovaRange { start: 0, last: u64::MAX }];
    assert_eq!(place(wanted(1), &all, [].into_iter()), Ok(PAGE));
    let below = IovaRange { start: 0, last: u64::MAX - PAGE };
    assert_eq!(place(wanted(1), &all, [below].into_iter()), Ok(u64::MAX - PAGE + 1));
    assert_eq!(place(wanted(1), &all, all.into_iter()), Err(0));
    assert_eq!(place(wanted(1), &[], [].into_iter()), Err(0));
}

#[test]
fn aligns_for_large_pages_like_the_memory() {
    let all = [IovaRange { start: 0, last: u64::MAX }];
    let mut wanted = wanted(1024);
    assert_eq!(place(wanted, &all, [].into_iter()), Ok(2 << 20));
    wanted.memory = 0x7f00_0000_3000;
    assert_eq!(place(wanted, &all, [].into_iter()), Ok(0x3000));
    // Where no aligned place is left, any page will do.
    let tight = [IovaRange { start: PAGE, last: PAGE + wanted.length - 1 }];
    assert_eq!(place(wanted, &tight, [].into_iter()), Ok(PAGE));
}

fn model(pages: u64, permitted: &[IovaRange], taken: &[IovaRange]) -> Option<u64> {
    let free = |page: u64| {
        permitted.iter().any(|range| range.contains(page * PAGE, PAGE))
            && !taken.iter().any(|range| range.contains(page * PAGE, PAGE))
    };
    // One permitted range at a time: a mapping can't span two, even where they touch.
    permitted
        .iter()
        .flat_map(|range| range.start / PAGE..=range.last / PAGE)
        .filter(|first| *first != 0)
        .find(|first| {
            permitted.iter().any(|range| range.contains(first * PAGE, pages * PAGE))
                && (*first..first + pages).all(free)
        })
        .map(|first| first * PAGE)
}

/// Disjoint ascending ranges out of (gap, size) pairs.
fn chain(pairs: &[(u64, u64)]) -> Vec<IovaRange> {
    let mut next = 0;
    let made = pairs.iter().map(|(gap, pages)| {
        let made = range(next + gap, *pages);
        next += gap + pages;
        made
    });
    made.collect()
}

proptest! {
    #[test]
    fn agrees_with_a_search_of_every_page(
        permitted in proptest::collection::vec((0u64..6, 1u64..20), 0..5),
        taken in proptest::collection::vec((0u64..6, 1u64..6), 0..12),
        pages in 1u64..12,
    ) {
        let (permitted, taken) = (chain(&permitted), chain(&taken));
        let found = place(wanted(pages), &permitted, taken.iter().copied());
        prop_assert_eq!(found.ok(), model(pages, &permitted, &taken));
        if let Err(largest) = found {
            prop_assert!(largest < pages * PAGE);
            let still = model(largest / PAGE, &permitted, &taken);
            prop_assert!(largest == 0 || still.is_some());
        }
    }
}
