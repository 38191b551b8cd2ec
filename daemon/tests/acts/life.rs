//! The whole life of reservations under each policy, on both back ends.

use berth_host::{Host, sim::Ownership as Kernel};
use berth_ownership::{
    Backend, Command, Delivery, Order, Ownership, Policy, Reason, ReservationState, ResetOutcome,
};

use crate::world::{Ask, World, at, id};

const BACKENDS: [Backend; 2] = [Backend::Iommufd, Backend::Type1];

#[tokio::test(flavor = "multi_thread")]
async fn exclusive_from_reserve_to_release() {
    for backend in BACKENDS {
        for delivery in [Delivery::Held, Delivery::Bound] {
            let world = World::new();
            let ask = Ask::new("r-1", Policy::Exclusive, &["0000:00:06.0"])
                .backend(backend)
                .delivery(delivery);
            world.reserve(&ask).unwrap();
            assert_eq!(world.state("r-1"), ReservationState::Reserved);
            assert_eq!(world.ownership("0000:00:06.0"), Ownership::Free);
            world.check();
            world.attach("r-1").unwrap();
            assert_eq!(world.state("r-1"), ReservationState::Held);
            assert_eq!(world.ownership("0000:00:06.0").owner_cnt(), 1);
            world.check();
            world.detach("r-1").unwrap();
            assert_eq!(world.state("r-1"), ReservationState::Reserved);
            world.check();
            world.attach("r-1").unwrap();
            world.release("r-1").unwrap();
            let back = world.book.given_back(&id("r-1"));
            assert_eq!(back[0].reset, ResetOutcome::Verified, "{backend} {delivery}");
            assert_eq!(back[0].reset_method, "flr");
            assert!(back[0].baseline_restored);
            world.check_given_back();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_a_reset_is_told_as_that() {
    let world = World::new();
    world.reserve(&Ask::new("r-1", Policy::Exclusive, &["0000:00:05.0"])).unwrap();
    world.attach("r-1").unwrap();
    world.release("r-1").unwrap();
    let back = world.book.given_back(&id("r-1"));
    assert_eq!(back[0].reset, ResetOutcome::NotPossible);
    assert!(back[0].note.contains("bus master is off"), "{}", back[0].note);
    world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_alone_needs_no_reset_and_keeps_rivals_out() {
    for backend in BACKENDS {
        let world = World::new();
        let ask = Ask::new("r-1", Policy::Group, &["0000:05:00.0"]).backend(backend).take();
        world.reserve(&ask).unwrap();
        let sibling = world.sim.host_driver_bind(at("0000:05:00.1"), "e1000");
        assert_eq!(sibling, Err(rustix::io::Errno::BUSY));
        assert!(world.sim.foreign_bind(at("0000:05:00.0")).is_err());
        world.check();
        world.release("r-1").unwrap();
        let back = world.book.given_back(&id("r-1"));
        assert!(back.iter().all(|device| device.reset == ResetOutcome::NotNeeded), "{back:?}");
        assert_eq!(world.sim.device(at("0000:05:00.1")).unwrap().driver.as_deref(), Some("e1000"));
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_joins_the_same_domain_and_the_last_frees_the_group() {
    for backend in BACKENDS {
        let world = World::new();
        let first = Ask::new("r-1", Policy::Shared, &["0000:02:01.0"]).backend(backend);
        let second =
            Ask::new("r-2", Policy::Shared, &["0000:02:02.0"]).backend(backend).domain("d-r-1");
        let other = Ask::new("r-3", Policy::Shared, &["0000:02:02.0"]).backend(backend);
        world.reserve(&first).unwrap();
        world.attach("r-1").unwrap();
        let refusal = world.reserve(&other).unwrap_err();
        assert_eq!(refusal.reason, Reason::DomainMismatch);
        world.reserve(&second).unwrap();
        world.attach("r-2").unwrap();
        assert_eq!(world.ownership("0000:02:01.0").owner_cnt(), 2);
        world.check();
        world.release("r-1").unwrap();
        assert_eq!(world.ownership("0000:02:01.0").owner_cnt(), 1);
        world.check();
        world.detach("r-2").unwrap();
        world.check();
        world.release("r-2").unwrap();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn group_attaches_replaces_and_blocks() {
    let world = World::new();
    world.reserve(&Ask::new("r-1", Policy::Group, &["0000:02:01.0", "0000:02:02.0"])).unwrap();
    world
        .book
        .order(&Command::CreateDomain { domain: "d-2".into(), context: "c-r-1".into() })
        .unwrap();
    world.attach("r-1").unwrap();
    assert_eq!(world.ownership("0000:02:01.0").owner_cnt(), 2);
    let replace = Command::Replace { order: Order::new("r-1"), domain: "d-2".into() };
    world.book.run(&replace, &id("r-1")).unwrap();
    world.check();
    world.detach("r-1").unwrap();
    let number = world.number_of("0000:02:01.0");
    let kernel: Kernel = world.sim.ownership(number).unwrap();
    assert!(format!("{kernel:?}").contains("Blocking"), "{kernel:?}");
    assert_eq!(world.state("r-1"), ReservationState::Held);
    world.check();
    world.attach("r-1").unwrap();
    world.release("r-1").unwrap();
    world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_token_joins_a_group() {
    for backend in BACKENDS {
        let world = World::new();
        let first = Ask::new("r-1", Policy::Group, &["0000:02:01.0"]).backend(backend);
        let second = Ask::new("r-2", Policy::Group, &["0000:02:02.0"]).backend(backend).join("r-1");
        let rival = Ask::new("r-3", Policy::Group, &["0000:02:02.0"]).backend(backend);
        world.reserve(&first).unwrap();
        world.attach("r-1").unwrap();
        assert_eq!(world.reserve(&rival).unwrap_err().reason, Reason::GroupOwned);
        world.reserve(&second).unwrap();
        world.attach("r-2").unwrap();
        world.check();
        world.release("r-2").unwrap();
        world.check();
        world.release("r-1").unwrap();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nic_is_taken_from_the_host_and_comes_back() {
    for backend in BACKENDS {
        let world = World::new();
        let ask = Ask::new("r-1", Policy::Exclusive, &["0000:04:00.0"]).backend(backend);
        assert_eq!(world.reserve(&ask).unwrap_err().reason, Reason::KernelDma);
        world.reserve(&ask.take()).unwrap();
        world.attach("r-1").unwrap();
        world.check();
        world.release("r-1").unwrap();
        let driver = world.sim.device(at("0000:04:00.0")).unwrap().driver;
        assert_eq!(driver.as_deref(), Some("e1000e"));
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_dma_is_released_on_purpose_and_back_at_the_end() {
    let world = World::new();
    let device = "0000:04:00.0";
    let release = Command::KernelDmaRelease { device: device.into(), host_uses_it_anyway: false };
    world.book.order(&release).unwrap();
    world.book.settled();
    assert_eq!(world.sim.device(at(device)).unwrap().driver, None);
    world.reserve(&Ask::new("r-1", Policy::Exclusive, &["0000:04:00.0"])).unwrap();
    world.attach("r-1").unwrap();
    world.release("r-1").unwrap();
    world.check_given_back();
    assert!(world.book.baselines().is_empty());
    world.book.order(&release).unwrap();
    world.book.settled();
    let set = Command::KernelDmaSet { device: device.into(), driver: None };
    world.book.order(&set).unwrap();
    world.book.settled();
    assert_eq!(world.sim.device(at(device)).unwrap().driver.as_deref(), Some("e1000e"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_processes_keep_is_not_waited_for() {
    let world = World::new();
    let device = "0000:04:00.0";
    // They come after the last look, so that the record doesn't know of them.
    let qemu = world.sim.foreign("qemu");
    qemu.open_vhost(at(device)).unwrap();
    let named = format!("qemu ({})", qemu.pid());
    let ask = Ask::new("r-1", Policy::Exclusive, &["0000:04:00.0"]).take();
    let refusal = world.reserve(&ask).unwrap_err();
    assert_eq!(refusal.reason, Reason::KernelDma);
    assert_eq!(refusal.blockers[0].processes, [named.as_str()]);
    assert_eq!(refusal.resolve, [format!("first end {named}")]);
    let release = Command::KernelDmaRelease { device: device.into(), host_uses_it_anyway: false };
    world.book.order(&release).unwrap();
    world.book.settled();
    assert_eq!(world.sim.device(at(device)).unwrap().driver.as_deref(), Some("e1000e"));
    assert!(world.book.baselines().is_empty(), "nothing was touched");
    qemu.close_all();
    let again = Ask { name: "r-2", ..ask };
    world.reserve(&again).unwrap();
    world.release("r-2").unwrap();
    world.check_given_back();
}
