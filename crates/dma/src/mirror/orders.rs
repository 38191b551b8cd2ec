//! Every order of threads that share a mirror, as far as two switches go. Who looks is the thread that
//! is started, as in the orders of the index.

use berth_uapi::{DmaPerms, IovaChoice, IovaRange};
use loom::{model::Builder, sync::Arc, thread};

use super::{
    Denied, Mirror, New, Region, Source, Ticket,
    block::{Block, Stage},
};
use crate::error::DmaError;

const PAGE: u64 = 4096;
const FIRST: u64 = 16 * PAGE;
const SECOND: u64 = 32 * PAGE;
const MEMORY: u64 = 1 << 40;

fn model(test: impl Fn() + Send + Sync + 'static) {
    with_switches(2, test);
}

/// With two of them what goes through an index takes minutes.
fn with_switches(most: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(most);
    builder.check(test);
}

fn mirror() -> Arc<Mirror> {
    let mirror = Mirror::new();
    mirror.permit(vec![IovaRange { start: 0, last: (1 << 30) - 1 }]);
    Arc::new(mirror)
}

fn region(iova: u64, pages: u64, address: u64) -> Region {
    let source = Source::Memory { address };
    Region { iova, length: pages * PAGE, perms: DmaPerms::READ_WRITE, source }
}

fn reserve(mirror: &Mirror, region: Region) -> Ticket<'_> {
    let Region { iova, length, perms, source } = region;
    let mut new = New { length, perms, source, keep: None };
    let warm = mirror.reserve_warm(iova, &new);
    warm.unwrap_or_else(|| mirror.reserve(IovaChoice::Fixed(iova), &mut new).expect("free"))
}

fn map(mirror: &Mirror, region: Region) {
    let ticket = reserve(mirror, region);
    mirror.commit(&ticket);
}

fn begin_unmap(mirror: &Mirror, iova: u64, length: u64) -> Result<Ticket<'_>, DmaError> {
    let hot = mirror.begin_unmap_hot(iova, length);
    hot.map_or_else(|| mirror.begin_unmap_of_index(iova, length), Ok)
}

fn unmap_and_keep(mirror: &Mirror, region: Region) {
    let ticket = begin_unmap(mirror, region.iova, region.length).expect("mapped");
    drop(mirror.unmapped(&ticket));
}

fn unmap(mirror: &Mirror, region: Region) {
    let ticket = begin_unmap(mirror, region.iova, region.length).expect("mapped");
    drop(mirror.free(&ticket));
}

#[test]
fn a_mapping_is_found_whole_or_not_at_all() {
    model(|| {
        let (mirror, one) = (mirror(), region(FIRST, 2, MEMORY));
        let other = Arc::clone(&mirror);
        let looking = thread::spawn(move || other.find(FIRST + PAGE));
        map(&mirror, one);
        let found = looking.join().expect("no panic");
        assert!(found.is_none_or(|found| found == one), "{found:?}");
        assert_eq!(mirror.find(FIRST + PAGE), Some(one));
    });
}

/// The second mapping gets the number of the first.
#[test]
fn a_number_that_is_used_again_shows_neither_half() {
    with_switches(1, || {
        let (mirror, one) = (mirror(), region(FIRST, 1, MEMORY));
        let two = region(FIRST, 4, MEMORY + (1 << 30));
        map(&mirror, one);
        let other = Arc::clone(&mirror);
        let looking = thread::spawn(move || other.find(FIRST));
        unmap(&mirror, one);
        map(&mirror, two);
        let found = looking.join().expect("no panic");
        assert!(found.is_none_or(|found| found == one || found == two), "{found:?}");
    });
}

/// Its place was kept, so that the index names it all the while.
#[test]
fn a_place_that_is_used_again_shows_neither_half() {
    with_switches(1, || {
        let (mirror, one) = (mirror(), region(FIRST, 1, MEMORY));
        let memory = region(FIRST, 1, MEMORY + (1 << 30));
        let two = Region { perms: DmaPerms::READ, ..memory };
        map(&mirror, one);
        let other = Arc::clone(&mirror);
        let looking = thread::spawn(move || other.find(FIRST));
        unmap_and_keep(&mirror, one);
        map(&mirror, two);
        let found = looking.join().expect("no panic");
        assert!(found.is_none_or(|found| found == one || found == two), "{found:?}");
        assert_eq!((mirror.find(FIRST), mirror.totals()), (Some(two), (1, PAGE)));
    });
}

