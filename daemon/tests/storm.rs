//! A storm on a real `berthd` that is killed again and again: 256 clients over its sockets, all
//! policies. What they saw can have happened one operation after the other.
//!
//! 20,000 operations; 200,000 where `BERTH_TEST_LONG` is set.

#[path = "storm/client.rs"]
mod client;
#[path = "history_support/mod.rs"]
mod history_support;
#[path = "storm/machine.rs"]
mod machine;
#[path = "storm/model.rs"]
mod model;
#[path = "storm/planted.rs"]
mod planted;
#[path = "storm/record.rs"]
mod record;
#[path = "storm/search.rs"]
mod search;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use client::Client;
use machine::Machine;
use model::{Call, Reply};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use record::Shared;

const CLIENTS: u64 = 256;

/// How many operations, and how many kills meanwhile.
fn size() -> (u64, u64) {
    match std::env::var_os("BERTH_TEST_LONG") {
        Some(_) => (200_000, 50),
        None => (20_000, 6),
    }
}

/// Kills it whenever another part of the operations is done, at a moment of chance.
async fn kill_now_and_then(shared: &Arc<Shared>, operations: u64, kills: u64) {
    let mut random = StdRng::seed_from_u64(kills);
    for kill in 1..=kills {
        let part = operations / (kills + 1);
        let left = operations - kill * part + random.random_range(0..part / 2);
        while shared.left.load(Ordering::SeqCst) > left {
            tokio::time::sleep(std::time::Duration::from_millis(random.random_range(1..20))).await;
        }
        shared.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_can_have_happened_one_after_the_other() {
    let (operations, kills) = size();
    let began = Instant::now();
    let machine = Machine::start().await;
    let shared = Arc::new(Shared::new(machine, operations));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(Client::new(number, &shared).run());
    }
    kill_now_and_then(&shared, operations, kills).await;
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client panics");
    }
    let storm = began.elapsed();
    // What was answered is there after one more kill, and can all be given back.
    shared.restart().await;
    Client::new(CLIENTS, &shared).give_all_back().await;
    let log = shared.log().await;
    assert!(!log.contains("panicked"), "berthd panicked: {log}");
    let mut histories = shared.histories();
    for (reply, count) in record::tally(histories.iter().flat_map(|history| &history.ops)) {
        println!("  {count:6} {reply}");
    }
    let mut states = 0;
    for (cell, history) in histories.iter_mut().enumerate() {
        match search::check(history) {
            Ok(looked_at) => states += looked_at,
            Err(wrong) => panic!("cell {cell}: {wrong:?}; see target/tmp/storm-berthd.log"),
        }
    }
    let ops = || histories.iter().flat_map(|history| &history.ops);
    let granted = ops().filter(|op| matches!(op.reply, Reply::Granted { .. })).count();
    let done = ops().filter(|op| op.reply == Reply::Done).count();
    let lost = ops().filter(|op| op.reply == Reply::Lost).count();
    let fetched =
        ops().filter(|op| op.reply == Reply::Done && matches!(op.call, Call::Fetch(_))).count();
    println!(
        "{operations} operations of {CLIENTS} clients in {storm:.1?}, {kills} kills: {granted} \
         granted, {done} orders done ({fetched} fetched), {lost} answers lost for good, {} asked for \
         again; linearizable, {states} states looked at, {:.1?} in all",
        shared.retries.load(Ordering::SeqCst),
        began.elapsed()
    );
    assert!(granted > 200 && fetched > 50 && lost > 10, "too little happened");
    planted::every_planted_bug_is_caught(&histories);
    println!("{:.1?} with the planted bugs", began.elapsed());
}
