//! A crash at every point of every kind of kernel work. After the next start everything that is
//! recorded is true, and giving it all back leaves the machine as it was.

use berth_host::sim::SimHost;
use berth_ownership::{Backend, Command, Delivery, DeviceId, Order, Policy, ReservationState};

use berthd::acts::Records;

use crate::world::{Ask, World, id, myself};

/// One thing to do while the crash may come; the world was made ready for it before.
struct Act {
    name: &'static str,
    ready: fn(&World, Backend),
    act: fn(&World, Backend),
}

fn nic(backend: Backend) -> Ask {
    Ask::new("r-1", Policy::Exclusive, &["0000:04:00.0"]).backend(backend).take()
}

fn pair(backend: Backend) -> Ask {
    Ask::new("r-1", Policy::Group, &["0000:02:01.0", "0000:02:02.0"]).backend(backend)
}

fn order(world: &World, command: &Command) {
    // Refused or broken off by the crash: what is on record afterwards is looked at, not this.
    let _ = world.book.order(command);
    world.book.settled();
}

fn reserve(world: &World, ask: &Ask) {
    order(world, &Command::Reserve(Box::new(world.request(ask))));
}

fn attach(world: &World, name: &str) {
    order(world, &Command::Attach { order: Order::new(name), domain: None });
}

fn detach(world: &World, name: &str) {
    order(world, &Command::Detach { order: Order::new(name) });
}

fn release(world: &World, name: &str) {
    order(world, &Command::Release { order: Order::new(name), force: false });
}

/// Hands a reservation over to this process, which drops what it gets: the crash may come meanwhile.
fn hand_out(world: &World) {
    let process = myself();
    order(world, &Command::HandOver { order: Order::new("r-1"), process });
    let fetch = || world.engine.handed_fds(&id("r-1"));
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(fetch));
}

fn by_the_holder(backend: Backend) -> Ask {
    nic(backend).delivery(match backend {
        Backend::Iommufd => Delivery::Unbound,
        Backend::Type1 => Delivery::Node,
    })
}

