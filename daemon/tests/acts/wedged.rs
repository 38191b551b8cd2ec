//! An unbind that waits for whoever has the device open: who that is, what goes on, when it is over.

use berth_host::{
    Act, Host as _,
    sim::{SimHost, Topology},
};
use berth_ownership::{Command, Condition, Policy, Reason, State};
use berthd::acts::Records as _;

use crate::world::{Ask, World, at};

const DEVICE: &str = "0000:04:00.0";

fn wedge(state: &State) -> Option<&str> {
    let device = state.device(&DEVICE.into()).unwrap();
    device.marks.get(&Condition::Wedged).map(String::as_str)
}

/// It is told by name and number, also to those who ask later, and also over a restart; others go on;
/// it is over when the device is closed.
#[tokio::test(flavor = "multi_thread")]
async fn an_unbind_that_waits_names_who_has_the_device_open() {
    for restarts in [false, true] {
        let topology = Topology::builtin("small").unwrap().with_helper_timeout_ms(50);
        let mut world = World::on(SimHost::from_topology(topology));
        world.sim.host_driver_unbind(at(DEVICE)).unwrap();
        let bind = Act::Bind { device: at(DEVICE), driver: "vfio-pci".to_owned() };
        world.sim.perform(&bind).unwrap();
        world.book.look();
        let rival = world.sim.foreign_bind(at(DEVICE)).unwrap();
        let who = format!("rival ({})", rival.pid());
        let driver = Some("e1000e".to_owned());
        world.book.order(&Command::KernelDmaSet { device: DEVICE.into(), driver }).unwrap();
        world.book.wait_for("the mark by name", |state| {
            wedge(state).is_some_and(|why| why.contains(&who))
        });
        world.book.settled();
        if restarts {
            world.restart();
            let snapshot = world.book.snapshot();
            let why = wedge(&snapshot.state).expect("it hangs still");
            assert_eq!(why.matches(&who).count(), 1, "{why}");
        }
        let ask = Ask::new("r-1", Policy::Exclusive, &[DEVICE]).take();
        let refusal = world.reserve(&ask).unwrap_err();
        assert_eq!(refusal.reason, Reason::Wedged);
        assert!(format!("{refusal:?}").contains(&who), "{refusal:?}");
        world.reserve(&Ask::new("r-2", Policy::Exclusive, &["0000:00:06.0"])).unwrap();
        world.release("r-2").unwrap();
        assert!(wedge(&world.book.snapshot().state).is_some(), "{restarts}");

        drop(rival);
        world.book.wait_for("the end of the mark", |state| wedge(state).is_none());
        assert_eq!(world.sim.device(at(DEVICE)).unwrap().driver.as_deref(), Some("e1000e"));
        world.reserve(&ask).unwrap();
        world.release("r-1").unwrap();
        world.check_given_back();
    }
}
