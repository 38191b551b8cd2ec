//! Deliveries `unbound` and `node`: the holder binds, or opens, by itself.

use std::{
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::{Child, Command as Program, Stdio},
};

use berth_handover::{Client, ClientError, FdKind, Fetched, NodeKind};
use berth_host::{
    Host as _, Node,
    sim::{Fault, SimHost, Site, Topology},
};
use berth_ownership::{
    Backend, Command, Delivery, HolderProcess, Order, Ownership, Policy, ReservationState, State,
};
use berthd::{
    acts::{Census, Records as _},
    config::{Access, Rule},
    model::{Role, Who},
};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    handover::{Desk, client, desk, desk_with, reason, spawn_child},
    world::{Ask, World, at, holder, id, myself},
};

pub const DEVICE: &str = "0000:00:06.0";
pub const BOTH: [Backend; 2] = [Backend::Iommufd, Backend::Type1];

pub fn unbound() -> Ask {
    Ask::new("r-1", Policy::Exclusive, &[DEVICE]).delivery(Delivery::Unbound)
}

pub fn node(backend: Backend) -> Ask {
    Ask::new("r-1", Policy::Exclusive, &[DEVICE]).delivery(Delivery::Node).backend(backend)
}

fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

pub fn reserved(ask: &Ask) -> Desk {
    let desk = desk();
    desk.world.reserve(ask).unwrap();
    desk
}

pub fn process(world: &World) -> Option<HolderProcess> {
    world.book.snapshot().state.reservation(&id("r-1")).unwrap().process.clone()
}

pub fn is(state: ReservationState) -> impl Fn(&State) -> bool {
    move |record| record.reservation(&id("r-1")).unwrap().state == state
}

fn force(world: &World) -> Result<bool, Box<berth_ownership::Refusal>> {
    let release = Command::Release { order: Order::new("r-1"), force: true };
    world.book.run(&release, &id("r-1"))
}