/// A place that waits: a mapping of it came and went, and the last one's unmap named it.
fn with_a_place_that_waits() -> Arc<Mirror> {
    let mirror = mirror();
    map(&mirror, region(FIRST, 1, MEMORY));
    unmap_and_keep(&mirror, region(FIRST, 1, MEMORY));
    mirror
}

#[test]
fn who_takes_a_place_sees_what_was_there_gone() {
    model(|| {
        let mirror = with_a_place_that_waits();
        let one = region(FIRST, 1, 2 * MEMORY);
        map(&mirror, one);
        let before = mirror.mapped().first().map(|ticket| (ticket.tile, ticket.word));
        let (tile, word) = before.expect("one");
        let other = Arc::clone(&mirror);
        let mapping = thread::spawn(move || {
            let Region { length, perms, source, .. } = region(FIRST, 1, 3 * MEMORY);
            let new = New { length, perms, source, keep: None };
            let ticket = other.reserve_warm(FIRST, &new)?;
            other.commit(&ticket);
            Some(ticket.word)
        });
        unmap_and_keep(&mirror, one);
        match mapping.join().expect("no panic") {
            Some(new) => {
                assert!(new.at(Stage::Mapped) != word, "another mapping");
                assert_eq!(mirror.regions(), [region(FIRST, 1, 3 * MEMORY)]);
            }
            None => assert_eq!(mirror.warm.kept(), Some(tile)),
        }
    });
}

/// One takes the place as it is, and the other addresses that it is in the way of.
#[test]
fn a_place_that_waits_is_one_thread_s() {
    with_switches(2, || {
        let mirror = with_a_place_that_waits();
        let try_to_map = |mirror: &Mirror, region: Region| {
            let Region { iova, length, perms, source } = region;
            let mut new = New { length, perms, source, keep: None };
            let warm = mirror.reserve_warm(iova, &new);
            let place = IovaChoice::Fixed(iova);
            match warm.map_or_else(|| mirror.reserve(place, &mut new), Ok) {
                Ok(ticket) => {
                    mirror.commit(&ticket);
                    true
                }
                Err(Denied::Overlap(region)) => {
                    assert_eq!(region.iova, FIRST);
                    false
                }
                Err(denied) => panic!("{denied:?}"),
            }
        };
        let (one, two) = (region(FIRST, 1, 2 * MEMORY), region(FIRST, 2, 3 * MEMORY));
        let other = Arc::clone(&mirror);
        let mapping = thread::spawn(move || try_to_map(&other, one));
        let mine = try_to_map(&mirror, two);
        let theirs = mapping.join().expect("no panic");
        assert!(mine != theirs, "{mine} {theirs}");
        let mapped = if mine { two } else { one };
        assert_eq!((mirror.regions(), mirror.totals()), (vec![mapped], (1, mapped.length)));
    });
}

/// Who gives a place back may do so when its addresses are not given out any more.
#[test]
fn no_place_waits_where_nothing_is_given_out() {
    with_switches(2, || {
        let mirror = with_a_place_that_waits();
        let one = region(FIRST, 1, 2 * MEMORY);
        map(&mirror, one);
        let other = Arc::clone(&mirror);
        let unmapping = thread::spawn(move || unmap_and_keep(&other, one));
        mirror.allow(vec![IovaRange { start: SECOND, last: (1 << 30) - 1 }]);
        unmapping.join().expect("no panic");
        assert_eq!((mirror.totals(), mirror.warm.kept()), ((0, 0), None));
        assert!(mirror.find(FIRST).is_none());
    });
}

