//! Every call of the host fails once, at every step: each ends as a clean refusal, with the
//! machine at its baseline or the device quarantined.

use std::time::Duration;

use berth_host::{
    Host, PciAddress,
    sim::{Fault, SimHost, Site, Topology},
};
use berth_ownership::{Backend, Command, Condition, Order, Policy, Reason, ReservationState};
use berthd::acts::Records;
use rustix::io::Errno;

use crate::world::{Ask, World, at, id};

const SITES: &[Site] = &[
    Site::OpenContext,
    Site::NewDomain,
    Site::OpenGroup,
    Site::SetContainer,
    Site::SetIommu,
    Site::OpenDevice,
    Site::BindIommufd,
    Site::Attach,
    Site::Detach,
    Site::Bind,
    Site::Unbind,
    Site::Restore,
    Site::Reset,
    Site::ReadConfig,
    Site::WhoHolds,
];

fn life(world: &World, backend: Backend) {
    let ask = Ask::new("r-1", Policy::Group, &["0000:05:00.0"]).backend(backend).take();
    let _ = world.book.order(&Command::Reserve(Box::new(world.request(&ask))));
    world.book.settled();
    if backend == Backend::Iommufd {
        let domain = Command::CreateDomain { domain: "d-2".into(), context: "c-r-1".into() };
        let _ = world.book.order(&domain);
    }
    for command in [
        Command::Attach { order: Order::new("r-1"), domain: None },
        Command::Replace { order: Order::new("r-1"), domain: "d-2".into() },
        Command::Detach { order: Order::new("r-1") },
        Command::Attach { order: Order::new("r-1"), domain: None },
        Command::Release { order: Order::new("r-1"), force: false },
    ] {
        // What an earlier fault made impossible is refused, and that is fine.
        let _ = world.book.order(&command);
        world.book.settled();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_every_step_is_undone_or_told() {
    let mut failed = 0;
    for backend in [Backend::Iommufd, Backend::Type1] {
        for site in SITES {
            for errno in [Errno::IO, Errno::PERM, Errno::NODEV] {
                let mut skip = 0;
                while fails(backend, *site, errno, skip) {
                    failed += 1;
                    skip += 1;
                }
            }
        }
    }
    println!("{failed} faults");
    assert!(failed > 60, "{failed}");
}

/// False once there is no call left to fail.
fn fails(backend: Backend, site: Site, errno: Errno, skip: u32) -> bool {
    let world = World::new();
    let calls = Fault::at(site).errno(errno).skip(skip);
    world.sim.fault(calls);
    life(&world, backend);
    let place = format!("{backend} {site:?} {errno:?} after {skip}");
    let reached = world.book.failure(&id("r-1")).is_some();
    let gone = world
        .book
        .snapshot()
        .state
        .reservation(&id("r-1"))
        .is_none_or(|record| record.state == ReservationState::Released);
    world.sim.clear_faults();
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.check();
        if let Some(failure) = world.book.failure(&id("r-1")) {
            assert_ne!(failure.reason, Reason::Internal, "{}", failure.message);
            assert_ne!(failure.reason, Reason::PermissionDenied, "{}", failure.message);
            assert_ne!(failure.errno, 0, "{}", failure.message);
            assert!(!failure.message.is_empty() && !failure.resolve.is_empty());
        }
        if !gone {
            world.give_all_back();
        }
        world.check_given_back();
    }));
    assert!(seen.is_ok(), "{place}: {:?}", world.book.failure(&id("r-1")).map(|f| f.message));
    let quarantined = world
        .book
        .snapshot()
        .state
        .devices()
        .any(|device| device.condition() == Condition::Quarantined);
    reached || quarantined
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_reset_quarantines() {
    let world = World::new();
    world.reserve(&Ask::new("r-1", Policy::Exclusive, &["0000:00:06.0"])).unwrap();
    world.attach("r-1").unwrap();
    world.sim.fault(Fault::at(Site::Reset).errno(Errno::IO));
    world.release("r-1").unwrap();
    let state = world.book.snapshot().state.clone();
    let device = state.device(&"0000:00:06.0".into()).unwrap();
    assert_eq!(device.condition(), Condition::Quarantined);
    let again = world.reserve(&Ask::new("r-2", Policy::Exclusive, &["0000:00:06.0"]));
    assert_eq!(again.unwrap_err().reason, Reason::Quarantined);
    world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_replace_leaves_the_old_domain_attached() {
    let world = World::new();
    world.reserve(&Ask::new("r-1", Policy::Group, &["0000:02:01.0", "0000:02:02.0"])).unwrap();
    let domain = Command::CreateDomain { domain: "d-2".into(), context: "c-r-1".into() };
    world.book.order(&domain).unwrap();
    world.attach("r-1").unwrap();
    let number = world.number_of("0000:02:01.0");
    let before = format!("{:?}", world.sim.ownership(number).unwrap());
    for skip in 0..2 {
        world.sim.fault(Fault::at(Site::Attach).errno(Errno::NOMEM).skip(skip));
        let replace = Command::Replace { order: Order::new("r-1"), domain: "d-2".into() };
        let refusal = world.book.run(&replace, &id("r-1")).unwrap_err();
        assert_eq!(refusal.reason, Reason::MemlockLimit);
        // The kernel makes the domain's page table anew when it comes back, so its id may differ.
        let now = format!("{:?}", world.sim.ownership(number).unwrap());
        assert!(skip == 1 || now == before, "{now}");
        assert!(now.contains("Paging"), "{now}");
        world.check();
    }
    world.give_all_back();
    world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cause_of_an_eperm_is_named() {
    let world = World::new();
    world.reserve(&Ask::new("r-1", Policy::Exclusive, &["0000:00:06.0"])).unwrap();
    world.sim.fault(Fault::at(Site::BindIommufd).errno(Errno::PERM));
    let refusal = world.attach("r-1").unwrap_err();
    assert_eq!((refusal.reason, refusal.errno), (Reason::GroupNotViable, 1));
    let topology = Topology::builtin("small").unwrap();
    let unsafe_msi = topology.with_feature("interrupt_remapping", false).unwrap();
    for backend in [Backend::Iommufd, Backend::Type1] {
        let world = World::on(SimHost::from_topology(unsafe_msi.clone()));
        let ask = Ask::new("r-1", Policy::Exclusive, &["0000:00:06.0"]).backend(backend);
        world.reserve(&ask).unwrap();
        let refusal = world.attach("r-1").unwrap_err();
        assert_eq!((refusal.reason, refusal.errno), (Reason::MsiUnsafe, 1), "{backend}");
        assert!(!refusal.message.contains("permission denied"));
        world.give_all_back();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_in_the_way_is_named_with_its_pid() {
    let world = World::new();
    let address: PciAddress = at("0000:00:06.0");
    world.sim.host_driver_bind(address, "vfio-pci").ok();
    if world.sim.device(address).unwrap().driver.is_none() {
        let act = berth_host::Act::Bind { device: address, driver: "vfio-pci".to_owned() };
        world.sim.perform(&act).unwrap();
    }
    let rival = world.sim.foreign_bind(address).unwrap();
    let refusal =
        world.reserve(&Ask::new("r-1", Policy::Exclusive, &["0000:00:06.0"])).unwrap_err();
    assert_eq!(refusal.reason, Reason::ForeignOwner);
    assert!(refusal.message.contains(&rival.pid().to_string()), "{}", refusal.message);
    drop(rival);
    world.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_unbind_is_wedged_and_delays_nobody_else() {
    let topology = Topology::builtin("small").unwrap().with_helper_timeout_ms(50);
    let world = World::on(SimHost::from_topology(topology));
    world.sim.fault(Fault::at(Site::Unbind).device(at("0000:04:00.0")).hang());
    let stuck = Ask::new("r-1", Policy::Exclusive, &["0000:04:00.0"]).take();
    let refusal = world.reserve(&stuck).unwrap_err();
    assert_eq!(refusal.reason, Reason::Wedged);
    world.book.wait_for("the mark", |state| {
        state.device(&"0000:04:00.0".into()).unwrap().condition() == Condition::Wedged
    });
    world.reserve(&Ask::new("r-2", Policy::Exclusive, &["0000:00:06.0"])).unwrap();
    world.sim.clear_faults();
    world.book.wait_for("the end of the mark", |state| {
        state.device(&"0000:04:00.0".into()).unwrap().condition() != Condition::Wedged
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn stuck_kernel_work_is_named_while_others_go_on() {
    let mut world = World::new();
    world.engine_with(Duration::from_millis(100));
    world.reserve(&Ask::new("r-1", Policy::Exclusive, &["0000:00:06.0"])).unwrap();
    world.sim.fault(Fault::at(Site::Attach).device(at("0000:00:06.0")).hang());
    let attach = Command::Attach { order: Order::new("r-1"), domain: None };
    world.book.order(&attach).unwrap();
    world.book.wait_for("the mark", |state| {
        state.device(&"0000:00:06.0".into()).unwrap().condition() == Condition::Wedged
    });
    let other = Ask::new("r-2", Policy::Exclusive, &["0000:00:05.0"]);
    world.book.order(&Command::Reserve(Box::new(world.request(&other)))).unwrap();
    world.book.wait_for("the other reservation", |state| {
        state.reservation(&id("r-2")).unwrap().state == ReservationState::Reserved
    });
    assert_eq!(world.state("r-1"), ReservationState::Reserved);
    world.sim.clear_faults();
    world.book.settled();
    assert_eq!(world.state("r-1"), ReservationState::Held);
    world.book.wait_for("the end of the mark", |state| {
        state.device(&"0000:00:06.0".into()).unwrap().condition() == Condition::Ok
    });
}