const ACTS: &[Act] = &[
    Act {
        name: "hand over, unbound or by node",
        ready: |world, backend| reserve(world, &by_the_holder(backend)),
        act: |world, _| hand_out(world),
    },
    Act {
        name: "hand over by node",
        ready: |world, backend| reserve(world, &nic(backend).delivery(Delivery::Node)),
        act: |world, _| hand_out(world),
    },
    Act {
        name: "hand over of a pair",
        ready: |world, _| {
            let pair = pair(Backend::Iommufd).delivery(Delivery::Unbound);
            reserve(world, &pair);
        },
        act: |world, _| hand_out(world),
    },
    Act {
        name: "release of what was handed over",
        ready: |world, backend| {
            reserve(world, &by_the_holder(backend));
            hand_out(world);
        },
        act: |world, _| release(world, "r-1"),
    },
    Act {
        name: "release of nodes",
        ready: |world, backend| {
            reserve(world, &nic(backend).delivery(Delivery::Node));
            hand_out(world);
        },
        act: |world, _| release(world, "r-1"),
    },
    Act { name: "reserve", ready: |_, _| {}, act: |world, backend| reserve(world, &nic(backend)) },
    Act {
        name: "reserve with a sibling to take",
        ready: |_, _| {},
        act: |world, backend| {
            let ask = Ask::new("r-1", Policy::Group, &["0000:05:00.0"]).backend(backend).take();
            reserve(world, &ask);
        },
    },
    Act {
        name: "attach",
        ready: |world, backend| reserve(world, &nic(backend)),
        act: |world, _| attach(world, "r-1"),
    },
    Act {
        name: "attach a group",
        ready: |world, backend| reserve(world, &pair(backend)),
        act: |world, _| attach(world, "r-1"),
    },
    Act {
        name: "detach",
        ready: |world, backend| {
            reserve(world, &nic(backend));
            attach(world, "r-1");
        },
        act: |world, _| detach(world, "r-1"),
    },
    Act {
        name: "detach a group",
        ready: |world, backend| {
            reserve(world, &pair(backend));
            attach(world, "r-1");
        },
        act: |world, _| detach(world, "r-1"),
    },
    Act {
        name: "replace",
        ready: |world, backend| {
            reserve(world, &pair(backend));
            let domain = Command::CreateDomain { domain: "d-2".into(), context: "c-r-1".into() };
            order(world, &domain);
            attach(world, "r-1");
        },
        act: |world, _| {
            order(world, &Command::Replace { order: Order::new("r-1"), domain: "d-2".into() });
        },
    },
    Act {
        name: "release",
        ready: |world, backend| {
            reserve(world, &nic(backend));
            attach(world, "r-1");
        },
        act: |world, _| release(world, "r-1"),
    },
    Act {
        name: "release of a joined group",
        ready: |world, backend| {
            let first = Ask::new("r-1", Policy::Shared, &["0000:02:01.0"]).backend(backend);
            let second = Ask::new("r-2", Policy::Shared, &["0000:02:02.0"]).backend(backend);
            reserve(world, &first);
            attach(world, "r-1");
            reserve(world, &second.domain("d-r-1"));
            attach(world, "r-2");
        },
        act: |world, _| {
            release(world, "r-1");
            release(world, "r-2");
        },
    },
    Act {
        name: "release after a hold alone",
        ready: |world, backend| {
            let ask = Ask::new("r-1", Policy::Group, &["0000:05:00.0"]).backend(backend).take();
            reserve(world, &ask);
        },
        act: |world, _| release(world, "r-1"),
    },
    Act {
        name: "kernel dma release and set",
        ready: |_, _| {},
        act: |world, _| {
            let device = "0000:04:00.0";
            let release =
                Command::KernelDmaRelease { device: device.into(), host_uses_it_anyway: true };
            order(world, &release);
            order(world, &Command::KernelDmaSet { device: device.into(), driver: None });
        },
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_anywhere_leaves_the_record_true() {
    crash_everywhere(false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_anywhere_leaves_the_record_true_with_a_store_of_descriptors() {
    crash_everywhere(true);
}

fn crash_everywhere(stored: bool) {
    let mut places = 0;
    for act in ACTS {
        for backend in [Backend::Iommufd, Backend::Type1] {
            let mut at = 1;
            while crashes(act, backend, at, stored) {
                at += 1;
                places += 1;
            }
            assert!(at > 4 || backend == Backend::Type1, "{} has only {at} points", act.name);
        }
    }
    println!("crashed at {places} points");
    assert!(places > 150, "{places}");
}

/// False once the act ran to its end without reaching the point.
fn crashes(act: &Act, backend: Backend, at: u64, stored: bool) -> bool {
    let mut world = World::with(SimHost::builtin("small").unwrap(), stored);
    (act.ready)(&world, backend);
    world.crash.arm(at);
    (act.act)(&world, backend);
    if !world.crash.happened() {
        world.settle_down();
        return false;
    }
    let place = format!("{} on {backend}, crash {at} {}", act.name, world.crash.place());
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.restart();
        world.check();
        assert!(world.book.open_intents().is_empty(), "an intent is still open");
        world.give_all_back();
        world.check_given_back();
        let stored = world.store.as_ref().map(|store| store.names()).unwrap_or_default();
        assert!(stored.is_empty(), "stored without a record: {stored:?}");
    }));
    assert!(seen.is_ok(), "{place}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_and_claims_after_a_restart() {
    for backend in [Backend::Iommufd, Backend::Type1] {
        let mut world = World::new();
        reserve(&world, &nic(backend));
        attach(&world, "r-1");
        let second = Ask::new("r-2", Policy::Exclusive, &["0000:00:06.0"]).backend(backend);
        reserve(&world, &second);
        let report = world.restart();
        assert_eq!(report.ended, [id("r-1")]);
        assert_eq!(report.held.len(), 2);
        assert_eq!(world.state("r-1"), ReservationState::Reserved);
        world.check();
        attach(&world, "r-1");
        assert_eq!(world.state("r-1"), ReservationState::Held);
        world.give_all_back();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faster_rival_makes_the_hold_lost() {
    let mut world = World::new();
    reserve(&world, &Ask::new("r-1", Policy::Exclusive, &["0000:00:06.0"]));
    world.engine.close(crate::book::PATIENCE);
    let rival = world.sim.foreign_open_group(world.number_of("0000:00:06.0")).unwrap();
    let report = world.restart();
    assert_eq!(report.lost, [id("r-1")]);
    assert_eq!(world.state("r-1"), ReservationState::Lost);
    let detail = world.book.snapshot().state.reservation(&id("r-1")).unwrap().detail.clone();
    assert!(detail.contains(&rival.pid().to_string()), "{detail}");
    drop(rival);
    release(&world, "r-1");
    assert_eq!(world.state("r-1"), ReservationState::Released);
    world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_claim_lives_on_with_its_holder() {
    for backend in [Backend::Iommufd, Backend::Type1] {
        let mut world = World::new();
        let ask = nic(backend).delivery(Delivery::Bound);
        reserve(&world, &ask);
        attach(&world, "r-1");
        let holder = world.sim.foreign("driver");
        world.hand_to(&holder, "r-1");
        let report = world.restart();
        assert_eq!(report.adopted, [id("r-1")], "{backend}");
        world.check();
        assert!(world.state("r-1") != ReservationState::Reserved);
        drop(holder);
        world.book.wait_for("the end of the claims", |state| {
            state.reservation(&id("r-1")).unwrap().claims == 0
        });
        world.engine.close(crate::book::PATIENCE);
        world.restart();
        world.check();
        world.give_all_back();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn siblings_of_one_group_share_its_hold_after_a_restart() {
    for backend in [Backend::Iommufd, Backend::Type1] {
        let mut world = World::new();
        let first = Ask::new("r-1", Policy::Shared, &["0000:02:01.0"]).backend(backend);
        let second =
            Ask::new("r-2", Policy::Shared, &["0000:02:02.0"]).backend(backend).domain("d-r-1");
        reserve(&world, &first);
        reserve(&world, &second);
        for _ in 0..20 {
            let report = world.restart();
            assert_eq!((report.held.len(), report.lost.len()), (2, 0), "{backend}: {report:?}");
        }
        attach(&world, "r-1");
        attach(&world, "r-2");
        world.check();
        world.give_all_back();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_kept_a_release_from_ending_is_watched_after_a_restart() {
    for backend in [Backend::Iommufd, Backend::Type1] {
        let mut world = World::new();
        reserve(&world, &nic(backend).delivery(Delivery::Bound));
        attach(&world, "r-1");
        let holder = world.sim.foreign("driver");
        world.hand_to(&holder, "r-1");
        world.crash.arm(1);
        let command = Command::Release { order: Order::new("r-1"), force: false };
        order(&world, &command);
        assert!(world.crash.happened(), "{backend}");
        let report = world.restart();
        assert_eq!(report.finished.len(), 1, "{backend}: {report:?}");
        assert!(world.book.snapshot().state.reservation(&id("r-1")).unwrap().claims > 0);
        drop(holder);
        world.book.wait_for("the end of the claims", |state| {
            state.reservation(&id("r-1")).unwrap().claims == 0
        });
        world.give_all_back();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_wedged_over_a_restart() {
    let mut world = World::new();
    let device: DeviceId = "0000:02:01.0".into();
    let wedge = Command::Wedge { device: device.clone(), why: "unbind hangs".to_owned() };
    world.book.command(wedge, "test").unwrap();
    let ask = Ask::new("r-1", Policy::Group, &["0000:02:01.0"]);
    assert_eq!(world.reserve(&ask).unwrap_err().reason.name(), "WEDGED");
    world.restart();
    reserve(&world, &ask);
    world.give_all_back();
    world.check_given_back();
}
