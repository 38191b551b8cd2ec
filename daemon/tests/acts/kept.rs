//! A store of file descriptors, as a service manager has it, and the daemon over restarts with it.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
};

use berth_handover::Client;
use berth_host::{BackendKind, DomainHandle, Host as _};
use berth_ownership::{Backend, Command, Delivery, Order, Policy, ReservationState};
use berthd::{
    acts::Records as _,
    fdstore::{FdStore, KeptFd},
};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::{
    book::PATIENCE,
    crash::Crash,
    handover::{Desk, client, desk_on},
    world::{Ask, World, at, id},
};

const DEVICE: &str = "0000:00:06.0";
const PAIR: [&str; 2] = ["0000:02:01.0", "0000:02:02.0"];
const IOVA: u64 = 0x10_0000;

/// Keeps descriptors in this process. A daemon that crashed says nothing to it any more.
#[derive(Debug, Default)]
pub struct MemoryStore {
    fds: Mutex<BTreeMap<String, OwnedFd>>,
    crash: Arc<Crash>,
}

impl MemoryStore {
    pub fn new(crash: &Arc<Crash>) -> Arc<Self> {
        Arc::new(Self { fds: Mutex::default(), crash: Arc::clone(crash) })
    }

    /// What the next daemon is passed. The store has it all the same.
    pub fn passed(&self) -> Vec<KeptFd> {
        let fds = self.fds.lock().unwrap();
        let passed = |(name, fd): (&String, &OwnedFd)| KeptFd {
            name: name.clone(),
            fd: fd.try_clone().unwrap(),
        };
        fds.iter().map(passed).collect()
    }

    pub fn names(&self) -> Vec<String> {
        self.fds.lock().unwrap().keys().cloned().collect()
    }
}

impl FdStore for MemoryStore {
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.crash.point("before storing");
        assert!(name.is_ascii() && name.len() < 256 && !name.contains(':'), "{name}");
        let before = self.fds.lock().unwrap().insert(name.to_owned(), fd.try_clone_to_owned()?);
        assert!(before.is_none(), "{name} is there twice");
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if !self.crash.happened() {
            self.fds.lock().unwrap().remove(name);
        }
        Ok(())
    }

    fn settle(&self) -> io::Result<()> {
        Ok(())
    }

    fn room(&self) -> Option<usize> {
        None
    }
}

fn one(backend: Backend, delivery: Delivery) -> Ask {
    let mut ask = Ask::new("r-1", Policy::Exclusive, &[DEVICE]).backend(backend).delivery(delivery);
    ask.memory_bytes = 1 << 20;
    ask
}

fn sealed(bytes: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("client", flags).unwrap();
    rustix::fs::ftruncate(&memory, bytes).unwrap();
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    memory
}

/// What the simulated device reaches, in the domain of the context that left last.
fn reaches(desk: &Desk, iova: u64) -> bool {
    let store = desk.world.store.as_ref().unwrap();
    let context = store.passed().into_iter().find(|kept| kept.name.starts_with("berth.context."));
    let Some(KeptFd { fd, .. }) = context else { return false };
    for (backend, domain) in [(BackendKind::Iommufd, 1), (BackendKind::Type1, 0)] {
        let again = fd.as_fd().try_clone_to_owned().unwrap();
        if let Ok(context) = desk.world.sim.adopt_context(backend, again) {
            return desk.world.sim.reaches(&*context, DomainHandle(domain), iova);
        }
    }
    false
}

