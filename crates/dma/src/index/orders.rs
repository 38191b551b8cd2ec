//! Every order of a writer and a reader, as far as one switch goes.
//!
//! The reader is the thread that is started, and runs last where nothing else is tried: the checker
//! looks for other orders from a load back to the stores before it, and a writer looks itself at
//! whatever it is about to store to, which hides who looked before.

use loom::{model::Builder, sync::Arc, thread};

use super::{Index, Writer, node::FANOUT};

fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(1);
    builder.check(test);
}

/// An index of these keys, each with its half as its value.
fn index_of(keys: &[u64]) -> (Arc<Index>, Writer) {
    let (index, mut writer) = Index::new();
    for key in keys {
        index.insert(&mut writer, *key, half(*key));
    }
    (Arc::new(index), writer)
}

fn half(key: u64) -> u32 {
    u32::try_from(key / 2).expect("a small key")
}

/// What a reader finds while `write` is done is one of these.
fn reads(
    keys: &'static [u64],
    write: fn(&Index, &mut Writer),
    key: u64,
    allowed: &'static [Option<u64>],
) {
    model(move || {
        let (index, mut writer) = index_of(keys);
        let other = Arc::clone(&index);
        let reading = thread::spawn(move || other.read(|index| index.floor(key)));
        write(&index, &mut writer);
        let found = reading.join().expect("no panic");
        assert!(found.is_none_or(|(key, value)| value == half(key)), "torn: {found:?}");
        assert!(allowed.contains(&found.map(|(key, _)| key)), "{found:?}");
    });
}

#[test]
fn a_leaf_that_splits_is_seen_before_or_after() {
    assert_eq!(FANOUT, 4, "the leaf is full with these");
    let write = |index: &Index, writer: &mut Writer| index.insert(writer, 26, half(26));
    reads(&[10, 20, 30, 40], write, 29, &[Some(20), Some(26)]);
    reads(&[10, 20, 30, 40], write, 45, &[Some(40)]);
}

#[test]
fn a_smallest_key_comes_and_goes_whole() {
    let write = |index: &Index, writer: &mut Writer| {
        index.insert(writer, 4, half(4));
        index.remove(writer, 10);
    };
    reads(&[10, 20], write, 12, &[Some(10), Some(4)]);
}

#[test]
fn leaves_that_merge_lose_nothing() {
    let write = |index: &Index, writer: &mut Writer| {
        index.remove(writer, 20);
        index.remove(writer, 30);
        index.remove(writer, 40);
    };
    reads(&[10, 20, 30, 40, 50], write, 60, &[Some(50)]);
}
