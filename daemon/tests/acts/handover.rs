//! The hand-over socket: who gets what, what registers, what ends with a process.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use berth_handover::{Client, ClientError, FdKind, MAX_ANSWER_FDS, Request};
use berth_host::{
    Host as _,
    sim::{Fault, SimHost, Site, Topology},
};
use berth_ownership::{Backend, Delivery, Policy, ReservationState};
use berthd::{acts::Records, config::Access, handover, model::Role};
use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
    process::{Resource, Rlimit},
};

use crate::world::{Ask, World, at, id};

const DEVICE: &str = "0000:00:06.0";

pub struct Desk {
    pub world: World,
    pub path: PathBuf,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

impl Desk {
    /// The daemon ends as it stands, and a new one serves the same socket.
    pub fn restart(&mut self) -> berthd::reconcile::Report {
        self.task.abort();
        let report = self.world.restart();
        std::fs::remove_file(&self.path).unwrap();
        let socket = handover::bind_socket(&self.path).unwrap();
        let access = Access::all(Role::Holder);
        self.task = tokio::spawn(handover::serve(socket, self.world.engine.clone(), access));
        report
    }
}

impl Desk {
    /// The socket isn't served any more.
    pub fn close(&self) {
        self.task.abort();
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn desk() -> Desk {
    desk_on(World::new())
}

pub fn desk_on(world: World) -> Desk {
    desk_with(world, Access::all(Role::Holder))
}

pub fn desk_with(world: World, access: Access) -> Desk {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("handover.sock");
    let socket = handover::bind_socket(&path).unwrap();
    let task = tokio::spawn(handover::serve(socket, world.engine.clone(), access));
    Desk { world, path, task, _dir: dir }
}

pub fn attached(desk: &Desk, ask: &Ask) {
    desk.world.reserve(ask).unwrap();
    desk.world.attach(ask.name).unwrap();
}

fn bound(backend: Backend) -> Ask {
    Ask::new("r-1", Policy::Exclusive, &[DEVICE]).delivery(Delivery::Bound).backend(backend)
}

pub fn memory(bytes: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("guest", flags).unwrap();
    rustix::fs::ftruncate(&memory, bytes).unwrap();
    memory
}

pub fn sealed(bytes: u64) -> OwnedFd {
    let memory = memory(bytes);
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
    memory
}

pub fn reason(result: Result<impl Sized, ClientError>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(ClientError::Refused(refusal)) => refusal.reason,
        Err(other) => panic!("{other}"),
    }
}

/// Runs a blocking client on a thread of its own.
pub async fn client<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(Client) -> T + Send + 'static,
) -> T {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || work(Client::connect(&path).unwrap())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_brings_the_device_and_its_context() {
    for (backend, kind) in
        [(Backend::Iommufd, FdKind::Iommufd), (Backend::Type1, FdKind::Container)]
    {
        let desk = desk();
        attached(&desk, &bound(backend));
        let mut fetched = client(&desk.path, |client| client.fetch("r-1", 0)).await.unwrap();
        assert_eq!(fetched.reply.policy.as_deref(), Some("exclusive"));
        assert_eq!(fetched.reply.delivery.as_deref(), Some("bound"));
        assert_eq!(fetched.reply.backend.as_deref(), Some(backend.to_string().as_str()));
        let (device, fd) = fetched.take_device(DEVICE).unwrap();
        let flags = rustix::io::fcntl_getfd(&fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let (context, _fd) = fetched.take_context().unwrap();
        assert_eq!(context.kind, kind);
        assert_eq!(context.ioas_id, device.ioas_id);
        let snapshot = desk.world.book.snapshot();
        let process = snapshot.state.reservation(&id("r-1")).unwrap().process.clone().unwrap();
        assert_eq!(process.pid, std::process::id());
        let again = client(&desk.path, |client| client.fetch("r-1", 0)).await;
        assert_eq!(again.unwrap().fds.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why() {
    let desk = desk();
    let mut other = bound(Backend::Iommufd);
    other.uid = "uid:4242".to_owned();
    attached(&desk, &other);
    let mut reserved = Ask::new("r-2", Policy::Exclusive, &["0000:00:05.0"]);
    reserved = reserved.delivery(Delivery::Bound);
    desk.world.reserve(&reserved).unwrap();
    let fetch = |name: &'static str, epoch| {
        let path = desk.path.clone();
        async move { reason(client(&path, move |client| client.fetch(name, epoch)).await) }
    };
    assert_eq!(fetch("r-1", 0).await, "NOT_FOR_YOU");
    assert_eq!(fetch("r-2", 0).await, "NOT_ATTACHED");
    assert_eq!(fetch("r-none", 0).await, "NOT_FOUND");
    desk.world.attach("r-2").unwrap();
    assert_eq!(fetch("r-2", 1).await, "STALE_EPOCH");
    assert_eq!(fetch("r-2", 0).await, "ok");
    desk.world.release("r-2").unwrap();
    assert_eq!(fetch("r-2", 0).await, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_itself_is_the_token() {
    let desk = desk();
    attached(&desk, &bound(Backend::Iommufd));
    let (same, other) = client(&desk.path, |client| {
        let mut fetched = client.fetch("r-1", 0).unwrap();
        let (_, context) = fetched.take_context().unwrap();
        let show = Request::ShowToken { reservation: "r-1".to_owned() };
        let same = client.ask(&show, &[context.as_fd()]).map(|(reply, _)| reply.token);
        let other = reason(client.ask(&show, &[sealed(1).as_fd()]));
        (same, other)
    })
    .await;
    assert_eq!(same.unwrap().as_deref(), Some("r-1"));
    assert_eq!(other, "GROUP_OWNED");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_answered_and_the_socket_lives() {
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    };
    let desk = desk();
    let path = desk.path.clone();
    let answers = tokio::task::spawn_blocking(move || {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let mut answers = Vec::new();
        for packet in [
            b"not json".to_vec(),
            b"{}".to_vec(),
            vec![b'x'; 20_000],
            br#"{"op":"fetch","reservation":"../../etc/passwd"}"#.to_vec(),
            br#"{"op":"unregister","reservation":"r-1","iova":"0xffffffffffffffff","lengthBytes":18446744073709551615}"#.to_vec(),
        ] {
            rustix::net::send(&socket, &packet, SendFlags::empty()).unwrap();
            let mut buffer = vec![0; 16_384];
            let (got, _) =
                rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
            answers.push(String::from_utf8(buffer[..got].to_vec()).unwrap());
        }
        answers
    })
    .await
    .unwrap();
    assert!(answers.iter().all(|answer| answer.contains(r#""ok":false"#)), "{answers:?}");
    assert!(answers[0].contains("INVALID_ARGUMENT"), "{}", answers[0]);
    attached(&desk, &bound(Backend::Iommufd));
    assert_eq!(client(&desk.path, |client| client.fetch("r-1", 0)).await.unwrap().fds.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_uid_cannot_take_all_connections_and_they_come_back() {
    let desk = desk();
    attached(&desk, &bound(Backend::Iommufd));
    let path = desk.path.clone();
    let over = tokio::task::spawn_blocking(move || {
        let many: Vec<Client> = (0..64).map(|_| Client::connect(&path).unwrap()).collect();
        for client in &many {
            assert_eq!(reason(client.fetch("r-none", 0)), "NOT_FOUND");
        }
        let over = Client::connect(&path).unwrap();
        let Err(ClientError::Refused(refusal)) = over.fetch("r-1", 0) else {
            panic!("one over the limit is not told");
        };
        refusal
    });
    let refusal = over.await.unwrap();
    assert_eq!(refusal.reason, "UNAVAILABLE");
    assert!(refusal.message.contains("64") && !refusal.resolve.is_empty(), "{refusal}");
    let deadline = std::time::Instant::now() + crate::book::PATIENCE;
    loop {
        let again = client(&desk.path, |client| client.fetch("r-1", 0).is_ok()).await;
        if again {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the seats never came back");
    }
}

/// What a child process does: fetches, registers, says so, waits for the end of its input.
#[test]
fn child_holder() {
    let Some(path) = std::env::var_os("BERTH_TEST_HANDOVER") else { return };
    let client = Client::connect(Path::new(&path)).unwrap();
    let fetched = client.fetch("r-1", 0).unwrap();
    client.register("r-1", sealed(0x4000), 0, 0x4000, Some(0x10_0000)).unwrap();
    println!("holding {}", fetched.fds.len());
    std::io::stdout().flush().unwrap();
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).unwrap();
    drop(fetched);
}

fn spawn_holder(path: &Path) -> Child {
    spawn_child(path, "handover::child_holder")
}

/// Another process of this program, that runs one of its tests until that says that it is holding.
pub fn spawn_child(path: &Path, test: &str) -> Child {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("BERTH_TEST_HANDOVER", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).any(|line| line.contains("holding"));
    assert!(said, "the child never held anything");
    child
}

fn claims(world: &World) -> u32 {
    world.book.snapshot().state.reservation(&id("r-1")).unwrap().claims
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_holders_claims_end_and_the_hold_stays() {
    for backend in [Backend::Iommufd, Backend::Type1] {
        let desk = desk();
        attached(&desk, &bound(backend));
        let path = desk.path.clone();
        let mut child = tokio::task::spawn_blocking(move || spawn_holder(&path)).await.unwrap();
        assert_eq!(claims(&desk.world), 1);
        let refusal = desk.world.release("r-1").unwrap_err();
        assert!(refusal.message.contains(&child.id().to_string()), "{}", refusal.message);
        child.kill().unwrap();
        child.wait().unwrap();
        desk.world.book.wait_for("the end of the claims", |state| {
            state.reservation(&id("r-1")).unwrap().claims == 0
        });
        assert_eq!(desk.world.state("r-1"), ReservationState::Reserved);
        desk.world.check();
        desk.world.attach("r-1").unwrap();
        desk.world.release("r-1").unwrap();
        desk.world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_process_still_has_open_drains() {
    let desk = desk();
    attached(&desk, &bound(Backend::Iommufd));
    let path = desk.path.clone();
    let mut child = tokio::task::spawn_blocking(move || spawn_holder(&path)).await.unwrap();
    let heir = desk.world.sim.foreign("heir");
    heir.receive(desk.world.engine.device_fd(at(DEVICE)).unwrap()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    desk.world.book.wait_for("draining", |state| {
        state.reservation(&id("r-1")).unwrap().state == ReservationState::Draining
    });
    let snapshot = desk.world.book.snapshot();
    let process = snapshot.state.reservation(&id("r-1")).unwrap().process.clone().unwrap();
    assert_eq!(i32::try_from(process.pid).unwrap(), heir.pid());
    desk.world.check();
    drop(heir);
    desk.world.book.wait_for("the end of the claims", |state| {
        state.reservation(&id("r-1")).unwrap().claims == 0
    });
    desk.world.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn force_stops_kills_and_proves() {
    let desk = desk();
    attached(&desk, &bound(Backend::Iommufd));
    let holder = desk.world.sim.foreign("qemu");
    desk.world.hand_to(&holder, "r-1");
    let force = berth_ownership::Command::Release {
        order: berth_ownership::Order::new("r-1"),
        force: true,
    };
    desk.world.book.run(&force, &id("r-1")).unwrap();
    assert!(!holder.running());
    assert_eq!(desk.world.state("r-1"), ReservationState::Released);
    desk.world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_contexts_descriptor_keeps_other_identities_out() {
    let desk = desk();
    let shared = |name, device| Ask::new(name, Policy::Shared, device).delivery(Delivery::Bound);
    attached(&desk, &shared("r-1", &["0000:02:01.0"]));
    let fetched = client(&desk.path, |client| client.fetch("r-1", 0)).await.unwrap();
    assert!(fetched.fds.iter().any(|(info, _)| info.kind == FdKind::Iommufd), "alone: all of it");
    let mut stranger = shared("r-2", &["0000:02:02.0"]).domain("d-r-1");
    "uid:12345".clone_into(&mut stranger.uid);
    desk.world.reserve(&stranger).unwrap();
    let refusal = desk.world.attach("r-2").unwrap_err();
    assert_eq!(refusal.reason.name(), "HOLDER_OWNS_DOMAIN");
    desk.world.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoke_that_breaks_off_leaves_nobody_stopped() {
    let desk = desk();
    attached(&desk, &bound(Backend::Iommufd));
    let holder = desk.world.sim.foreign("qemu");
    desk.world.hand_to(&holder, "r-1");
    let order = || berth_ownership::Order::new("r-1");
    let force = berth_ownership::Command::Release { order: order(), force: true };
    // Who is to be stopped can be told, and who is to be killed can't any more.
    desk.world.sim.fault(Fault::at(Site::WhoHolds).errno(Errno::ACCESS).skip(1));
    let refusal = desk.world.book.run(&force, &id("r-1")).unwrap_err();
    assert_eq!(refusal.errno, Errno::ACCESS.raw_os_error(), "{}", refusal.message);
    assert!(holder.running() && !holder.stopped());
    desk.world.sim.clear_faults();
    // It was stopped and can't be killed at first.
    desk.world.sim.fault(Fault::at(Site::Kill).errno(Errno::PERM).skip(1));
    desk.world.book.run(&force, &id("r-1")).unwrap();
    assert!(!holder.running());
    desk.world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_let_go_in_time_is_not_killed() {
    let desk = desk();
    attached(&desk, &bound(Backend::Iommufd));
    let holder = desk.world.sim.foreign("qemu");
    let other = desk.world.sim.foreign("tool");
    desk.world.hand_to(&holder, "r-1");
    other.receive(desk.world.engine.device_fd(at(DEVICE)).unwrap()).unwrap();
    // Between the first look and the second, which the slow signal leaves time for.
    desk.world.sim.fault(Fault::at(Site::Kill).delay_ms(300));
    let closing = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            other.close_all();
        });
        let order = berth_ownership::Order::new("r-1");
        let force = berth_ownership::Command::Release { order, force: true };
        desk.world.book.run(&force, &id("r-1"))
    });
    closing.unwrap();
    assert!(!holder.running());
    assert!(other.running() && !other.stopped());
    desk.world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_descriptors_than_one_message_takes_are_refused_before_any_is_given() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(Resource::Nofile, most).unwrap();
    for (count, answer) in [(MAX_ANSWER_FDS, "UNSUPPORTED"), (MAX_ANSWER_FDS - 1, "ok")] {
        let sim = SimHost::from_topology(Topology::generated(256));
        let desk = desk_on(World::on(sim));
        let names: Vec<&'static str> = desk.world.sim.scan().unwrap().devices[..count]
            .iter()
            .map(|device| &*Box::leak(device.address.to_string().into_boxed_str()))
            .collect();
        let ask = Ask::new("r-1", Policy::Exclusive, Box::leak(names.into_boxed_slice()));
        attached(&desk, &ask.delivery(Delivery::Bound));
        let fetched = client(&desk.path, |client| client.fetch("r-1", 0)).await;
        if let Ok(fetched) = &fetched {
            assert_eq!(fetched.fds.len(), MAX_ANSWER_FDS, "the devices and their context");
        }
        if let Err(ClientError::Refused(refusal)) = &fetched {
            assert!(refusal.message.contains("253"), "{refusal}");
            assert!(refusal.resolve[0].contains("at most 252"), "{refusal:?}");
        }
        assert_eq!(reason(fetched), answer);
        let snapshot = desk.world.book.snapshot();
        let process = &snapshot.state.reservation(&id("r-1")).unwrap().process;
        assert_eq!(process.is_some(), answer == "ok", "recorded as handed over");
    }
}
