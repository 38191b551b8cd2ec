//! Who is the holder when its process is dead: what came of it, and nobody else.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use berth_handover::Client;
use berth_ownership::{Backend, Delivery, HolderProcess, Policy, ReservationState};
use berthd::acts::Records as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    handed::{BOTH, DEVICE, is, process},
    handover::{Desk, desk},
    world::{Ask, at},
};

fn attached(backend: Backend) -> Desk {
    let desk = desk();
    let ask = Ask::new("r-1", Policy::Exclusive, &[DEVICE]);
    desk.world.reserve(&ask.delivery(Delivery::Bound).backend(backend)).unwrap();
    desk.world.attach("r-1").unwrap();
    desk
}

/// What a child process does: fetches, starts a program that has the device as its input, says so,
/// and waits for the end of its own.
#[test]
fn child_that_forks() {
    let Some(path) = std::env::var_os("BERTH_TEST_HANDOVER") else { return };
    let client = Client::connect(Path::new(&path)).unwrap();
    let mut fetched = client.fetch("r-1", 0).unwrap();
    let (_, fd) = fetched.take_device(DEVICE).unwrap();
    // `setsid --fork` leaves its parent and its session, as programs do that make themselves daemons.
    let mut words = std::env::var("BERTH_TEST_STARTS").unwrap();
    words.push_str(" sleep 600");
    let mut words = words.split_whitespace();
    let mut program = Command::new(words.next().unwrap());
    program.args(words).stdin(Stdio::from(fd)).stdout(Stdio::null());
    let mut started = program.spawn().unwrap();
    if program.get_program() != "env" {
        started.wait().unwrap();
    }
    println!("holding");
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    started.wait().unwrap();
}

/// A holder that has started its heir; `starts` are the words before the heir's own.
fn holding(path: &Path, starts: &str, leads: bool, reservation: Option<&str>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kin::child_that_forks", "--nocapture"]);
    command.env("BERTH_TEST_HANDOVER", path).env("BERTH_TEST_STARTS", starts);
    command.envs(reservation.map(|id| ("BERTH_RESERVATION", id)));
    if leads {
        command.process_group(0);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("holding")));
    child
}

fn is_with_another(desk: &Desk, dead: u32) -> HolderProcess {
    desk.world.book.wait_for("another process", |state| {
        let process = state.reservation(&"r-1".into()).unwrap().process.as_ref();
        process.is_some_and(|process| process.pid != dead)
    });
    process(&desk.world).unwrap()
}

fn end(process: &HolderProcess) {
    let pid = Pid::from_raw(i32::try_from(process.pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

async fn started(
    desk: &Desk,
    starts: &'static str,
    leads: bool,
    of: Option<&'static str>,
) -> Child {
    let path = desk.path.clone();
    tokio::task::spawn_blocking(move || holding(&path, starts, leads, of)).await.unwrap()
}

async fn dies(mut child: Child) -> u32 {
    tokio::task::spawn_blocking(move || {
        child.kill().unwrap();
        child.wait().unwrap();
        child.id()
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_holder_forked_is_the_holder_when_it_dies() {
    for backend in BOTH {
        for (starts, leads, of) in [("env", true, None), ("setsid --fork", false, Some("r-1"))] {
            let mut desk = attached(backend);
            let holder = started(&desk, starts, leads, of).await;
            let dead = dies(holder).await;
            let heir = is_with_another(&desk, dead);
            assert_eq!(desk.world.state("r-1"), ReservationState::Held, "{starts}");
            // As it was between its fork and its exec, perhaps.
            assert!(["sleep", "setsid", "env"].contains(&heir.name.as_str()), "{heir}");
            desk.world.check();
            let refusal = desk.world.release("r-1").unwrap_err();
            assert!(refusal.message.contains(&heir.pid.to_string()), "{}", refusal.message);
            desk.restart();
            assert_eq!(desk.world.state("r-1"), ReservationState::Held, "{starts}");
            assert_eq!(process(&desk.world), Some(heir.clone()));
            end(&heir);
            desk.world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
            desk.world.give_all_back();
            desk.world.check_given_back();
        }
    }
}

/// A program that says that it was started for another reservation, and one that says nothing and
/// was put into no group of its own: nothing tells that they came of the holder.
#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_tells_to_have_come_of_the_holder_drains() {
    for of in [Some("r-2"), None] {
        // In a session like this the control group tells it.
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let tells = |line: &str| line.contains("0::/") || line.contains(":name=systemd:/");
        if own.lines().any(|line| tells(line) && !line.ends_with(":/")) {
            return;
        }
        let desk = attached(Backend::Iommufd);
        let dead = dies(started(&desk, "setsid --fork", false, of).await).await;
        let other = is_with_another(&desk, dead);
        assert_eq!(desk.world.state("r-1"), ReservationState::Draining, "{of:?}");
        end(&other);
        desk.world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
    }
}

/// It need not die: what it closes is free.
#[tokio::test(flavor = "multi_thread")]
async fn who_drains_and_closes_what_it_has_is_rid_of_it_and_lives_on() {
    for backend in BOTH {
        for restarts in [false, true] {
            let mut desk = attached(backend);
            let holder = started(&desk, "true", false, None).await;
            let heir = desk.world.sim.foreign("heir");
            heir.receive(desk.world.engine.device_fd(at(DEVICE)).unwrap()).unwrap();
            dies(holder).await;
            desk.world.book.wait_for("draining", is(ReservationState::Draining));
            let snapshot = desk.world.book.snapshot();
            let record = snapshot.state.reservation(&"r-1".into()).unwrap();
            let told = format!("heir ({}) still has the devices open", heir.pid());
            assert_eq!(record.detail, told);
            if restarts {
                desk.restart();
                assert_eq!(desk.world.state("r-1"), ReservationState::Draining);
            }
            heir.close_all();
            desk.world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
            assert!(heir.running());
            desk.world.give_all_back();
            desk.world.check_given_back();
        }
    }
}
