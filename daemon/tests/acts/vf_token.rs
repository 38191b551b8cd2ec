//! A physical function on vfio-pci: its virtual ones are opened by the secret that is kept, by the
//! daemon and by who opens by itself.

use berth_handover::Client;
use berth_host::{Act, Host as _, sim::SimHost};
use berth_ownership::{Backend, Delivery, Policy, Reason};
use berth_uapi::VfToken;
use berthd::acts::Records as _;
use rustix::io::Errno;

use crate::{
    handed::BOTH,
    handover::{client, desk_on},
    world::{Ask, World, at, myself},
};

const PF: &str = "0000:3b:00.0";
const VF: &str = "0000:3b:01.0";
const NEXT: &str = "0000:3b:01.1";
const OTHER: VfToken = VfToken([0xa5; 16]);

/// A machine on which vfio-pci made the virtual functions.
fn machine() -> SimHost {
    let sim = SimHost::builtin("sriov-nic").unwrap();
    let device = at(PF);
    sim.let_vfio_make_functions();
    for act in [
        Act::Sriov { device, count: 0, autoprobe: false },
        Act::Unbind { device },
        Act::Bind { device, driver: "vfio-pci".to_owned() },
        Act::Sriov { device, count: 4, autoprobe: false },
    ] {
        sim.perform(&act).unwrap();
    }
    sim
}

fn world() -> World {
    World::on(machine())
}

fn kept(world: &World) -> VfToken {
    world.book.vf_token(at(PF)).unwrap()
}

fn ask(device: &'static [&'static str], delivery: Delivery, backend: Backend) -> Ask {
    let name = if device == [PF] { "r-pf" } else { "r-1" };
    Ask::new(name, Policy::Exclusive, device).delivery(delivery).backend(backend)
}

