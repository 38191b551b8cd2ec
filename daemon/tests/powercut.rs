//! The power goes at every moment of a real run of `berthd`, and the next start finds all that was
//! answered.
//!
//! What it wrote to its state directory is recorded from outside, by `strace`; then every prefix of
//! that is a disk whose power goes there, with what was not synced dropped, torn in sectors, or on
//! the disk in another order.

#[path = "daemon_support/mod.rs"]
mod daemon_support;
#[path = "powercut/disk.rs"]
mod disk;
#[path = "powercut/recover.rs"]
mod recover;
#[path = "powercut/run.rs"]
mod run;
#[path = "powercut/trace.rs"]
mod trace;

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Instant,
};

use disk::{Disk, Left, Loss};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use recover::Answered;
use run::{Life, Recorded};
use trace::Event;

/// Reservations that each client lives through, in each of two runs.
const LIVES: usize = 4;
/// Disks that are opened: at least so many, each another one.
const STATES: usize = 10_000;
/// Of how many the whole daemon is started on one.
const STARTED: usize = 50;
/// So many are opened at a time.
const AT_ONCE: usize = 4;

/// Ways to lose what is not on the disk, and how many disks each is tried for at one moment.
const LOSSES: [(Loss, usize); 5] = [
    (Loss::Nothing, 1),
    (Loss::Everything, 1),
    (Loss::Sectors(512), 1),
    (Loss::Sectors(4096), 1),
    (Loss::Writes, 1),
];

struct Cut {
    at: usize,
    loss: Loss,
    left: Left,
    answered: Answered,
    /// The log's index of another life, which is there after a crash of the system, not of the power.
    stale_index: bool,
}

/// Walks through what happened; at each moment the power goes in every way.
fn cuts(recorded: &Recorded, lies: bool, mut each: impl FnMut(Cut)) {
    let mut random = StdRng::seed_from_u64(1);
    let mut disk = Disk::new(lies);
    let mut answered = vec![0; recorded.lives.len()];
    let mut seen = HashSet::new();
    for (at, event) in recorded.events.iter().enumerate() {
        disk.happens(event);
        if let (_, Event::Answer { holder, nth }) = event {
            answered[*holder] = nth + 1;
        }
        for (loss, count) in LOSSES {
            let random_loss = matches!(loss, Loss::Sectors(_) | Loss::Writes);
            if random_loss && disk.unsynced() == 0 {
                continue;
            }
            for _ in 0..count {
                let left = disk.cut(loss, &mut random);
                let mut hash = DefaultHasher::new();
                (&left, &answered).hash(&mut hash);
                if seen.insert(hash.finish()) {
                    let stale_index = random.random_bool(0.1);
                    each(Cut { at, loss, left, answered: answered.clone(), stale_index });
                }
            }
        }
    }
}

async fn check(mut cut: Cut, number: usize, lives: Arc<Vec<Life>>) {
    if cut.stale_index && cut.left.contains_key("berth.db-wal") {
        let garbage = (0..32_768_usize).map(|at| u8::try_from(at * 7 % 251).expect("a byte"));
        cut.left.insert("berth.db-shm".to_owned(), garbage.collect());
    }
    let Cut { at, loss, left, answered, .. } = cut;
    let mut opened = recover::open(&left, &lives, &answered).await;
    if opened.is_ok() && number.is_multiple_of(STARTED) {
        opened = recover::start(&left, &lives, &answered).await;
    }
    if let Err(wrong) = opened {
        panic!("a cut after event {at} that loses {loss:?}: {wrong}");
    }
}

/// The last moment of a disk that only says that it has what was synced.
async fn a_lying_disk_is_noticed(recorded: &Recorded) -> bool {
    let mut last = None;
    cuts(recorded, true, |cut| {
        if cut.loss == Loss::Everything {
            last = Some(cut);
        }
    });
    let cut = last.expect("a moment");
    recover::open(&cut.left, &recorded.lives, &cut.answered).await.is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_answered_is_lost_with_the_power() {
    let began = Instant::now();
    let dir = recover::directory();
    let recorded = run::record(dir.path(), LIVES).await;
    let count =
        |wanted: fn(&Event) -> bool| recorded.events.iter().filter(|it| wanted(&it.1)).count();
    println!(
        "recorded in {:.1?}: {} events, {} writes, {} syncs, {} answers",
        began.elapsed(),
        recorded.events.len(),
        count(|event| matches!(event, Event::Write { .. })),
        count(|event| matches!(event, Event::Sync { .. })),
        count(|event| matches!(event, Event::Answer { .. })),
    );
    let lives = Arc::new(recorded.lives.clone());
    assert!(a_lying_disk_is_noticed(&recorded).await, "a disk that keeps nothing loses nothing");
    let (sender, mut queue) = tokio::sync::mpsc::channel(16);
    let walk = std::thread::spawn(move || {
        let mut number = 0;
        cuts(&recorded, false, |cut| {
            number += 1;
            // It fails when a check did, which is told by that.
            let _ = sender.blocking_send((number, cut));
        });
        number
    });
    let mut running = tokio::task::JoinSet::new();
    while let Some((number, cut)) = queue.recv().await {
        if running.len() >= AT_ONCE {
            running.join_next().await.expect("one runs").expect("nothing is wrong");
        }
        running.spawn(check(cut, number, Arc::clone(&lives)));
    }
    while let Some(done) = running.join_next().await {
        done.expect("nothing is wrong");
    }
    let states = walk.join().expect("all moments");
    println!("{states} disks opened, {} started, {:.1?}", states / STARTED, began.elapsed());
    assert!(states >= STATES, "only {states} disks");
}