fn pidfd(child: &Child) -> OwnedFd {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

pub fn sleeper() -> Program {
    let mut program = Program::new("sleep");
    program.arg("600").stdin(Stdio::null()).stdout(Stdio::null());
    program
}

pub fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What a child process does: fetches what is unbound, says so, and waits for the end of its input.
#[test]
fn child_fetches() {
    let Some(path) = std::env::var_os("BERTH_TEST_HANDOVER") else { return };
    let client = Client::connect(Path::new(&path)).unwrap();
    let mut fetched = client.fetch("r-1", 0).unwrap();
    let (device, _fd) = fetched.take_device(DEVICE).unwrap();
    assert_eq!((device.kind, device.device_id, device.ioas_id), (FdKind::Cdev, None, None));
    let (context, _context) = fetched.take_context().unwrap();
    assert_eq!((context.kind, context.ioas_id), (FdKind::Iommufd, None));
    println!("holding");
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

pub async fn holding(desk: &Desk) -> Child {
    let path = desk.path.clone();
    let spawn = move || spawn_child(&path, "handed::child_fetches");
    tokio::task::spawn_blocking(spawn).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn unbound_from_the_fetch_to_the_end_of_its_holder() {
    let desk = reserved(&unbound());
    let world = &desk.world;
    assert_eq!(world.attach("r-1").unwrap_err().reason.name(), "HOLDER_OWNS_DOMAIN");
    world.check();
    let child = holding(&desk).await;
    assert_eq!(world.state("r-1"), ReservationState::Handed);
    assert_eq!(world.ownership(DEVICE).owner_cnt(), 1);
    assert_eq!(process(world).unwrap().pid, child.id());
    // Nothing of the device is with the daemon, and the kernel doesn't guard it yet.
    assert_eq!(world.engine.census(), Census { devices: 0, holds: 0, contexts: 1 });
    assert!(world.sim.probe_free(world.number_of(DEVICE)).unwrap());
    let stranger = world.sim.process("stranger", 12345);
    assert_eq!(stranger.open_group(world.number_of(DEVICE)), Err(Errno::ACCESS));
    assert_eq!(stranger.bind(at(DEVICE)), Err(Errno::ACCESS));
    world.check();
    let refusal = world.release("r-1").unwrap_err();
    assert!(refusal.message.contains(&child.id().to_string()), "{}", refusal.message);

    world.sim.bind_exported(at(DEVICE)).unwrap();
    world.book.wait_for("the bind", is(ReservationState::Held));
    assert!(!world.sim.probe_free(world.number_of(DEVICE)).unwrap());
    assert!(world.sim.foreign_bind(at(DEVICE)).is_err(), "another iommufd");
    world.check();
    assert!(world.release("r-1").is_err());

    end(child);
    world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
    assert_eq!(world.engine.census(), Census { devices: 0, holds: 1, contexts: 0 });
    world.check();
    // Everything is fresh for the next one.
    let next = holding(&desk).await;
    world.sim.bind_exported(at(DEVICE)).unwrap();
    world.book.wait_for("the next bind", is(ReservationState::Held));
    end(next);
    world.book.wait_for("the next end", is(ReservationState::Reserved));
    world.release("r-1").unwrap();
    let back = world.book.given_back(&id("r-1"));
    assert!(back[0].baseline_restored && back[0].reset_method == "flr", "{back:?}");
    world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_dies_before_it_binds_leaves_a_hold() {
    let desk = reserved(&unbound());
    end(holding(&desk).await);
    desk.world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
    desk.world.check();
    desk.world.release("r-1").unwrap();
    desk.world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_dies_before_the_answer_comes_leaves_a_hold() {
    let desk = reserved(&unbound());
    desk.world.sim.fault(Fault::at(Site::OpenDevice).delay_ms(500));
    let mut child = Program::new(std::env::current_exe().unwrap())
        .args(["--exact", "handed::child_fetches", "--nocapture"])
        .env("BERTH_TEST_HANDOVER", &desk.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    desk.world.book.wait_for("the record", is(ReservationState::Handed));
    child.kill().unwrap();
    child.wait().unwrap();
    desk.world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
    desk.world.check();
    desk.world.release("r-1").unwrap();
    desk.world.check_given_back();
}

/// The holder lives and gets nothing, as who fetched for it went away.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_takes_is_undone() {
    let desk = reserved(&unbound());
    desk.world.sim.fault(Fault::at(Site::OpenDevice).delay_ms(300));
    let named = sleeper().spawn().unwrap();
    ask_and_go(&desk.path, &pidfd(&named));
    desk.world.book.wait_for("the record", is(ReservationState::Handed));
    assert_eq!(process(&desk.world).unwrap().pid, named.id());
    desk.world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
    desk.world.check();
    end(named);
    assert_eq!(reason(client(&desk.path, |client| client.fetch("r-1", 0)).await), "ok");
}

/// Asks for a reservation in the name of a process, and closes the connection.
fn ask_and_go(path: &Path, pidfd: &OwnedFd) {
    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketType, connect, sendmsg, socket,
    };
    let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [pidfd.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let request = std::io::IoSlice::new(br#"{"op":"fetch","reservation":"r-1"}"#);
    sendmsg(&socket, &[request], &mut control, SendFlags::empty()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_fetches_at_once_one_is_told_to_wait() {
    let desk = reserved(&unbound());
    desk.world.sim.fault(Fault::at(Site::OpenContext).delay_ms(300));
    let fetch = || client(&desk.path, |client| client.fetch("r-1", 0));
    let (one, two) = tokio::join!(fetch(), fetch());
    let mut answers = [&one, &two].map(|answer| match answer {
        Ok(fetched) => format!("{} descriptors", fetched.fds.len()),
        Err(ClientError::Refused(refusal)) => refusal.reason.clone(),
        Err(other) => other.to_string(),
    });
    answers.sort();
    assert_eq!(answers, ["2 descriptors", "RESERVATION_BUSY"]);
    // The same holder may fetch again: a cdev is good for one bind, the iommufd stays the same.
    let again = fetch().await.unwrap();
    let first = one.or(two).unwrap();
    let files = |fetched: &Fetched| {
        let file = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        fetched.fds.iter().map(|(_, fd)| file(fd)).collect::<Vec<_>>()
    };
    let (first, again) = (files(&first), files(&again));
    assert!(first[0] != again[0] && first[1] == again[1], "{first:?} {again:?}");
    assert_eq!(desk.world.engine.census(), Census { devices: 0, holds: 0, contexts: 1 });
    desk.world.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_is_the_holder_when_it_is_named() {
    let desk = reserved(&unbound());
    let named = sleeper().spawn().unwrap();
    let who = pidfd(&named);
    let fetched = client(&desk.path, move |client| client.fetch_for("r-1", 0, &who)).await.unwrap();
    assert_eq!(fetched.fds.len(), 2);
    assert_eq!(process(&desk.world).unwrap().pid, named.id());
    desk.world.sim.bind_exported(at(DEVICE)).unwrap();
    desk.world.book.wait_for("the bind", is(ReservationState::Held));
    // Who passes descriptors on closes its own.
    drop(fetched);
    end(named);
    desk.world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
    let no_process = std::fs::File::open("/dev/null").unwrap();
    let answer = client(&desk.path, move |client| client.fetch_for("r-1", 0, &no_process)).await;
    assert_eq!(reason(answer), "INVALID_ARGUMENT");
    desk.world.check();
}

/// Needs to be root, to start a process of another user.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_fetches_for_a_process_of_the_user_alone() {
    use std::os::unix::process::CommandExt as _;
    if uid() != 0 {
        return;
    }
    let operator = Access {
        role: Role::Operator,
        rules: vec![Rule { who: Who::Uid(0), role: Some(Role::Operator), label: None }],
        others: Some(Role::Holder),
        label: None,
    };
    for (access, answers) in [
        (operator, ["NOT_FOR_YOU", "NOT_FOR_YOU", "ok"]),
        (Access::all(Role::Holder), ["NOT_FOR_YOU", "NOT_FOR_YOU", "NOT_FOR_YOU"]),
        (Access::all(Role::Viewer), ["PERMISSION_DENIED"; 3]),
    ] {
        let desk = desk_with(World::new(), access);
        let mut ask = node(Backend::Iommufd);
        "uid:12345".clone_into(&mut ask.uid);
        desk.world.reserve(&ask).unwrap();
        let own = sleeper().spawn().unwrap();
        let theirs = sleeper().uid(12345).gid(12345).spawn().unwrap();
        let alone = client(&desk.path, |client| client.fetch("r-1", 0)).await;
        let who = pidfd(&own);
        let for_own = client(&desk.path, move |client| client.fetch_for("r-1", 0, &who)).await;
        let who = pidfd(&theirs);
        let for_theirs = client(&desk.path, move |client| client.fetch_for("r-1", 0, &who)).await;
        let found = [alone, for_own, for_theirs].map(reason);
        assert_eq!(found, answers);
        let expected = if answers[2] == "ok" { vec![12345] } else { Vec::new() };
        assert_eq!(desk.world.sim.access(Node::Cdev(at(DEVICE))), expected);
        desk.world.check();
        end(own);
        end(theirs);
    }
}

/// What is reserved for the operator goes to the process that it vouches for, of whatever user.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_names_any_process_as_the_holder_of_what_is_its_own() {
    use std::os::unix::process::CommandExt as _;
    if uid() != 0 {
        return;
    }
    for (role, answers) in [
        (Role::Operator, ["NOT_FOR_YOU", "ok"]),
        (Role::Holder, ["INVALID_ARGUMENT", "INVALID_ARGUMENT"]),
    ] {
        let operator = Access {
            role,
            rules: vec![Rule { who: Who::Uid(0), role: Some(role), label: None }],
            others: None,
            label: None,
        };
        let desk = desk_with(World::new(), operator);
        desk.world.reserve(&unbound()).unwrap();
        let theirs = sleeper().uid(12345).gid(12345).spawn().unwrap();
        let (who, again) = (pidfd(&theirs), pidfd(&theirs));
        let named = client(&desk.path, move |client| client.fetch_for("r-1", 0, &who)).await;
        assert_eq!(reason(named), answers[1], "{role}");
        let holder = process(&desk.world).map(|process| process.pid);
        assert_eq!(holder, (role == Role::Operator).then(|| theirs.id()));
        // Of somebody else's it may still name no process but that user's.
        let mut other = Ask { name: "r-2", ..node(Backend::Iommufd) };
        "uid:54321".clone_into(&mut other.uid);
        if role == Role::Operator {
            other.devices = &["0000:02:01.0", "0000:02:02.0"];
            other.policy = Policy::Group;
            desk.world.reserve(&other).unwrap();
            let named = client(&desk.path, move |client| client.fetch_for("r-2", 0, &again)).await;
            assert_eq!(reason(named), answers[0]);
        }
        desk.world.check();
        end(theirs);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_for_itself_names_no_process_of_others() {
    let desk = reserved(&unbound());
    // The first process is root's; where this is root's too, one of another user is needed.
    let (child, who) = if uid() == 0 {
        use std::os::unix::process::CommandExt as _;
        let child = sleeper().uid(12345).gid(12345).spawn().unwrap();
        let who = pidfd(&child);
        (Some(child), who)
    } else {
        (None, pidfd_open(Pid::INIT, PidfdFlags::empty()).unwrap())
    };
    let answer = client(&desk.path, move |client| client.fetch_for("r-1", 0, &who)).await;
    assert_eq!(reason(answer), "INVALID_ARGUMENT");
    assert_eq!(desk.world.state("r-1"), ReservationState::Reserved);
    desk.world.check();
    child.into_iter().for_each(end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_opens_for_its_user_and_closes_with_the_release() {
    for backend in BOTH {
        let desk = reserved(&node(backend));
        let world = &desk.world;
        let number = world.number_of(DEVICE);
        let user = world.sim.process("qemu", uid().max(1));
        let fetched = client(&desk.path, |client| client.fetch("r-1", 0)).await.unwrap();
        assert!(fetched.fds.is_empty());
        let nodes: Vec<(NodeKind, &str)> =
            fetched.nodes().iter().map(|node| (node.kind, node.path.as_str())).collect();
        let group = format!("/dev/vfio/{number}");
        let expected = match backend {
            Backend::Iommufd => {
                [(NodeKind::Cdev, "/dev/vfio/devices/vfio0"), (NodeKind::Iommufd, "/dev/iommu")]
            }
            Backend::Type1 => {
                [(NodeKind::Group, group.as_str()), (NodeKind::Container, "/dev/vfio/vfio")]
            }
        };
        assert_eq!(nodes, expected);
        // Either way it is said which device is where.
        let first = &fetched.nodes()[0];
        let named = first.address.as_ref().or(first.devices.first());
        assert_eq!(named.map(String::as_str), Some(DEVICE), "{first:?}");
        assert_eq!(world.state("r-1"), ReservationState::Handed);
        world.check();
        let stranger = world.sim.process("stranger", 12345);
        let open = |process: &berth_host::sim::Foreign| match backend {
            Backend::Iommufd => process.bind(at(DEVICE)),
            Backend::Type1 => process.open_by_group(at(DEVICE)),
        };
        assert_eq!(open(&stranger), Err(Errno::ACCESS));
        if uid() == 0 {
            // The list is for root, which needs none: let it in as that.
            let root = world.sim.process("qemu", 0);
            open(&root).unwrap();
            world.book.wait_for("the open", is(ReservationState::Held));
            assert!(world.release("r-1").is_err());
            drop(root);
        } else {
            open(&user).unwrap();
            world.book.wait_for("the open", is(ReservationState::Held));
            world.check();
            let refusal = world.release("r-1").unwrap_err();
            assert!(refusal.message.contains(&user.pid().to_string()), "{}", refusal.message);
            user.close_all();
        }
        assert_eq!(open(&stranger), Err(Errno::ACCESS));
        world.check();
        world.release("r-1").unwrap();
        assert_eq!(world.sim.access(Node::Iommu), Vec::<u32>::new());
        world.check_given_back();
    }
}

/// Reserved for a user that this isn't, and handed out to one of its processes.
pub fn let_in(world: &World, ask: &Ask, process: HolderProcess) {
    let mut ask = ask.clone();
    "uid:60001".clone_into(&mut ask.uid);
    world.reserve(&ask).unwrap();
    world.hand_out_to(process, ask.name).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoke_of_a_node_shuts_the_user_out_and_kills() {
    for backend in BOTH {
        let world = World::new();
        let qemu = world.sim.process("qemu", 60001);
        let_in(&world, &node(backend), holder(&qemu));
        match backend {
            Backend::Iommufd => qemu.bind(at(DEVICE)).unwrap(),
            Backend::Type1 => qemu.open_by_group(at(DEVICE)).unwrap(),
        }
        let next = world.sim.process("qemu", 60001);
        force(&world).unwrap();
        assert!(!qemu.running() && next.running());
        assert_eq!(next.open_group(world.number_of("0000:00:06.0")), Err(Errno::NOENT));
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoke_of_what_was_handed_over_unbound_cuts_before_it_kills() {
    let world = World::new();
    world.reserve(&unbound()).unwrap();
    let qemu = world.sim.process("qemu", 60001);
    world.hand_out(&qemu, "r-1");
    qemu.bind_received(at(DEVICE)).unwrap();
    qemu.map_received(at(DEVICE), 0x10_0000).unwrap();
    assert!(qemu.reaches(0x10_0000));
    // It can be stopped, and not be killed.
    world.sim.fault(Fault::at(Site::Kill).errno(Errno::PERM).skip(1).always());
    let refusal = force(&world).unwrap_err();
    assert_eq!(refusal.reason.name(), "HOLDER_DRAINING", "{}", refusal.message);
    assert!(qemu.running() && !qemu.reaches(0x10_0000), "cut off");
    // It drains, and stays cut off whatever it maps.
    world.book.wait_for("draining", is(ReservationState::Draining));
    for _ in 0..3 {
        qemu.map_received(at(DEVICE), 0x20_0000).unwrap();
        let deadline = std::time::Instant::now() + crate::book::PATIENCE;
        while qemu.reaches(0x20_0000) {
            assert!(std::time::Instant::now() < deadline, "it maps again, and nobody cuts it off");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    assert_eq!(world.state("r-1"), ReservationState::Draining);
    assert_ne!(world.ownership(DEVICE), Ownership::Free);
    world.sim.clear_faults();
    // Killed as soon as that is possible, without another order.
    world.book.wait_for("the end of the revoke", is(ReservationState::Reserved));
    assert!(!qemu.running());
    world.check();
    world.release("r-1").unwrap();
    world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_iommufd_node_is_open_for_as_long_as_any_of_the_users_reservations() {
    let world = World::new();
    let qemu = world.sim.process("qemu", 60001);
    let second = Ask { name: "r-2", devices: &["0000:00:05.0"], ..node(Backend::Iommufd) };
    let_in(&world, &node(Backend::Iommufd), holder(&qemu));
    let_in(&world, &second, holder(&qemu));
    world.check();
    world.release("r-1").unwrap();
    assert_eq!(world.sim.access(Node::Iommu), [60001]);
    world.check();
    world.release("r-2").unwrap();
    assert_eq!(world.sim.access(Node::Iommu), Vec::<u32>::new());
    world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_not_be_let_in_leaves_the_hold() {
    for (backend, skip) in [(Backend::Iommufd, 0), (Backend::Iommufd, 1), (Backend::Type1, 0)] {
        let world = World::new();
        world.reserve(&node(backend)).unwrap();
        world.sim.fault(Fault::at(Site::Access).errno(Errno::OPNOTSUPP).skip(skip));
        let refusal = world.hand_out_to(myself(), "r-1").unwrap_err();
        assert_eq!(refusal.reason.name(), "UNSUPPORTED", "{}", refusal.message);
        assert!(refusal.resolve[1].contains("--delivery bound"), "{:?}", refusal.resolve);
        assert_eq!(world.state("r-1"), ReservationState::Reserved);
        world.check();
        world.hand_out_to(myself(), "r-1").unwrap();
        world.check();
        world.release("r-1").unwrap();
        world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn access_that_could_not_be_taken_back_goes_with_the_next_work() {
    let world = World::new();
    world.reserve(&node(Backend::Iommufd)).unwrap();
    world.sim.fault(Fault::at(Site::Access).errno(Errno::IO).skip(1).always());
    world.hand_out_to(myself(), "r-1").unwrap_err();
    assert!(!world.sim.access(Node::Cdev(at(DEVICE))).is_empty(), "nothing was left to take back");
    world.sim.clear_faults();
    world.reserve(&Ask { name: "r-2", devices: &["0000:00:05.0"], ..unbound() }).unwrap();
    world.check();
}

/// A lost reservation blocks nobody, and its user is out before another one comes.
#[tokio::test(flavor = "multi_thread")]
async fn who_lost_a_group_is_let_in_no_more() {
    for backend in BOTH {
        let world = World::new();
        let_in(&world, &node(backend), myself());
        let why = "a rival was faster".to_owned();
        world.book.order(&Command::HoldLost { reservation: id("r-1"), why }).unwrap();
        assert_eq!(world.state("r-1"), ReservationState::Lost);
        let mut next = Ask { name: "r-2", ..node(backend) };
        "uid:60002".clone_into(&mut next.uid);
        world.reserve(&next).unwrap();
        world.check();
        world.release("r-2").unwrap();
        world.release("r-1").unwrap();
        world.check_given_back();
    }
}

const PAIR: [&str; 2] = ["0000:02:01.0", "0000:02:02.0"];

fn one_of_the_pair(name: &'static str, device: &'static [&'static str]) -> Ask {
    Ask::new(name, Policy::Group, device).delivery(Delivery::Unbound)
}

/// The daemon keeps out of a group while any of its holders may bind, whatever others do.
#[tokio::test(flavor = "multi_thread")]
async fn siblings_of_one_token_share_the_iommufd_and_leave_one_by_one() {
    let world = World::new();
    world.reserve(&one_of_the_pair("r-1", &["0000:02:01.0"])).unwrap();
    let qemu = world.sim.process("qemu", 60001);
    world.hand_out(&qemu, "r-1");
    world.reserve(&one_of_the_pair("r-2", &["0000:02:02.0"]).join("r-1")).unwrap();
    assert_eq!(world.engine.census(), Census { devices: 0, holds: 0, contexts: 1 });
    qemu.bind_received(at(PAIR[0])).unwrap();
    world.hand_out(&qemu, "r-2");
    qemu.bind_received(at(PAIR[1])).unwrap();
    assert_eq!(world.ownership(PAIR[0]).owner_cnt(), 2);
    world.check();
    assert!(world.release("r-2").is_err());
    qemu.close_all();
    // What is left to the other one is not asked for.
    world.release("r-2").unwrap();
    assert_eq!(world.ownership(PAIR[0]).owner_cnt(), 1);
    assert_eq!(world.engine.census().contexts, 1);
    world.check();
    world.release("r-1").unwrap();
    assert_eq!(world.ownership(PAIR[0]), Ownership::Free);
    world.check_given_back();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_leaves_who_has_bound_alone() {
    let mut world = World::new();
    world.reserve(&unbound()).unwrap();
    let qemu = world.sim.process("qemu", 60001);
    world.hand_out(&qemu, "r-1");
    qemu.bind_received(at(DEVICE)).unwrap();
    let report = world.restart();
    assert_eq!(report.adopted, [id("r-1")]);
    world.check();
    // What was kept of the hand-over is gone with the last daemon.
    let refusal = world.engine.handed_fds(&id("r-1")).unwrap_err();
    assert_eq!(refusal.reason().name(), "DAEMON_RESTARTED");
    drop(qemu);
    world.book.wait_for("the end of the claims", is(ReservationState::Reserved));
    let next = world.sim.process("qemu", 60001);
    world.hand_out(&next, "r-1");
    next.bind_received(at(DEVICE)).unwrap();
    drop(next);
    world.release("r-1").unwrap();
    world.check_given_back();
}

/// A node that was opened before its hand-over was answered is its holder's all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_broke_off_is_undone_or_done_as_its_user_has_it() {
    let mut opened = 0;
    for (backend, at_point) in
        BOTH.into_iter().flat_map(|it| (1..).map(move |at| (it, at)).take(12))
    {
        let mut world = World::new();
        let mut ask = node(backend);
        "uid:60001".clone_into(&mut ask.uid);
        world.reserve(&ask).unwrap();
        world.crash.arm(at_point);
        let order = Order::new("r-1");
        let _ = world.book.order(&Command::HandOver { order, process: myself() });
        world.book.settled();
        world.engine.close(crate::book::PATIENCE);
        let qemu = world.sim.process("qemu", 60001);
        let open = match backend {
            Backend::Iommufd => qemu.bind(at(DEVICE)),
            Backend::Type1 => qemu.open_by_group(at(DEVICE)),
        };
        let broke_off = !world.book.open_intents().is_empty();
        let report = world.restart();
        let place = format!("{backend}, crash {at_point}, {open:?}: {report:?}");
        let stands = world.state("r-1") == ReservationState::Reserved;
        assert_eq!(stands, open.is_err(), "{place}");
        assert_eq!(report.finished.len(), usize::from(broke_off && open.is_ok()), "{place}");
        assert_eq!(report.undone.len(), usize::from(broke_off && open.is_err()), "{place}");
        opened += report.finished.len();
        world.check();
        qemu.close_all();
        world.release("r-1").unwrap();
        world.check_given_back();
    }
    assert!(opened > 3, "{opened} were done");
}

/// The daemon dies at any point of what follows from the end of a holder.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_the_end_of_a_holder_is_seen_to_leaves_the_record_true() {
    let mut at_point = 1;
    loop {
        let mut desk = reserved(&unbound());
        let child = holding(&desk).await;
        desk.world.sim.bind_exported(at(DEVICE)).unwrap();
        desk.world.book.wait_for("the bind", is(ReservationState::Held));
        desk.world.crash.arm(at_point);
        end(child);
        let crash = std::sync::Arc::clone(&desk.world.crash);
        let ended = is(ReservationState::Reserved);
        desk.world.book.wait_for("the end", move |state| crash.happened() || ended(state));
        let over = !desk.world.crash.happened();
        desk.world.restart();
        assert_eq!(desk.world.state("r-1"), ReservationState::Reserved, "crash {at_point}");
        desk.world.check();
        desk.world.release("r-1").unwrap();
        desk.world.check_given_back();
        if over {
            break;
        }
        at_point += 1;
    }
    assert!(at_point > 3, "{at_point}");
}

/// A holder that was let in and has not opened anything yet is not shut out by a restart; a dead
/// one is.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_shuts_the_dead_out_and_nobody_else() {
    for backend in BOTH {
        let mut world = World::new();
        let child = sleeper().spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1;
        let start_ticks = fields.split_ascii_whitespace().nth(19).unwrap().parse().unwrap();
        let_in(&world, &node(backend), HolderProcess::new(child.id(), start_ticks));
        let report = world.restart();
        assert_eq!(report.adopted, [id("r-1")], "{backend}");
        assert_eq!(world.state("r-1"), ReservationState::Handed);
        world.check();
        world.engine.close(crate::book::PATIENCE);
        end(child);
        let report = world.restart();
        assert_eq!(report.ended, [id("r-1")], "{backend}");
        assert_eq!(world.state("r-1"), ReservationState::Reserved);
        world.check();
        world.release("r-1").unwrap();
        world.check_given_back();
    }
}

/// A cdev that nobody has received yet would bind to a group that is free: where the device's
/// baseline is VFIO, taking it off for a moment is what proves that there is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_cdev_on_its_way_keeps_the_device() {
    let topology = Topology::builtin("small").unwrap().with_helper_timeout_ms(200);
    let world = World::on(SimHost::from_topology(topology));
    world.sim.host_driver_unbind(at(DEVICE)).ok();
    let bind = berth_host::Act::Bind { device: at(DEVICE), driver: "vfio-pci".to_owned() };
    world.sim.perform(&bind).unwrap();
    world.book.look();
    world.reserve(&unbound()).unwrap();
    world.hand_out_to(myself(), "r-1").unwrap();
    let under_way = world.engine.handed_fds(&id("r-1")).unwrap();
    world.release("r-1").unwrap();
    let back = world.book.given_back(&id("r-1"));
    assert!(!back[0].baseline_restored, "{back:?}");
    let group = world.group_of(DEVICE);
    let condition = world.book.snapshot().state.group(&group).unwrap().condition;
    assert!(condition >= berth_ownership::Condition::Wedged, "{condition}");
    drop(under_way);
}
