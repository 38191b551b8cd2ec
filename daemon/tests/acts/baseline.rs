//! What a device had before comes back, whatever it was; where it can't, that is told.

use berth_host::{
    Act, Host as _, ResetOutcome,
    sim::{Fault, Site},
};
use berth_ownership::{Command, Condition, DeviceId, Order, Policy, Reason};
use berthd::acts::Records as _;
use rustix::io::Errno;

use crate::world::{Ask, World, at, id};

const DEVICE: &str = "0000:00:06.0";
const NO_RESET: &str = "0000:00:05.0";
const NIC: &str = "0000:04:00.0";

fn set(world: &World, device: &str, driver: Option<&str>, over: Option<&str>) {
    let act = Act::Restore {
        device: at(device),
        driver: driver.map(str::to_owned),
        driver_override: over.map(str::to_owned),
    };
    world.sim.perform(&act).unwrap();
}

fn has(world: &World, device: &str) -> (Option<String>, Option<String>) {
    let facts = world.sim.device(at(device)).unwrap();
    (facts.driver, facts.driver_override)
}

fn mark(world: &World, device: &str) -> Option<String> {
    let snapshot = world.book.snapshot();
    let record = snapshot.state.device(&DeviceId::from(device)).unwrap();
    record.marks.get(&Condition::Quarantined).cloned()
}

fn live(world: &World, ask: &Ask) {
    world.reserve(ask).unwrap();
    world.attach(ask.name).unwrap();
    world.release(ask.name).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_baseline_comes_back() {
    let kinds = [
        (DEVICE, None, None),
        (DEVICE, None, Some("vfio-pci")),
        (DEVICE, None, Some("pci-stub")),
        (DEVICE, Some("vfio-pci"), None),
        (DEVICE, Some("vfio-pci"), Some("vfio-pci")),
        (DEVICE, Some("pci-stub"), Some("pci-stub")),
        (NIC, Some("e1000e"), None),
        (NIC, Some("e1000e"), Some("vfio-pci")),
        (NIC, Some("vfio-pci"), Some("vfio-pci")),
    ];
    for (device, driver, over) in kinds {
        let sim = berth_host::sim::SimHost::builtin("small").unwrap();
        let before = World::on(sim.clone());
        set(&before, device, driver, over);
        drop(before);
        let mut world = World::on(sim);
        world.book.look();
        let had = has(&world, device);
        assert_eq!((had.0.as_deref(), had.1.as_deref()), (driver, over));
        let devices: &[&str] = if device == NIC { &[NIC] } else { &[DEVICE] };
        live(&world, &Ask::new("r-1", Policy::Exclusive, devices).take());
        assert_eq!(has(&world, device), had, "after a life");
        world.reserve(&Ask::new("r-2", Policy::Exclusive, devices).take()).unwrap();
        world.restart();
        world.release("r-2").unwrap();
        assert_eq!(has(&world, device), had, "after a restart with a hold");
        assert_eq!(mark(&world, device), None);
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_whose_module_is_gone_is_missed_and_told() {
    let world = World::new();
    world.reserve(&Ask::new("r-1", Policy::Exclusive, &[NIC]).take()).unwrap();
    world.attach("r-1").unwrap();
    world.sim.set_unloaded("e1000e", true);
    world.release("r-1").unwrap();
    let why = mark(&world, NIC).expect("quarantined");
    assert!(why.contains("driver could not be restored"), "{why}");
    assert!(why.contains("e1000e") && why.contains("modprobe"), "{why}");
    assert_eq!(has(&world, NIC), (None, None), "the override is as it was");
    let again = world.reserve(&Ask::new("r-2", Policy::Exclusive, &[NIC])).unwrap_err();
    assert_eq!(again.reason, Reason::Quarantined);
    assert_eq!(again.resolve, [format!("berth quarantine clear {NIC} --reason TEXT")]);
    world.check();
    // Its baseline isn't forgotten, and comes back once that can be.
    world.sim.set_unloaded("e1000e", false);
    let clear = Command::ClearQuarantine { device: NIC.into(), why: "loaded again".to_owned() };
    world.book.order(&clear).unwrap();
    live(&world, &Ask::new("r-3", Policy::Exclusive, &[NIC]));
    assert_eq!(has(&world, NIC), (Some("e1000e".to_owned()), None));
    world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_a_reset_is_given_back_silent_or_not_at_all() {
    let world = World::new();
    live(&world, &Ask::new("r-1", Policy::Exclusive, &[NO_RESET]));
    assert_eq!(mark(&world, NO_RESET), None);
    let snapshot = world.book.snapshot();
    let record = snapshot.state.device(&NO_RESET.into()).unwrap();
    assert_eq!(record.only_label, Some("tenant".into()));
    world.sim.keep_bus_master(at(NO_RESET));
    live(&world, &Ask::new("r-2", Policy::Exclusive, &[NO_RESET]));
    let why = mark(&world, NO_RESET).expect("quarantined");
    assert!(why.contains("bus master is still on"), "{why}");

    // The same where a host driver comes back, which is a bus master by right.
    let world = World::new();
    let not_possible = ResetOutcome::NotPossible { note: String::new() };
    world.sim.set_reset(at(NIC), &not_possible).unwrap();
    live(&world, &Ask::new("r-1", Policy::Exclusive, &[NIC]).take());
    assert_eq!((mark(&world, NIC), has(&world, NIC).0.as_deref()), (None, Some("e1000e")));
    world.sim.keep_bus_master(at(NIC));
    live(&world, &Ask::new("r-2", Policy::Exclusive, &[NIC]).take());
    assert!(mark(&world, NIC).is_some_and(|why| why.contains("bus master is still on")));

    // And where nobody can tell, as its configuration space can't be read.
    let world = World::new();
    world.reserve(&Ask::new("r-1", Policy::Exclusive, &[NO_RESET])).unwrap();
    world.attach("r-1").unwrap();
    world.sim.fault(Fault::at(Site::ReadConfig).errno(Errno::IO));
    world
        .book
        .run(&Command::Release { order: Order::new("r-1"), force: false }, &id("r-1"))
        .unwrap();
    assert!(mark(&world, NO_RESET).is_some_and(|why| why.contains("reset failed")));
}