/// Who asks for memory first finds what takes a place meanwhile without the lock.
#[test]
fn memory_that_takes_a_place_meanwhile_is_found() {
    with_switches(2, || {
        let mirror = with_a_place_that_waits();
        let one = region(FIRST, 1, 2 * MEMORY);
        let other = Arc::clone(&mirror);
        let mapping = thread::spawn(move || map(&other, one));
        let found = mirror.translate(2 * MEMORY, PAGE);
        assert!(found.is_none_or(|found| found == FIRST), "{found:?}");
        mapping.join().expect("no panic");
        assert_eq!(mirror.translate(2 * MEMORY, PAGE), Some(FIRST));
        assert_eq!(mirror.translate(MEMORY, PAGE), None);
        unmap_and_keep(&mirror, one);
        assert_eq!(mirror.translate(2 * MEMORY, PAGE), None);
        map(&mirror, region(FIRST, 1, MEMORY));
        assert_eq!(mirror.translate(MEMORY, PAGE), Some(FIRST));
    });
}

/// And no more what gives one back.
#[test]
fn memory_that_goes_meanwhile_is_found_no_more() {
    with_switches(2, || {
        let mirror = with_a_place_that_waits();
        let one = region(FIRST, 1, 2 * MEMORY);
        map(&mirror, one);
        let other = Arc::clone(&mirror);
        let unmapping = thread::spawn(move || unmap_and_keep(&other, one));
        let found = mirror.translate(2 * MEMORY, PAGE);
        assert!(found.is_none_or(|found| found == FIRST), "{found:?}");
        unmapping.join().expect("no panic");
        assert_eq!(mirror.translate(2 * MEMORY, PAGE), None);
        map(&mirror, region(FIRST, 1, MEMORY));
        assert_eq!(mirror.translate(MEMORY, PAGE), Some(FIRST));
        assert_eq!(mirror.translate(2 * MEMORY, PAGE), None);
    });
}

/// Who unmaps by the number that a slot names may look while it becomes another mapping's.
#[test]
fn what_is_unmapped_is_what_was_mapped_there() {
    with_switches(1, || {
        let (mirror, one) = (mirror(), region(FIRST, 1, MEMORY));
        map(&mirror, one);
        let other = Arc::clone(&mirror);
        let unmapping = thread::spawn(move || match begin_unmap(&other, FIRST, PAGE) {
            Ok(ticket) => {
                drop(other.unmapped(&ticket));
                1
            }
            Err(DmaError::Busy { .. } | DmaError::NotMapped { .. } | DmaError::Bisects { .. }) => 0,
            Err(error) => panic!("{error}"),
        });
        let mut mine = 0;
        if let Ok(ticket) = begin_unmap(&mirror, FIRST, PAGE) {
            mine += 1;
            drop(mirror.unmapped(&ticket));
            // The kept place is in the way, and given up.
            map(&mirror, region(FIRST, 2, MEMORY));
        }
        let theirs = unmapping.join().expect("no panic");
        assert_eq!(mine + theirs, 1);
        let left = if mine == 1 { (1, 2 * PAGE) } else { (0, 0) };
        assert_eq!(mirror.totals(), left);
    });
}

#[test]
fn of_two_that_unmap_one_does() {
    model(|| {
        let (mirror, one) = (mirror(), region(FIRST, 1, MEMORY));
        map(&mirror, one);
        let begin = |mirror: &Mirror| match begin_unmap(&mirror, FIRST, PAGE) {
            Ok(ticket) => {
                drop(mirror.free(&ticket));
                1
            }
            Err(DmaError::Busy { .. } | DmaError::NotMapped { .. }) => 0,
            Err(error) => panic!("{error}"),
        };
        let other = Arc::clone(&mirror);
        let unmapping = thread::spawn(move || begin(&other));
        let mine = begin(&mirror);
        assert_eq!(mine + unmapping.join().expect("no panic"), 1);
        assert_eq!(mirror.totals(), (0, 0));
    });
}

