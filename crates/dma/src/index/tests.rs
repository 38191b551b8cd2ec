use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};

use proptest::prelude::*;

use super::node::FANOUT;
use super::*;

/// Every inner key is the smallest of its child, nodes are in order, and there are as many entries
/// as are counted.
fn check(index: &Index, writer: &Writer) {
    let mut nodes = vec![(index.root.load(Ordering::Relaxed), None)];
    for _ in 0..index.levels() {
        nodes = nodes.iter().flat_map(|(number, least)| children(index, *number, *least)).collect();
    }
    let entries: Vec<u64> =
        nodes.iter().flat_map(|(number, least)| keys(index, *number, *least)).collect();
    assert!(entries.is_sorted_by(|a, b| a < b));
    assert_eq!(entries.len(), writer.len());
}

fn keys(index: &Index, number: u32, least: Option<u64>) -> Vec<u64> {
    let node = index.nodes.get(number).expect("in the tree");
    let keys: Vec<u64> = (0..node.len()).map(|at| node.key(at)).collect();
    assert!(least.is_none() || keys.first().copied() == least, "a minimum that is not exact");
    keys
}

fn children(index: &Index, number: u32, least: Option<u64>) -> Vec<(u32, Option<u64>)> {
    let node = index.nodes.get(number).expect("in the tree");
    let keys = keys(index, number, least);
    keys.iter().enumerate().map(|(at, key)| (node.value(at), Some(*key))).collect()
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u64),
    Remove(u64),
    /// From a key on, as many as that.
    RemoveRun(u64, usize),
    Floor(u64),
}

fn op(keys: u64) -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..keys).prop_map(Op::Insert),
        3 => (0..keys).prop_map(Op::Remove),
        1 => (0..keys, 1_usize..40).prop_map(|(key, most)| Op::RemoveRun(key, most)),
        2 => (0..keys).prop_map(Op::Floor),
    ]
}

fn run(ops: &[Op]) {
    let (index, mut writer) = Index::new();
    let mut model = BTreeMap::new();
    for (number, op) in (0..).zip(ops) {
        match op {
            Op::Insert(key) if model.contains_key(key) => {}
            Op::Insert(key) => {
                index.insert(&mut writer, *key, number);
                model.insert(*key, number);
            }
            Op::Remove(key) => assert_eq!(index.remove(&mut writer, *key), model.remove(key)),
            Op::RemoveRun(key, most) => {
                let run: Vec<u64> = model.range(key..).map(|(key, _)| *key).take(*most).collect();
                model.retain(|key, _| !run.contains(key));
                // Also where the first or the last isn't there.
                let last = run.last().map_or(*key, |last| last + number as u64 % 2);
                let last = if model.contains_key(&last) { last - 1 } else { last };
                index.remove_run(&mut writer, *key, last);
            }
            Op::Floor(key) => {
                let floor = model.range(..=*key).next_back().map(|(key, value)| (*key, *value));
                assert_eq!(index.floor(*key), floor);
                assert_eq!(index.get(*key), model.get(key).copied());
            }
        }
    }
    check(&index, &writer);
    for (key, value) in &model {
        assert_eq!(index.get(*key), Some(*value));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_answers_as_an_ordered_map(ops in prop::collection::vec(op(400), 1..3000)) {
        run(&ops);
    }
}

#[test]
fn what_grows_and_shrinks_keeps_its_nodes() {
    let (index, mut writer) = Index::new();
    let orders: [fn(u64) -> u64; 3] = [|n| n, |n| u64::MAX - n, |n| n.wrapping_mul(0x9e37_79b9)];
    let mut most = 0;
    for (round, order) in [0, 1, 2, 2, 1, 0].into_iter().map(|at| orders[at]).enumerate() {
        for n in 0..20_000 {
            index.insert(&mut writer, order(n), u32::try_from(n).unwrap());
        }
        check(&index, &writer);
        assert!(
            (writer.made as usize) < 20_000 / (FANOUT / 4),
            "nodes are filled: {}",
            writer.made
        );
        for n in (0..20_000).rev() {
            assert_eq!(index.remove(&mut writer, order(n)), Some(u32::try_from(n).unwrap()));
        }
        check(&index, &writer);
        assert_eq!((writer.len(), index.levels()), (0, 0));
        assert_eq!(index.floor(u64::MAX), None);
        assert_eq!(writer.free.len() + 1, writer.made as usize, "all but the root are free");
        if round < 3 {
            most = most.max(writer.made);
        } else {
            assert_eq!(writer.made, most, "what was once big enough is so again");
        }
    }
}

#[test]
fn readers_see_whole_states_only() {
    const KEYS: u64 = 2000;
    let (index, writer) = Index::new();
    let (writer, stop, ready) = (Mutex::new(writer), AtomicBool::new(false), Barrier::new(3));
    // Even keys stay; odd ones come and go. A value is its key.
    for key in (0..KEYS).step_by(2) {
        index.insert(&mut writer.lock().unwrap(), key, u32::try_from(key).unwrap());
    }
    std::thread::scope(|scope| {
        let readers = [0_u64, 1].map(|seed| {
            let (index, stop, ready) = (&index, &stop, &ready);
            scope.spawn(move || {
                ready.wait();
                let mut key = seed;
                let mut looks = 0_u64;
                while !stop.load(Ordering::Relaxed) || looks == 0 {
                    key = (key.wrapping_mul(25_214_903_917).wrapping_add(11)) % KEYS;
                    let (found, value) = index.read(|index| index.floor(key)).expect("there is 0");
                    assert_eq!(found, u64::from(value));
                    assert!(found == key || found + 1 == key, "{found} for {key}");
                    looks += 1;
                }
            })
        });
        ready.wait();
        let mut writer = writer.lock().unwrap();
        for _ in 0..20 {
            for key in (1..KEYS).step_by(2) {
                index.insert(&mut writer, key, u32::try_from(key).unwrap());
            }
            for key in (1..KEYS).step_by(2) {
                index.remove(&mut writer, key);
            }
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().expect("no reader saw half a change");
        }
    });
}
