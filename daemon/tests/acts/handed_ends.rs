//! What is left of a hand-over `unbound` or by `node` when holders die, claims end without them, or
//! somebody asks at the wrong time.

use std::{
    process::{Child, Command as Program, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_handover::Client;
use berth_host::{
    Node,
    sim::{Fault, Site},
};
use berth_ownership::{Backend, Command, Delivery, HolderProcess, Policy, ReservationState};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    book::PATIENCE,
    handed::{BOTH, DEVICE, end, holding, is, let_in, node, process, reserved, sleeper, unbound},
    handover::{client, reason},
    world::{Ask, World, at, id, myself},
};

const PAIR: [&str; 2] = ["0000:02:01.0", "0000:02:02.0"];

fn of_the_pair(name: &'static str, devices: &'static [&'static str], delivery: Delivery) -> Ask {
    Ask::new(name, Policy::Group, devices).delivery(delivery)
}

fn as_holder(child: &Child) -> HolderProcess {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    let start_ticks = fields.split_ascii_whitespace().nth(19).unwrap().parse().unwrap();
    HolderProcess::new(child.id(), start_ticks)
}

/// A descendant keeps the device, and nobody opens it anew: neither at once nor after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_holder_left_open_lets_nobody_in() {
    for backend in BOTH {
        let mut world = World::new();
        let child = sleeper().spawn().unwrap();
        let_in(&world, &node(backend), as_holder(&child));
        let left = world.sim.process("descendant", 60001);
        match backend {
            Backend::Iommufd => left.bind(at(DEVICE)).unwrap(),
            Backend::Type1 => left.open_by_group(at(DEVICE)).unwrap(),
        }
        world.restart();
        world.book.wait_for("the open", is(ReservationState::Held));
        world.check();
        end(child);
        world.book.wait_for("the holder's end", is(ReservationState::Draining));
        world.check();
        assert!(world.release("r-1").is_err());
        world.check();
        // The record names one that lives, as descendants do.
        let living = Command::HolderMoved { reservation: id("r-1"), process: myself() };
        world.book.order(&living).unwrap();
        let report = world.restart();
        assert_eq!(report.adopted, [id("r-1")], "{backend}");
        assert_eq!(world.state("r-1"), ReservationState::Draining);
        world.check();
        drop(left);
        world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
        world.release("r-1").unwrap();
        world.check_given_back();
    }
}

/// The daemon dies between the loss and what takes the lost one's user off the lists.
#[tokio::test(flavor = "multi_thread")]
async fn who_lost_a_group_is_let_in_no_more_after_a_restart() {
    for backend in BOTH {
        let mut world = World::new();
        let_in(&world, &node(backend), myself());
        world.engine.close(PATIENCE);
        let why = "a rival was faster".to_owned();
        world.book.order(&Command::HoldLost { reservation: id("r-1"), why }).unwrap();
        world.restart();
        let mut next = Ask { name: "r-2", ..node(backend) };
        "uid:60002".clone_into(&mut next.uid);
        world.reserve(&next).unwrap();
        world.check();
        world.release("r-2").unwrap();
        world.release("r-1").unwrap();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_refused_leaves_the_holder_what_it_is() {
    let mut desk = reserved(&unbound());
    let child = holding(&desk).await;
    desk.world.sim.bind_exported(at(DEVICE)).unwrap();
    desk.world.book.wait_for("the bind", is(ReservationState::Held));
    desk.restart();
    assert_eq!(process(&desk.world).unwrap().pid, child.id());
    let answer = client(&desk.path, |client| client.fetch("r-1", 0)).await;
    assert_eq!(reason(answer), "DAEMON_RESTARTED");
    assert_eq!(process(&desk.world).unwrap().pid, child.id());
    end(child);
    desk.world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
    desk.world.check();
}

/// The start can't tell who has the device open, and the end of the holder is seen all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_a_start_could_not_look_at_is_watched() {
    for dies_before in [false, true] {
        let mut desk = reserved(&unbound());
        let child = holding(&desk).await;
        desk.world.sim.bind_exported(at(DEVICE)).unwrap();
        desk.world.book.wait_for("the bind", is(ReservationState::Held));
        desk.world.engine.close(PATIENCE);
        let mut child = Some(child);
        if dies_before {
            child.take().into_iter().for_each(end);
        }
        desk.world.sim.fault(Fault::at(Site::WhoHolds).errno(Errno::IO).always());
        desk.restart();
        assert_eq!(desk.world.state("r-1"), ReservationState::Held);
        desk.world.sim.clear_faults();
        child.into_iter().for_each(end);
        desk.world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
        desk.world.check();
    }
}

/// Another process fetches while the end of the holder is being seen to: it keeps what it got.
#[tokio::test(flavor = "multi_thread")]
async fn who_fetches_as_the_holder_ends_is_the_holder() {
    for (ask, slow) in [(unbound(), Site::OpenGroup), (node(Backend::Iommufd), Site::WhoHolds)] {
        let desk = reserved(&ask);
        let first = sleeper().spawn().unwrap();
        let who = pidfd_open(Pid::from_child(&first), PidfdFlags::empty()).unwrap();
        let fetch = move |client: Client| client.fetch_for("r-1", 0, &who).map(drop);
        client(&desk.path, fetch).await.unwrap();
        desk.world.sim.fault(Fault::at(slow).delay_ms(1000).always());
        end(first);
        // By now what is slow is under way.
        tokio::time::sleep(Duration::from_millis(400)).await;
        let fetched = client(&desk.path, |client| client.fetch("r-1", 0)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        desk.world.sim.clear_faults();
        assert_eq!(desk.world.state("r-1"), ReservationState::Handed, "{slow:?}");
        assert_eq!(process(&desk.world), Some(myself()));
        assert_eq!(desk.world.engine.census().holds, 0, "{slow:?}");
        desk.world.check();
        drop(fetched);
        desk.world.release("r-1").unwrap();
        desk.world.check_given_back();
    }
}

/// The last holder's user is taken off the lists between the fetch and its record.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_recorded_after_the_holders_end_is_let_in() {
    let desk = reserved(&node(Backend::Iommufd));
    let first = sleeper().spawn().unwrap();
    let who = pidfd_open(Pid::from_child(&first), PidfdFlags::empty()).unwrap();
    let fetch = move |client: Client| client.fetch_for("r-1", 0, &who).map(drop);
    client(&desk.path, fetch).await.unwrap();
    desk.world.book.answer_slowly(Duration::from_secs(1));
    let next = client(&desk.path, |client| client.fetch("r-1", 0).map(drop));
    let ends = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        end(first);
    };
    let (next, ()) = tokio::join!(next, ends);
    next.unwrap();
    // Until the end has been looked at once more.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(desk.world.state("r-1"), ReservationState::Handed);
    assert_eq!(process(&desk.world), Some(myself()));
    desk.world.check();
}

/// What a child process does: fetches for the process that is named, and ends.
#[test]
fn child_fetches_for() {
    let Some(path) = std::env::var_os("BERTH_TEST_HANDOVER") else { return };
    let pid = std::env::var("BERTH_TEST_NAMED").unwrap().parse().unwrap();
    let named = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    let client = Client::connect(std::path::Path::new(&path)).unwrap();
    client.fetch_for("r-1", 0, &named).unwrap();
}

/// Nothing of a node passes through who fetched: the holder opens it when it likes.
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_of_nodes_outlives_who_fetched_for_it() {
    let desk = reserved(&node(Backend::Iommufd));
    let named = sleeper().spawn().unwrap();
    let mut fetcher = Program::new(std::env::current_exe().unwrap())
        .args(["--exact", "handed_ends::child_fetches_for"])
        .env("BERTH_TEST_HANDOVER", &desk.path)
        .env("BERTH_TEST_NAMED", named.id().to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let fetched = tokio::task::spawn_blocking(move || fetcher.wait().unwrap()).await.unwrap();
    assert!(fetched.success());
    // Longer than descriptors would be given to reach it.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(desk.world.state("r-1"), ReservationState::Handed);
    assert!(!desk.world.sim.access(Node::Cdev(at(DEVICE))).is_empty());
    desk.world.check();
    end(named);
    desk.world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
    desk.world.check();
}

/// A holder that goes on asking while its devices are released doesn't keep them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_asks_again_and_again_keeps_no_release_waiting() {
    let desk = reserved(&unbound());
    drop(client(&desk.path, |client| client.fetch("r-1", 0)).await.unwrap());
    desk.world.book.answer_slowly(Duration::from_millis(50));
    let stop = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = (0..24)
        .map(|turn| {
            let (path, stop) = (desk.path.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                // One after another, so that there is always one whose answer is under way.
                std::thread::sleep(Duration::from_millis(2 * turn));
                let client = Client::connect(&path).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    drop(client.fetch("r-1", 0));
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let released = desk.world.release("r-1");
    stop.store(true, Ordering::Relaxed);
    askers.into_iter().for_each(|asker| asker.join().unwrap());
    released.unwrap();
    desk.world.check_given_back();
}

/// The memory of a holder that let go isn't kept by what the daemon kept of the hand-over.
#[tokio::test(flavor = "multi_thread")]
async fn the_iommufd_goes_with_the_last_that_was_handed_over() {
    let world = World::new();
    world.reserve(&of_the_pair("r-1", &["0000:02:01.0"], Delivery::Unbound)).unwrap();
    let qemu = world.sim.process("qemu", 60001);
    world.hand_out(&qemu, "r-1");
    let second = of_the_pair("r-2", &["0000:02:02.0"], Delivery::Unbound).join("r-1");
    world.reserve(&second).unwrap();
    qemu.bind_received(at(PAIR[0])).unwrap();
    qemu.close_all();
    world.release("r-1").unwrap();
    assert_eq!(world.engine.census().contexts, 0);
    world.check();
    world.release("r-2").unwrap();
    world.check_given_back();
}

/// A hold that a release took before it failed would be in the way of who still has the claims.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_fails_leaves_the_groups_to_their_holder() {
    let world = World::new();
    world.reserve(&of_the_pair("r-1", &["0000:02:01.0", DEVICE], Delivery::Unbound)).unwrap();
    let second = of_the_pair("r-2", &["0000:02:02.0"], Delivery::Unbound).join("r-1");
    world.reserve(&second).unwrap();
    world.hand_out_to(myself(), "r-1").unwrap();
    // In no other process's table, as on its way over a socket, and bound all the same.
    let under_way = world.engine.handed_fds(&id("r-1")).unwrap();
    world.sim.bind_exported(at(DEVICE)).unwrap();
    let refusal = world.release("r-1").unwrap_err();
    assert_eq!(refusal.reason.name(), "HOLDER_DRAINING", "{}", refusal.message);
    assert_eq!(world.engine.census().holds, 0);
    world.sim.bind_exported(at(PAIR[0])).unwrap();
    drop(under_way);
    world.release("r-1").unwrap();
    world.release("r-2").unwrap();
    world.check_given_back();
}

/// Who opens by path has an iommufd of its own, and the kernel lets one own the group.
#[tokio::test(flavor = "multi_thread")]
async fn an_iommufd_is_not_handed_over_beside_the_holders_own() {
    let world = World::new();
    world.reserve(&of_the_pair("r-1", &["0000:02:01.0"], Delivery::Node)).unwrap();
    let second = of_the_pair("r-2", &["0000:02:02.0"], Delivery::Unbound).join("r-1");
    world.reserve(&second).unwrap();
    world.hand_out_to(myself(), "r-1").unwrap();
    let refusal = world.hand_out_to(myself(), "r-2").unwrap_err();
    assert_eq!(refusal.reason.name(), "HOLDER_OWNS_DOMAIN", "{}", refusal.message);
    assert!(refusal.message.contains("r-1 opens an iommufd by itself"), "{}", refusal.message);
    assert!(refusal.resolve[0].contains("--delivery node"), "{:?}", refusal.resolve);
    world.check();
    world.release("r-2").unwrap();
    world.release("r-1").unwrap();
    world.check_given_back();
}
