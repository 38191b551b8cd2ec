//! One operation of the host fails, whichever it is, in the life of a reservation under every
//! delivery: afterwards each device is as it was or quarantined with the reason, the record is the
//! kernel's truth, and the same again without the fault works.

use berth_host::sim::{Fault, Site};
use berth_ownership::{
    Backend, Command, Condition, Delivery, Order, Policy, Reason, Refusal, ReservationId,
    ReservationState,
};
use berthd::acts::Records as _;
use rustix::io::Errno;

use crate::world::{Ask, World, at, id, myself};

/// A kind of life. The devices are taken from host drivers.
#[derive(Clone, Copy, Debug)]
struct Life {
    policy: Policy,
    delivery: Delivery,
    backend: Backend,
    devices: &'static [&'static str],
}

const NIC: &[&str] = &["0000:04:00.0"];
/// Its sibling is on a host driver.
const MIXED: &[&str] = &["0000:05:00.0"];

fn lives() -> Vec<Life> {
    let mut lives = Vec::new();
    for backend in [Backend::Iommufd, Backend::Type1] {
        for delivery in [Delivery::Held, Delivery::Bound, Delivery::Unbound, Delivery::Node] {
            if backend == Backend::Type1 && delivery == Delivery::Unbound {
                continue;
            }
            lives.push(Life { policy: Policy::Exclusive, delivery, backend, devices: NIC });
        }
        for delivery in [Delivery::Held, Delivery::Node] {
            lives.push(Life { policy: Policy::Group, delivery, backend, devices: MIXED });
        }
        let delivery = Delivery::Bound;
        lives.push(Life { policy: Policy::Shared, delivery, backend, devices: MIXED });
    }
    lives
}

impl Life {
    fn ask(&self, name: &'static str) -> Ask {
        let ask = Ask::new(name, self.policy, self.devices);
        ask.delivery(self.delivery).backend(self.backend).take()
    }

    /// Reserve, attach or hand over, fetch, let go, release. What a fault made impossible is
    /// refused, and the rest goes on with what is there. Says what was refused.
    fn run(&self, world: &World, name: &'static str) -> Vec<String> {
        let mut refused = Vec::new();
        let mut note = |what: &str, done: Result<(), Box<Refusal>>| {
            done.as_ref().err().into_iter().for_each(|refusal| says_what_failed(refusal));
            refused.extend(done.err().map(|refusal| format!("{what}: {}", refusal.message)));
        };
        note("reserve", world.reserve(&self.ask(name)));
        if self.delivery.holder_owns_domain() {
            note("hand over", world.hand_out_to(myself(), name));
            let fetched = world.engine.handed_fds(&id(name)).map(drop);
            note("fetch", fetched.map_err(berthd::model::ApiError::into_refusal));
        } else {
            note("attach", world.attach(name));
            self.fetch(world);
        }
        note("release", world.release(name));
        refused
    }

    /// What the hand-over socket gives, dropped at once.
    fn fetch(&self, world: &World) {
        if self.delivery == Delivery::Bound {
            self.devices.iter().for_each(|device| drop(world.engine.device_fd(at(device))));
        }
    }
}

/// A refusal for an operation that failed has a reason, an errno, an object, and words. It is never
/// the caller's fault.
fn says_what_failed(refusal: &Refusal) {
    let said = ![Reason::Internal, Reason::PermissionDenied].contains(&refusal.reason)
        && refusal.errno != 0
        && !refusal.object.is_empty()
        && !refusal.message.is_empty();
    assert!(said, "it doesn't say what failed: {refusal:?}");
}

/// Errnos that one kind of life meets: all where there is time, else one that every kind meets and
/// some in turn.
fn errnos(life: usize) -> Vec<Errno> {
    const OTHERS: [Errno; 6] =
        [Errno::BUSY, Errno::NOSPC, Errno::MFILE, Errno::NOMEM, Errno::INTR, Errno::PERM];
    let all = std::env::var_os("BERTH_TEST_LONG").is_some();
    let some = OTHERS.iter().cycle().skip(life).take(if all { OTHERS.len() } else { 1 });
    [Errno::IO].into_iter().chain(some.copied()).collect()
}

fn lives_on(world: &World, name: &str) -> bool {
    let snapshot = world.book.snapshot();
    let record = snapshot.state.reservation(&ReservationId::new(name));
    record.is_some_and(|record| record.state != ReservationState::Released)
}

/// Every mark names a reason; an operator clears them all, and says how many there were.
fn clear_quarantine(world: &World) -> usize {
    let snapshot = world.book.snapshot();
    let marked: Vec<_> = snapshot
        .state
        .devices()
        .filter(|device| device.condition() == Condition::Quarantined)
        .collect();
    for device in &marked {
        let why = &device.marks[&Condition::Quarantined];
        assert!(why.contains(": "), "{} doesn't say why: {why}", device.facts.id);
        let why = "looked at".to_owned();
        let clear = Command::ClearQuarantine { device: device.facts.id.clone(), why };
        world.book.order(&clear).unwrap();
    }
    world.book.settled();
    marked.len()
}

/// False once there was no operation left to fail.
fn fails(life: &Life, errno: Errno, skip: u32, quarantined: &mut usize) -> bool {
    let world = World::new();
    world.sim.fault(Fault::at(Site::Any).errno(errno).skip(skip));
    let before = world.sim.fault_points();
    life.run(&world, "r-1");
    world.book.settled();
    let unhit = world.sim.fault_points() - before <= u64::from(skip);
    world.sim.clear_faults();
    // It may have been the last look that failed: then the next one sees how it is.
    world.book.look();
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.check();
        if lives_on(&world, "r-1") {
            let order = Order::new("r-1");
            let release = Command::Release { order, force: false };
            let done = world.book.run(&release, &id("r-1")).map(drop);
            assert_eq!(done.map_err(|refusal| refusal.message), Ok(()), "the release again");
        }
        world.check_given_back();
        *quarantined += clear_quarantine(&world);
        assert_eq!(life.run(&world, "r-2"), [""; 0], "the same again");
        assert_eq!(clear_quarantine(&world), 0, "the same again left something quarantined");
        world.give_all_back();
        world.check_given_back();
    }));
    assert!(
        seen.is_ok(),
        "{life:?} {errno:?} after {skip}: {:?}",
        world.book.failure(&id("r-1")).map(|failure| failure.message)
    );
    !unhit
}

/// One life with a fault at each of its operations: how many there were, how many devices were
/// quarantined.
fn walk(life: &Life, errnos: &[Errno]) -> (u32, usize) {
    let (mut failed, mut quarantined) = (0, 0);
    for &errno in errnos {
        let mut skip = 0;
        while fails(life, errno, skip, &mut quarantined) {
            skip += 1;
        }
        assert!(skip > 15, "{life:?} has only {skip} operations");
        failed += skip;
    }
    (failed, quarantined)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_fails_anywhere_leaves_nothing_half() {
    // They mostly wait, as who is told that something is busy tries again.
    let mut walks = tokio::task::JoinSet::new();
    for (number, life) in lives().into_iter().enumerate() {
        walks.spawn_blocking(move || walk(&life, &errnos(number)));
    }
    let (mut failed, mut quarantined) = (0, 0);
    while let Some(walked) = walks.join_next().await {
        let (more, left) = walked.unwrap();
        failed += more;
        quarantined += left;
    }
    println!("{failed} operations failed, {quarantined} devices were quarantined");
    assert!(quarantined > 0, "a reset that fails, or a baseline that doesn't come back, does so");
}
