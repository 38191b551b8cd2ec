//! A holder that fetches what it has already: it is answered without the ledger, and nobody else is.

use std::time::{Duration, Instant};

use berth_handover::{Client, ClientError, Fetched};
use berth_ownership::{Backend, Delivery, Policy, Reason, Refusal};
use berthd::acts::Records as _;

use crate::{
    handover::{Desk, attached, desk, reason, spawn_child},
    world::{Ask, id},
};

const DEVICE: &str = "0000:00:06.0";
/// The ledger answers nobody within what a test waits for.
const NEVER: Duration = Duration::from_secs(60);
/// Much longer than an answer takes that waits for nobody.
const LIMIT: Duration = Duration::from_secs(20);

async fn fetch(desk: &Desk, epoch: u64) -> Result<Fetched, ClientError> {
    let path = desk.path.clone();
    let work = move || {
        let client = Client::connect(&path).unwrap();
        client.wait_at_most(LIMIT).unwrap();
        client.fetch("r-1", epoch)
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn bound(backend: Backend) -> Ask {
    Ask::new("r-1", Policy::Exclusive, &[DEVICE]).delivery(Delivery::Bound).backend(backend)
}

/// A process that another test is just starting has for an instant all that is open here.
fn insist(act: impl Fn() -> Result<(), Box<Refusal>>) {
    let ends = Instant::now() + LIMIT;
    loop {
        match act() {
            Err(refusal) if refusal.reason == Reason::HolderDraining && Instant::now() < ends => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done.unwrap(),
        }
    }
}

/// pidfs, by which a process is told without `/proc`, is there from Linux 6.9 on.
fn has_pidfs() -> bool {
    let own = rustix::process::getpid();
    let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::fs::fstatfs(&pidfd).unwrap().f_type == 0x5049_4446
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_is_answered_while_the_ledger_is_silent() {
    if !has_pidfs() {
        println!("this kernel has no pidfs: the ledger is asked each time");
        return;
    }
    for backend in [Backend::Iommufd, Backend::Type1] {
        let desk = desk();
        attached(&desk, &bound(backend));
        let first = fetch(&desk, 0).await.unwrap();
        desk.world.book.answer_slowly(NEVER);
        for epoch in [0, first.reply.epoch.unwrap()] {
            let again = fetch(&desk, epoch).await.unwrap();
            assert_eq!(again.reply, first.reply, "as at first");
            assert_eq!(again.fds.len(), 2);
        }
        desk.world.book.answer_slowly(Duration::ZERO);
        drop(first);
        assert_eq!(reason(fetch(&desk, 1).await), "STALE_EPOCH");
        insist(|| desk.world.detach("r-1"));
        assert_eq!(reason(fetch(&desk, 0).await), "NOT_ATTACHED");
        desk.world.attach("r-1").unwrap();
        assert_eq!(fetch(&desk, 0).await.unwrap().fds.len(), 2, "anew, by the ledger");
        insist(|| desk.world.release("r-1"));
        assert_eq!(reason(fetch(&desk, 0).await), "NOT_FOUND");
        desk.world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_the_holder_no_more_is_recorded_before_it_is_answered() {
    let desk = desk();
    attached(&desk, &bound(Backend::Iommufd));
    drop(fetch(&desk, 0).await.unwrap());
    let path = desk.path.clone();
    let spawn = move || spawn_child(&path, "handover::child_holder");
    let mut child = tokio::task::spawn_blocking(spawn).await.unwrap();
    let holder =
        || desk.world.book.snapshot().state.reservation(&id("r-1")).unwrap().process.clone();
    assert_eq!(holder().unwrap().pid, child.id());
    drop(fetch(&desk, 0).await.unwrap());
    assert_eq!(holder().unwrap().pid, std::process::id(), "it asked, so it is the holder again");
    child.kill().and_then(|()| child.wait()).unwrap();
    insist(|| desk.world.release("r-1"));
    desk.world.check_given_back();
}
