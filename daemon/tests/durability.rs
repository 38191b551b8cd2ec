//! What was answered is on disk: the system calls of the real program, as `strace` saw them.
//!
//! A request is found by its holder's name: where it is read from a socket, where it stands first
//! in a frame of the write-ahead log, and where it is in an answer. So each answer is compared with
//! the very `fdatasync` that makes it durable, whatever else the daemon does meanwhile.

#[path = "durability/traced.rs"]
mod traced;

#[path = "durability/trace.rs"]
mod trace;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Barrier, time::timeout};
use trace::{Batch, Trace};
use traced::{DEVICES, PATIENCE, Traced};

/// How many clients ask at the same time.
const CLIENTS: usize = 8;
/// How long `fdatasync` is delayed where it is.
const DELAY: Duration = Duration::from_millis(200);

/// Who asked, and how long it took until the answer was there.
type Asked = (String, Duration);

/// One client first, whose commit the others wait for; then the others, all at once.
async fn round(daemon: &Traced, round: usize, after: Duration) -> Vec<Asked> {
    let base = round * (CLIENTS + 1);
    assert!(base + CLIENTS < DEVICES, "the machine has too few devices");
    let barrier = Arc::new(Barrier::new(CLIENTS + 1));
    let mut asking = Vec::new();
    for client in 0..=CLIENTS {
        let (channel, barrier) = (daemon.connect().await, Arc::clone(&barrier));
        let name = format!("durable-{round:02}-{client:02}");
        asking.push(tokio::spawn(async move {
            barrier.wait().await;
            if client > 0 {
                tokio::time::sleep(after).await;
            }
            let asked = Instant::now();
            traced::reserve(channel, &name, base + client).await;
            (name, asked.elapsed())
        }));
    }
    let mut all = Vec::new();
    for one in asking {
        all.push(timeout(PATIENCE, one).await.expect("an answer").expect("a reservation"));
    }
    all
}

fn batches(trace: &Trace, asked: &[Asked]) -> Vec<Batch> {
    let names: Vec<&str> = asked.iter().map(|(name, _)| name.as_str()).collect();
    let batches = trace.batches(&names);
    for batch in &batches {
        println!("{batch}");
        batch.check().unwrap_or_else(|wrong| panic!("{wrong}: {batch}"));
    }
    batches
}

/// Batches of several of which no more than so many `fdatasync` stand between the last request and
/// the first answer: their own, and that of the commit before, if it came after the last request was
/// read. Where the first answer was slow to leave, there may be the next one's, too.
fn shared(batches: &[Batch], syncs: usize) -> usize {
    batches.iter().filter(|batch| batch.names.len() > 1 && batch.syncs_between <= syncs).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_waits_for_its_own_fdatasync_and_at_most_the_one_before() {
    let daemon = Traced::start(None).await;
    let mut asked = Vec::new();
    // On a busy machine with a quick disk the next commit is often done before an answer leaves.
    for number in 0..50 {
        asked.extend(round(&daemon, number, Duration::from_millis(2)).await);
    }
    let trace = daemon.stop().await;
    let batches = batches(&trace, &asked);
    let single = batches.iter().filter(|batch| batch.syncs_between == 1).count();
    let shared = shared(&batches, 2);
    let (answers, all) = (asked.len(), batches.len());
    println!("{answers} answers, {all} batches: {single} with one fdatasync, {shared} shared");
    assert!(all < answers, "nothing that waited shared a commit");
    assert!(single >= 3, "{single} batches had one fdatasync, of {all}");
    assert!(shared >= 3, "{shared} batches of several had one or two, of {all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_fdatasync_delayed_no_answer_leaves_earlier() {
    let daemon = Traced::start(Some(DELAY)).await;
    let mut asked = Vec::new();
    for number in 0..3 {
        // All others ask while the first one's commit is delayed.
        asked.extend(round(&daemon, number, DELAY / 4).await);
    }
    let trace = daemon.stop().await;
    let batches = batches(&trace, &asked);
    for (name, took) in &asked {
        assert!(*took >= DELAY, "{name} had its answer after {took:?}");
    }
    for batch in &batches {
        let waited = batch.fastest_answer();
        assert!(waited >= DELAY, "an answer left {waited:?} after its request: {batch}");
    }
    let fastest = asked.iter().map(|(_, took)| *took).min();
    println!("fastest of {} answers: {fastest:?}", asked.len());
    let large = batches.iter().any(|batch| batch.names.len() >= CLIENTS / 2);
    assert!(large && shared(&batches, 1) >= 1, "what waited did not share a commit");
}