async fn register(desk: &Desk, iova: u64) {
    let registered = client(&desk.path, move |client: Client| {
        client.register("r-1", sealed(0x4000), 0, 0x4000, Some(iova))
    });
    assert_eq!(registered.await.unwrap(), iova);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_registrations_go_on_over_restarts() {
    for (backend, delivery) in [
        (Backend::Iommufd, Delivery::Held),
        (Backend::Iommufd, Delivery::Bound),
        (Backend::Type1, Delivery::Held),
        (Backend::Type1, Delivery::Bound),
    ] {
        let mut desk = desk_on(World::stored());
        desk.world.reserve(&one(backend, delivery)).unwrap();
        desk.world.attach("r-1").unwrap();
        register(&desk, IOVA).await;
        for round in 0..5 {
            assert!(reaches(&desk, IOVA), "{backend} {delivery} {round}");
            let report = desk.restart();
            assert_eq!(report.adopted, [id("r-1")], "{backend} {delivery} {round}");
            assert_eq!((report.ended.len(), report.lost.len()), (0, 0));
            assert_eq!(desk.world.state("r-1"), ReservationState::Held);
            desk.world.check();
            assert!(reaches(&desk, IOVA), "{backend} {delivery} {round}");
            // It is known, too: the same range is refused, and others join.
            let next = IOVA + 0x10_0000 * (round + 1);
            register(&desk, next).await;
            let again = client(&desk.path, |client: Client| {
                client.register("r-1", sealed(0x4000), 0, 0x4000, Some(IOVA))
            });
            assert!(again.await.is_err(), "{backend}: mapped twice");
            let gone =
                client(&desk.path, move |client: Client| client.unregister("r-1", next, 0x4000));
            assert_eq!(gone.await.unwrap(), 0x4000);
            assert!(!reaches(&desk, next));
        }
        let gone = client(&desk.path, |client: Client| client.unregister("r-1", IOVA, 0x4000));
        assert_eq!(gone.await.unwrap(), 0x4000);
        assert!(!reaches(&desk, IOVA));
        desk.world.detach("r-1").unwrap();
        desk.world.give_all_back();
        desk.world.check_given_back();
        assert_eq!(desk.world.store.as_ref().unwrap().names(), [""; 0], "{backend}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_one_domain_go_on_and_leave_one_by_one() {
    for backend in [Backend::Iommufd, Backend::Type1] {
        let mut world = World::stored();
        let first = Ask::new("r-1", Policy::Shared, &PAIR[..1]).backend(backend);
        let second = Ask::new("r-2", Policy::Shared, &PAIR[1..]).backend(backend).domain("d-r-1");
        world.reserve(&first).unwrap();
        world.attach("r-1").unwrap();
        world.reserve(&second).unwrap();
        world.attach("r-2").unwrap();
        let mut report = world.restart();
        report.adopted.sort();
        assert_eq!(report.adopted, [id("r-1"), id("r-2")], "{backend}");
        world.check();
        world.release("r-1").unwrap();
        let report = world.restart();
        assert_eq!(report.adopted, [id("r-2")], "{backend}");
        world.check();
        world.give_all_back();
        world.check_given_back();
        assert_eq!(world.store.as_ref().unwrap().names(), [""; 0], "{backend}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_moved_to_another_domain_after_a_restart() {
    let mut world = World::stored();
    world.reserve(&Ask::new("r-1", Policy::Group, &PAIR)).unwrap();
    let domain = Command::CreateDomain { domain: "d-2".into(), context: "c-r-1".into() };
    world.book.order(&domain).unwrap();
    world.attach("r-1").unwrap();
    world.restart();
    let replace =
        |domain: &str| Command::Replace { order: Order::new("r-1"), domain: domain.into() };
    world.book.run(&replace("d-2"), &id("r-1")).unwrap();
    assert_eq!(world.restart().adopted, [id("r-1")]);
    world.book.run(&replace("d-r-1"), &id("r-1")).unwrap();
    world.check();
    // Detached, the devices stay open: nobody gets in between.
    world.detach("r-1").unwrap();
    world.restart();
    world.check();
    world.attach("r-1").unwrap();
    world.give_all_back();
    world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_no_live_record_is_closed() {
    for backend in [Backend::Iommufd, Backend::Type1] {
        let mut world = World::stored();
        world.reserve(&one(backend, Delivery::Held)).unwrap();
        world.attach("r-1").unwrap();
        let store = Arc::clone(world.store.as_ref().unwrap());
        // Of a daemon before: nobody knows it any more.
        let strangers = [("berth.device.0000_00_05.0", 1), ("berth.note.c-old", 2), ("berth.x", 3)];
        for (name, bytes) in strangers {
            store.keep(name, sealed(bytes).as_fd()).unwrap();
        }
        let expected = store.names().len() - strangers.len();
        assert_eq!(world.restart().adopted, [id("r-1")]);
        assert_eq!(store.names().len(), expected, "{:?}", store.names());
        // The device's descriptor is another device's: it is not taken for this one.
        let name = format!("berth.device.{}", DEVICE.replace(':', "_"));
        store.remove(&name).unwrap();
        store.keep(&name, sealed(1).as_fd()).unwrap();
        let report = world.restart();
        assert_eq!(report.ended, [id("r-1")], "{backend}: {report:?}");
        assert!(!store.names().contains(&name));
        assert_eq!(world.state("r-1"), ReservationState::Reserved);
        let detail = world.book.snapshot().state.reservation(&id("r-1")).unwrap().detail.clone();
        assert_eq!(detail, "daemon restarted");
        world.check();
        world.give_all_back();
        world.check_given_back();
        assert_eq!(store.names(), [""; 0], "{backend}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_dies_while_there_is_no_daemon_is_noticed_by_the_next() {
    for (backend, delivery) in
        [(Backend::Iommufd, Delivery::Bound), (Backend::Type1, Delivery::Bound)]
    {
        let mut world = World::stored();
        world.reserve(&one(backend, delivery)).unwrap();
        world.attach("r-1").unwrap();
        let process = world.sim.foreign("driver");
        world.hand_to(&process, "r-1");
        world.engine.close(PATIENCE);
        drop(process);
        world.restart();
        assert_eq!(world.state("r-1"), ReservationState::Reserved, "{backend}");
        world.check();
        world.give_all_back();
        world.check_given_back();
        assert_eq!(world.store.as_ref().unwrap().names(), [""; 0], "{backend}");
    }
}

/// The context that was handed over to bind to is still the daemon's after a restart: it cuts the
/// memory off before it kills, and leaves the store with the claims.
#[tokio::test(flavor = "multi_thread")]
async fn the_context_of_an_unbound_hand_over_is_kept() {
    let mut world = World::stored();
    world.reserve(&one(Backend::Iommufd, Delivery::Unbound)).unwrap();
    let process = world.sim.foreign("vmm");
    world.hand_out(&process, "r-1");
    process.bind_received(at(DEVICE)).unwrap();
    process.map_received(at(DEVICE), IOVA).unwrap();
    for _ in 0..3 {
        assert_eq!(world.restart().adopted, [id("r-1")]);
        assert_eq!(world.engine.census().contexts, 1);
        assert!(process.reaches(IOVA), "its memory is gone");
        world.check();
    }
    let force = Command::Release { order: Order::new("r-1"), force: true };
    world.book.run(&force, &id("r-1")).unwrap();
    assert!(!process.running());
    world.check_given_back();
    assert_eq!(world.store.as_ref().unwrap().names(), [""; 0]);
}