#[test]
fn what_is_copied_is_not_unmapped_meanwhile() {
    model(|| {
        let (mirror, one) = (mirror(), region(FIRST, 1, MEMORY));
        map(&mirror, one);
        let other = Arc::clone(&mirror);
        let copying = thread::spawn(move || match other.begin_copy(FIRST, PAGE) {
            Ok((ticket, found, _)) => {
                // The kernel copies here: it must be there still.
                assert_eq!((found, other.find(FIRST)), (one, Some(one)));
                other.commit(&ticket);
            }
            Err(DmaError::Busy { .. } | DmaError::NotMapped { .. }) => {}
            Err(error) => panic!("{error}"),
        });
        if let Ok(ticket) = begin_unmap(&mirror, FIRST, PAGE) {
            drop(mirror.free(&ticket));
        }
        copying.join().expect("no panic");
    });
}

/// Whoever forgets what was complete leaves what another thread has taken to it.
#[test]
fn what_another_thread_unmaps_is_forgotten_once() {
    model(|| {
        let mirror = mirror();
        map(&mirror, region(FIRST, 1, MEMORY));
        let known = mirror.mapped();
        let other = Arc::clone(&mirror);
        let unmapping = thread::spawn(move || {
            if let Ok(ticket) = begin_unmap(&other, FIRST, PAGE) {
                drop(other.free(&ticket));
                map(&other, region(FIRST, 1, MEMORY));
            }
        });
        mirror.forget(&known);
        unmapping.join().expect("no panic");
        let (mappings, bytes) = mirror.totals();
        assert_eq!(u64::try_from(mappings).expect("few") * PAGE, bytes);
        assert_eq!(mirror.regions().len(), mappings);
    });
}

#[test]
fn memory_is_found_by_whoever_asks_first() {
    model(|| {
        let (mirror, one) = (mirror(), region(FIRST, 1, MEMORY));
        map(&mirror, one);
        let other = Arc::clone(&mirror);
        let asking = thread::spawn(move || other.translate(MEMORY, PAGE));
        assert_eq!(mirror.translate(MEMORY, PAGE), Some(FIRST));
        assert_eq!(asking.join().expect("no panic"), Some(FIRST));
    });
}

#[test]
fn memory_that_is_mapped_twice_is_found_while_either_is_there() {
    with_switches(1, || {
        let mirror = mirror();
        let (one, two) = (region(FIRST, 1, MEMORY), region(SECOND, 1, MEMORY));
        map(&mirror, one);
        assert_eq!(mirror.translate(MEMORY, PAGE), Some(FIRST));
        map(&mirror, two);
        let other = Arc::clone(&mirror);
        let looking = thread::spawn(move || other.translate(MEMORY, PAGE));
        unmap(&mirror, one);
        let found = looking.join().expect("no panic");
        assert!(found == Some(FIRST) || found == Some(SECOND), "{found:?}");
        assert_eq!(mirror.translate(MEMORY, PAGE), Some(SECOND));
    });
}

/// What was asked for first is looked at without an index, also while it becomes another mapping.
#[test]
fn memory_that_was_asked_for_first_is_found_nowhere_else() {
    model(|| {
        let (one, two) = (region(FIRST, 1, MEMORY), region(SECOND, 2, 2 * MEMORY));
        let block = Arc::new(Block::default());
        let first = block.word().next(one.perms, one.source);
        let words = [first, first.next(two.perms, two.source)];
        block.set(&one, words[0]);
        block.store(words[0].at(Stage::Mapped));
        let other = Arc::clone(&block);
        let looking = thread::spawn(move || {
            let ask = |address, pages| other.translate_alone(address, address + pages * PAGE - 1);
            [ask(MEMORY, 1), ask(2 * MEMORY, 2), ask(MEMORY, 2)]
        });
        block.store(words[0].at(Stage::Unmapping));
        block.store(words[0].at(Stage::Empty));
        block.set(&two, words[1]);
        block.store(words[1].at(Stage::Mapped));
        let [first, second, never] = looking.join().expect("no panic");
        assert!(first.is_none_or(|iova| iova == FIRST), "{first:?}");
        assert!(second.is_none_or(|iova| iova == SECOND), "{second:?}");
        assert_eq!(never, None, "the first one never was this long");
    });
}