/// What the kernel says to somebody else who opens a virtual function that nobody has.
fn next_opens(world: &World, token: Option<VfToken>) -> Result<(), Errno> {
    let bind = Act::Bind { device: at(NEXT), driver: "vfio-pci".to_owned() };
    world.sim.perform(&bind).unwrap();
    world.sim.foreign("stranger").open_by_group_showing(at(NEXT), token)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_opens_virtual_functions_by_a_token_of_its_own() {
    for backend in BOTH {
        let mut world = world();
        world.reserve(&ask(&[VF], Delivery::Held, backend)).unwrap();
        world.attach("r-1").unwrap();
        let token = kept(&world);
        assert_eq!(next_opens(&world, None), Err(Errno::ACCESS), "{backend}");
        assert_eq!(next_opens(&world, Some(OTHER)), Err(Errno::ACCESS), "{backend}");
        assert_eq!(next_opens(&world, Some(token)), Ok(()), "{backend}");
        // While one is in use nobody has the physical one without it, so that it can't be changed.
        let stranger = world.sim.foreign("stranger");
        assert_eq!(stranger.open_by_group(at(PF)), Err(Errno::ACCESS), "{backend}");
        world.restart();
        world.attach("r-1").unwrap();
        world.check();
        // What was bound for the stranger is no business of the daemon's.
        world.sim.perform(&Act::Unbind { device: at(NEXT) }).unwrap();
        world.give_all_back();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_by_itself_is_given_the_token_and_nobody_else_is() {
    for (delivery, backend) in [
        (Delivery::Unbound, Backend::Iommufd),
        (Delivery::Node, Backend::Iommufd),
        (Delivery::Node, Backend::Type1),
    ] {
        let desk = desk_on(world());
        desk.world.reserve(&ask(&[VF], delivery, backend)).unwrap();
        let token = kept(&desk.world);
        // It was never opened by the daemon, but is by what its holder was given.
        let fetch = |client: Client| client.fetch("r-1", 0).unwrap();
        let fetched = client(&desk.path, fetch).await;
        let given = fetched.vf_token(VF).map(|token| token.as_str().to_owned());
        assert_eq!(given, Some(token.text()), "{delivery} on {backend}");
        assert!(!format!("{:?}", fetched.reply).contains(&given.unwrap()));
        // The same process may fetch again.
        let again = client(&desk.path, fetch).await;
        assert!(again.vf_token(VF).is_some() && again.vf_token(PF).is_none());
        // The kernel has that token although nobody has opened anything yet.
        let opens = |token| desk.world.sim.foreign("vmm").open_by_group_showing(at(VF), token);
        assert_eq!(opens(None), Err(Errno::ACCESS), "{delivery} on {backend}");
        assert_eq!(opens(Some(token)), Ok(()), "{delivery} on {backend}");
    }
    for delivery in [Delivery::Held, Delivery::Bound] {
        let desk = desk_on(world());
        desk.world.reserve(&ask(&[VF], delivery, Backend::Iommufd)).unwrap();
        desk.world.attach("r-1").unwrap();
        let fetched = client(&desk.path, |client| client.fetch("r-1", 0).unwrap()).await;
        assert_eq!(fetched.reply.vf_tokens, None, "{delivery}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_host_driver_there_is_none() {
    let desk = desk_on(World::on(SimHost::builtin("sriov-nic").unwrap()));
    desk.world.reserve(&ask(&[VF], Delivery::Unbound, Backend::Iommufd).take()).unwrap();
    let fetched = client(&desk.path, |client| client.fetch("r-1", 0).unwrap()).await;
    assert_eq!(fetched.reply.vf_tokens, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_token_is_told_with_whose_it_is_and_replaced_once_nobody_has_the_pf() {
    for backend in BOTH {
        let world = world();
        world.reserve(&ask(&[VF], Delivery::Held, backend)).unwrap();
        let rival = world.sim.foreign("rival");
        rival.open_by_group(at(PF)).unwrap();
        world.sim.set_vf_token(at(PF), OTHER).unwrap();
        let refused = world.attach("r-1").unwrap_err();
        assert_eq!(refused.reason, Reason::KernelRefused);
        assert_eq!(refused.errno, Errno::ACCESS.raw_os_error(), "{backend}");
        for word in [VF, PF, "vfio-pci", "VF token"] {
            assert!(refused.message.contains(word), "{word}: {}", refused.message);
        }
        assert!(refused.resolve.iter().any(|way| way.contains(PF)), "{:?}", refused.resolve);
        assert!(!refused.message.contains(&kept(&world).text()), "{}", refused.message);
        drop(rival);
        world.attach("r-1").unwrap();
        world.check();
        world.give_all_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_the_holder_could_not_use_is_refused_and_the_hold_stands() {
    let world = world();
    world.reserve(&ask(&[VF], Delivery::Node, Backend::Type1)).unwrap();
    let rival = world.sim.foreign("rival");
    rival.open_by_group(at(PF)).unwrap();
    world.sim.set_vf_token(at(PF), OTHER).unwrap();
    let refused = world.hand_out_to(myself(), "r-1").unwrap_err();
    assert_eq!(refused.errno, Errno::ACCESS.raw_os_error(), "{}", refused.message);
    let snapshot = world.book.snapshot();
    let group = snapshot.state.device(&VF.into()).unwrap().group.clone();
    let number = snapshot.group_number(&group).unwrap();
    assert!(!world.sim.probe_free(number).unwrap(), "the hold is there again");
    drop(rival);
    world.hand_out_to(myself(), "r-1").unwrap();
    world.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reserved_pf_has_the_token_before_anybody_has_it() {
    // Held, and so opened by nobody.
    let world = world();
    world.reserve(&ask(&[PF], Delivery::Held, Backend::Iommufd)).unwrap();
    world.reserve(&ask(&[VF], Delivery::Held, Backend::Iommufd)).unwrap();
    world.attach("r-1").unwrap();
    // Attached with the virtual one in use, which takes the token.
    world.attach("r-pf").unwrap();
    world.check();
    world.give_all_back();
    // Handed over to who opens it by itself.
    let desk = desk_on(self::world());
    desk.world.reserve(&ask(&[PF], Delivery::Node, Backend::Type1)).unwrap();
    let fetched = client(&desk.path, |client| client.fetch("r-pf", 0).unwrap()).await;
    let given = fetched.vf_token(PF).map(|token| token.as_str().to_owned());
    assert_eq!(given, Some(kept(&desk.world).text()));
    let holder = desk.world.sim.foreign("driver");
    holder.open_by_group(at(PF)).unwrap();
    desk.world.reserve(&ask(&[VF], Delivery::Held, Backend::Type1)).unwrap();
    desk.world.attach("r-1").unwrap();
    desk.world.check();
}
