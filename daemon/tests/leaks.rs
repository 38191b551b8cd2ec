//! What a daemon has open and how much memory it takes after many lives of a reservation.

mod front_support;

use std::{
    fs,
    os::fd::OwnedFd,
    process::Command,
    time::{Duration, Instant},
};

use berth_handover::Client;
use berth_proto::v1::{self, reservations_client::ReservationsClient};
use front_support::{PATIENCE, Running};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tonic::transport::Channel;

const CYCLES: u32 = 1000;
/// After this many every pool and every table has been in use.
const WARM: u32 = 100;
/// What the second life of an allocator's arenas may differ by, and the events that are kept for
/// watchers.
const SLACK_KIB: u64 = 16 << 10;

/// What this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Has {
    fds: usize,
    threads: usize,
    children: usize,
    resident_kib: u64,
}

impl Has {
    fn now() -> Self {
        let count = |path: &str| fs::read_dir(path).expect("of this process").count();
        let status = fs::read_to_string("/proc/self/status").expect("of this process");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|text| text.split_whitespace().next()?.parse().ok());
        let tasks = fs::read_dir("/proc/self/task").expect("of this process").flatten();
        let children = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .map(|children| children.split_whitespace().count())
            .sum();
        Self {
            fds: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            children,
            resident_kib: resident.expect("a size"),
        }
    }

    fn exceeds(self, before: Self) -> bool {
        self.fds > before.fds
            || self.threads > before.threads
            || self.children > before.children
            || self.resident_kib > before.resident_kib + SLACK_KIB
    }
}

/// Reserve, attach, hand over to this process or to the one that is named, release.
async fn life(
    client: &mut ReservationsClient<Channel>,
    running: &Running,
    number: u32,
    holder: Option<OwnedFd>,
) {
    let delivery = [v1::Delivery::Bound, v1::Delivery::Unbound, v1::Delivery::Held];
    let delivery = delivery[number as usize % delivery.len()];
    let backend = match (delivery, number % 2) {
        (v1::Delivery::Unbound, _) | (_, 0) => v1::Backend::Iommufd,
        _ => v1::Backend::Type1,
    };
    let request = v1::ReserveRequest {
        holder: format!("vm-{number}"),
        groups: vec!["3".to_owned()],
        policy: v1::Policy::Exclusive.into(),
        delivery: delivery.into(),
        backend: backend.into(),
        request_id: format!("leak-{number}"),
        ..v1::ReserveRequest::default()
    };
    let reserved = client.reserve(request).await.expect("reserved").into_inner();
    if delivery != v1::Delivery::Unbound {
        let id = reserved.id.clone();
        let request = v1::AttachRequest { id, ..v1::AttachRequest::default() };
        client.attach(request).await.expect("attached");
    }
    let (socket, id) = (running.dir.path().join("handover.sock"), reserved.id.clone());
    let fetched = tokio::task::spawn_blocking(move || {
        let client = Client::connect(socket).expect("berthd listens");
        let fetched = match holder {
            Some(holder) => client.fetch_for(&id, 0, holder),
            None => client.fetch(&id, 0),
        };
        fetched.map(|fetched| fetched.fds.len())
    });
    let fds = fetched.await.expect("no panic").expect("fetched");
    assert_eq!(fds > 0, delivery != v1::Delivery::Held, "{delivery:?} brought {fds}");
    let request = v1::ReleaseRequest { id: reserved.id, ..v1::ReleaseRequest::default() };
    let released = client.release(request).await.expect("released").into_inner();
    assert_eq!(released.state(), v1::reservation::State::Released, "{released:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_lives_leave_nothing_behind() {
    let running = Running::start().await;
    let mut client = ReservationsClient::new(running.channel().await);
    let mut other = Command::new("sleep").arg("1000").spawn().expect("a process");
    let mut before = None;
    for number in 0..WARM + CYCLES {
        let pidfd = || pidfd_open(Pid::from_child(&other), PidfdFlags::empty()).expect("it runs");
        let holder = number.is_multiple_of(5).then(pidfd);
        life(&mut client, &running, number, holder).await;
        if number + 1 == WARM {
            tokio::time::sleep(Duration::from_millis(200)).await;
            before = Some(Has::now());
        }
    }
    let before = before.expect("it got warm");
    // What was begun may still end, and idle threads do after a while.
    let deadline = Instant::now() + PATIENCE;
    let mut after = Has::now();
    while after.exceeds(before) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(500)).await;
        after = Has::now();
    }
    println!("before: {before:?}\nafter {CYCLES} lives: {after:?}");
    assert!(!after.exceeds(before), "{after:?} after {CYCLES} lives, {before:?} before");
    other.kill().and_then(|()| other.wait()).expect("it was there all the time");
    running.daemon.stop().await;
}
